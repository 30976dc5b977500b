//! `ls --watch`: the same again and again.

use std::io::{IsTerminal, Write};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::client::shown;
use super::table::cut;
use super::{Ls, Target};
use crate::codes::USAGE;
use crate::exit::Exit;
use crate::output::time;

/// Home, and nothing on the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Nothing after the cursor in its line; nothing below it.
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";
/// Times that make sense.
const LEAST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(86_400);

/// Prints the state again and again: a terminal shows the latest, anything else gets one after the other. A daemon that ends
/// is waited for.
///
/// # Errors
/// As [`super::client::ls`] for the first time.
pub fn watch(args: &Ls) -> Result<(), Exit> {
    let (pace, name) = meant(args)?;
    let target = Target { name, control: args.target.control.clone() };
    let redraw = std::io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    let redraw = redraw && !args.json;
    let mut begin = Instant::now();
    let mut answer: Result<_, Exit> = Ok(shown(&target, args.json)?);
    for round in 0_u64.. {
        let text = match &answer {
            Ok(texts) => texts.join("\n"),
            Err(exit) if redraw => exit.message.clone(),
            Err(exit) => {
                crate::exit::tell(exit);
                String::new()
            }
        };
        let text = match (redraw, args.json || round == 0 || text.is_empty()) {
            (true, _) => screen(&text, &target, pace, round == 0),
            (false, true) => text,
            // Between one table and the next.
            (false, false) => format!("\n{text}"),
        };
        let mut out = anstream::stdout().lock();
        let end = if redraw || text.is_empty() { "" } else { "\n" };
        // A closed pipe (`ls --watch | head`) is no error.
        if write!(out, "{text}{end}").and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        drop(out);
        sleep((begin + pace).saturating_duration_since(Instant::now()));
        begin = Instant::now();
        answer = shown(&target, args.json);
    }
    Ok(())
}

/// The pace, and the service. `--watch web` is a service: what is no number is not a time.
fn meant(args: &Ls) -> Result<(Duration, Option<String>), Exit> {
    let default = Duration::from_secs(2);
    let name = args.target.name.clone();
    let Some(word) = args.watch.as_ref().filter(|word| !word.is_empty()) else { return Ok((default, name)) };
    let seconds = word.parse::<f64>().ok().map(Duration::try_from_secs_f64);
    let time = match seconds {
        Some(time) => time.ok(),
        None => humantime::parse_duration(word).ok(),
    };
    match time {
        Some(time) if (LEAST..=MOST).contains(&time) => Ok((time, name)),
        None if name.is_none() && word.parse::<f64>().is_err() => Ok((default, Some(word.clone()))),
        _ => Err(Exit::new(USAGE, format!("--watch {word}: a time from 0.1 to 86400 seconds is needed: --watch 5"))),
    }
}

/// A screen: what is repeated and when, and as many lines as fit.
fn screen(text: &str, target: &Target, pace: Duration, first: bool) -> String {
    let size = terminal_size::terminal_size_of(std::io::stdout());
    let (width, height) = size.map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)));
    let name = target.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let clock = time::time(SystemTime::now());
    let clock = clock.split('.').next().unwrap_or_default();
    let title = cut(&format!("every {pace:?}: roundsman ls{name}  {clock}"), width);
    let lines: Vec<&str> = text.lines().collect();
    // The last line stays empty: a line feed there would scroll.
    let room = height.saturating_sub(3).max(1);
    let mut screen = if first { CLEAR } else { "\x1b[H" }.to_owned();
    let hidden = lines.len().saturating_sub(room);
    let kept = if hidden > 0 { room.saturating_sub(1) } else { room };
    let more = (hidden > 0).then(|| format!("… {} more lines", lines.len() - kept));
    let all = [title.as_str(), ""].into_iter().chain(lines.into_iter().take(kept)).chain(more.as_deref());
    for line in all {
        screen.push_str(line);
        screen.push_str(REST_OF_LINE);
        screen.push('\n');
    }
    screen.push_str(REST_OF_SCREEN);
    screen
}
