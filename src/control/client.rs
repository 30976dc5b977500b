//! The other end: `roundsman ls`, `logs`, `health`, `reload`, `restart`, `scale`.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;

use super::snapshot::Daemon;
use super::{Request, Said, place, render};
use crate::cli::{Logs, Ls, Send, Target};
use crate::exit::{Exit, NO_DAEMON, USAGE};
use crate::output::follow::Of;
use crate::output::line::Line;

/// A daemon that does not answer within this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// `roundsman ls`: prints all daemons (or the one at `--control`), or all that is known of one service.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, [`USAGE`] when it has no such service.
pub fn ls(args: &Ls) -> Result<(), Exit> {
    let mut daemons: Vec<Daemon> = match &args.target.control {
        Some(path) => vec![ls_of(path, PATIENCE).map_err(|error| none(&format!("{}: {error}", path.display())))?],
        None => live().into_iter().map(|(_, daemon)| daemon).collect(),
    };
    if daemons.is_empty() {
        return Err(none(&format!("looked in {}", place::directory().display())));
    }
    let mut out = anstream::stdout().lock();
    let mut print = |text: &str| writeln!(out, "{text}").is_ok();
    if let Some(name) = &args.target.name {
        let all = names(&daemons);
        daemons.iter_mut().for_each(|daemon| daemon.services.retain(|service| service.name == *name));
        daemons.retain(|daemon| !daemon.services.is_empty());
        if daemons.is_empty() {
            return Err(Exit::new(USAGE, format!("there is no service {name:?}; running are {all}")));
        }
    }
    for (at, daemon) in daemons.iter().enumerate() {
        let gap = if at > 0 { "\n" } else { "" };
        let text = match (args.json, &args.target.name) {
            (true, _) => serde_json::to_string(daemon).unwrap_or_default(),
            (false, None) => format!("{gap}{}", render::table(daemon)),
            (false, Some(_)) => {
                let details: Vec<_> = daemon.services.iter().map(|service| render::detail(daemon, service)).collect();
                format!("{gap}{}", details.join("\n"))
            }
        };
        // A closed pipe (`ls | head`) is no error.
        if !print(&text) {
            break;
        }
    }
    Ok(())
}

/// `roundsman health`: whether every service (or the one that is named) has a worker online.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, 1 with what is wrong.
pub fn health(target: &Target) -> Result<(), Exit> {
    let (socket, service) = choose(target)?;
    let daemon = ls_of(&socket, PATIENCE).map_err(|error| none(&format!("{}: {error}", socket.display())))?;
    if daemon.stopping {
        return Err(Exit::new(1, "the daemon is stopping"));
    }
    let meant = daemon.services.iter().filter(|one| service.as_ref().is_none_or(|name| *name == one.name));
    let mut sick = Vec::new();
    for service in meant {
        let finished = match service.finished() {
            0 => String::new(),
            count => format!(", {count} finished"),
        };
        println!("{}: {} of {} online{finished}", service.name, service.online(), service.slots.len());
        sick.extend(service.sick());
    }
    if sick.is_empty() { Ok(()) } else { Err(Exit::new(1, sick.join("; "))) }
}

fn none(why: &str) -> Exit {
    Exit::new(NO_DAEMON, format!("no roundsman daemon is running ({why})"))
}

/// The names of all services.
fn names(daemons: &[Daemon]) -> String {
    let names = daemons.iter().flat_map(|daemon| daemon.services.iter().map(|service| service.name.as_str()));
    names.collect::<Vec<_>>().join(", ")
}

/// All daemons of this user that answer.
fn live() -> Vec<(PathBuf, Daemon)> {
    place::all().into_iter().filter_map(|socket| ls_of(&socket, PATIENCE).ok().map(|daemon| (socket, daemon))).collect()
}

/// The state of the daemon at a control socket.
pub(super) fn ls_of(socket: &Path, patience: Duration) -> std::io::Result<Daemon> {
    let mut line = String::new();
    ask(socket, &Request::Ls {}, Some(patience))?.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn ask(socket: &Path, request: &Request, patience: Option<Duration>) -> std::io::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(BufReader::new(stream))
}

/// Asks a daemon for something, prints what it says of it, and waits for its end.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, [`USAGE`] when it is not clear which, 1 with the reason when it fails.
pub fn order(target: &Target, request: impl FnOnce(Option<String>) -> Request) -> Result<(), Exit> {
    let (socket, service) = choose(target)?;
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let answers = ask(&socket, &request(service), None).map_err(|error| gone(&error))?;
    let bar = progress();
    let say = |text: &str| match &bar {
        Some(bar) => bar.println(text),
        None => println!("{text}"),
    };
    for line in answers.lines() {
        let line = line.map_err(|error| gone(&error))?;
        match serde_json::from_str(&line).map_err(|error| gone(&error))? {
            Said::Step(text) => {
                say(&text);
                if let Some(bar) = &bar {
                    bar.set_message(text);
                }
            }
            Said::Done(text) => {
                say(&text);
                bar.iter().for_each(ProgressBar::finish_and_clear);
                return Ok(());
            }
            Said::Error(text) => {
                bar.iter().for_each(ProgressBar::finish_and_clear);
                return Err(Exit::new(1, text));
            }
        }
    }
    Err(gone(&"the daemon ended"))
}

