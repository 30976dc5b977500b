//! `roundsman logs` and `roundsman messages`.

use std::io::{BufRead, BufReader, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use super::client::{TIMEOUT, place_of};
use super::which::{self, unreachable};
use super::{Lines, Target};
use crate::codes::NO_DAEMON;
use crate::control::ask::ask;
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::output::follow::LogKind;
use crate::output::line::{Line, Stream};
use crate::output::time;
use crate::sys::reason;

/// Prints what servers wrote or sent, and goes on with it if asked.
///
/// # Errors
/// As [`super::client::order`].
pub fn show(args: &Lines, of: LogKind, events: bool) -> Result<(), Exit> {
    let (name, slot) = place_of(args.of.as_ref())?;
    let (socket, service) = which::one(&Target { name, control: args.control.clone() })?;
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let (lines, follow) = (args.lines as usize, args.follow);
    let request = match of {
        LogKind::Lines | LogKind::Events => Request::Logs { service, slot, lines, follow, events },
        LogKind::Messages => Request::Messages { service, slot, lines, follow },
    };
    let lines = ask(&socket, &request, TIMEOUT).map(BufReader::new).map_err(|error| unreachable(&socket, &error))?;
    let terminal = std::io::stdout().is_terminal();
    let mut out = Output::new(terminal);
    for line in lines.lines() {
        let line = line.map_err(|error| gone(&reason(&error)))?;
        let printed = match serde_json::from_str(&line).map_err(|error| gone(&error))? {
            Shown::Line(_) | Shown::Dropped { .. } if args.json => out.print("", line.as_bytes()),
            Shown::Line(line) => out.print(&before(&line, args.timestamps, terminal), line.text()),
            Shown::Dropped { dropped } => {
                out.print("", format!("… {dropped} lines dropped: too slow a reader").as_bytes())
            }
            Shown::Reply(Reply::Error(why)) => return Err(Exit::new(1, why)),
            Shown::Reply(Reply::Step(text) | Reply::Done(text)) => out.print("", text.as_bytes()),
        };
        // A closed pipe (`logs -f | head`) is no error.
        if printed.is_err() {
            break;
        }
    }
    Ok(())
}

/// A line of the answer to [`Request::Logs`].
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Shown {
    Line(Line),
    Dropped { dropped: u64 },
    Reply(Reply),
}

/// Colours are ours; what servers wrote is passed on byte by byte.
struct Output {
    out: std::io::StdoutLock<'static>,
    colours: bool,
}

impl Output {
    fn new(terminal: bool) -> Self {
        let colours = terminal && anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
        Self { out: std::io::stdout().lock(), colours }
    }

    fn print(&mut self, before: &str, text: &[u8]) -> std::io::Result<()> {
        let before = if self.colours { before.to_owned() } else { anstream::adapter::strip_str(before).to_string() };
        self.out.write_all(&[before.as_bytes(), text, b"\n"].concat())?;
        self.out.flush()
    }
}

/// `web/0 | `, and the time. On a terminal standard error is `!` and red; the daemon's own events are `*` anywhere.
fn before(line: &Line, timestamps: bool, terminal: bool) -> String {
    let (mark, style) = match line.stream {
        Stream::Err if terminal => ('!', AnsiColor::Red.on_default()),
        Stream::Event => ('*', AnsiColor::Cyan.on_default()),
        _ => ('|', Style::new()),
    };
    let time = match humantime::parse_rfc3339(&line.time) {
        Ok(at) if timestamps && terminal => format!("{} ", time::date_and_time(at)),
        _ if timestamps => format!("{} ", line.time),
        _ => String::new(),
    };
    format!("{style}{} {mark}{style:#} {time}", line.label())
}