/// `NAME/SLOT`, taken apart.
fn place_of(of: Option<&String>) -> Result<(Option<String>, Option<u32>), Exit> {
    match of.and_then(|of| of.split_once('/')) {
        Some((name, slot)) => {
            let wrong = || Exit::new(USAGE, format!("'{slot}' is not a slot: NAME/0"));
            Ok((Some(name.to_owned()), Some(slot.parse().map_err(|_| wrong())?)))
        }
        None => Ok((of.cloned(), None)),
    }
}

/// `roundsman send`.
///
/// # Errors
/// As [`order`]; [`USAGE`] for what is no JSON.
pub fn send(args: &Send) -> Result<(), Exit> {
    let (of, text) = match args.words.as_slice() {
        [of, text] => (Some(of), text),
        [text] => (None, text),
        _ => return Err(Exit::new(USAGE, "a message is needed")),
    };
    let message = serde_json::from_str(text).map_err(|error| {
        Exit::new(USAGE, format!("'{text}' is not JSON ({error}); a text needs its own quotes: '\"{text}\"'"))
    })?;
    let (name, slot) = place_of(of)?;
    let target = Target { name, control: args.control.clone() };
    order(&target, |service| Request::Send { service, slot, message })
}

/// `roundsman logs` and `roundsman messages`: prints what servers wrote or sent, and goes on with it if asked.
///
/// # Errors
/// As [`order`].
pub fn logs(args: &Logs, of: Of) -> Result<(), Exit> {
    let (name, slot) = place_of(args.of.as_ref())?;
    let (socket, service) = choose(&Target { name, control: args.control.clone() })?;
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let (lines, follow) = (args.lines, args.follow);
    let request = match of {
        Of::Lines => Request::Logs { service, slot, lines, follow },
        Of::Messages => Request::Messages { service, slot, lines, follow },
    };
    let lines = ask(&socket, &request, None).map_err(|error| gone(&error))?;
    let mut out = std::io::stdout().lock();
    for line in lines.lines() {
        let line = line.map_err(|error| gone(&error))?;
        let text = match serde_json::from_str(&line).map_err(|error| gone(&error))? {
            Shown::Line(_) | Shown::Dropped { .. } if args.json => line.into_bytes(),
            Shown::Line(line) => [line.label().as_bytes(), b" | ", line.text()].concat(),
            Shown::Dropped { dropped } => format!("… {dropped} lines dropped: too slow a reader").into_bytes(),
            Shown::Said(Said::Error(why)) => return Err(Exit::new(1, why)),
            Shown::Said(Said::Step(text) | Said::Done(text)) => text.into_bytes(),
        };
        // A closed pipe (`logs -f | head`) is no error.
        if out.write_all(&text).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// A line of the answer to [`Request::Logs`].
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Shown {
    Line(Line),
    Dropped { dropped: u64 },
    Said(Said),
}

/// On a terminal: a line that shows that it goes on.
fn progress() -> Option<ProgressBar> {
    std::io::stdout().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message("…");
        bar
    })
}

/// The one daemon that is meant, and the service of it, if not all.
fn choose(target: &Target) -> Result<(PathBuf, Option<String>), Exit> {
    if let Some(path) = &target.control {
        return Ok((path.clone(), target.name.clone()));
    }
    let mut live = live();
    let nobody = || none(&format!("looked in {}", place::directory().display()));
    let Some(name) = &target.name else {
        return match (live.pop(), live.is_empty()) {
            (None, _) => Err(nobody()),
            (Some((socket, _)), true) => Ok((socket, None)),
            (Some(last), false) => {
                live.push(last);
                let daemons: Vec<Daemon> = live.into_iter().map(|(_, daemon)| daemon).collect();
                Err(Exit::new(USAGE, format!("several daemons are running; say which: {}", names(&daemons))))
            }
        };
    };
    let has = |daemon: &Daemon| daemon.services.iter().any(|service| service.name == *name);
    if let Some((socket, _)) = live.iter().find(|(_, daemon)| has(daemon)) {
        return Ok((socket.clone(), Some(name.clone())));
    }
    // A daemon of several services has a name, too.
    let socket = place::socket(name, None);
    if live.iter().any(|(path, _)| *path == socket) {
        return Ok((socket, None));
    }
    let runner = crate::launch::command::runner(name);
    if runner.is_some() || Path::new(name).exists() || name.contains('/') {
        let run = runner.map_or_else(|| name.clone(), |runner| format!("{runner} {name}"));
        let run = if name.ends_with(".toml") { format!("-c {name}") } else { format!("-- {run}") };
        let message =
            format!("'{name}' is not the name of a running service; to run it as the server: roundsman {run}");
        return Err(Exit::new(USAGE, message));
    }
    if live.is_empty() {
        return Err(nobody());
    }
    let daemons: Vec<Daemon> = live.into_iter().map(|(_, daemon)| daemon).collect();
    Err(Exit::new(USAGE, format!("there is no service {name:?}; running are {}", names(&daemons))))
}
