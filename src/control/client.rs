//! The other end: `roundsman ls`, `reload`, `restart`, `scale`.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;

use super::snapshot::Daemon;
use super::{Request, Said, place, render};
use crate::cli::{Ls, Target};
use crate::exit::{Exit, NO_DAEMON, USAGE};

/// A daemon that does not answer within this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// `roundsman ls`: prints all daemons (or the one at `--control`).
///
/// # Errors
/// [`NO_DAEMON`] when there is none.
pub fn ls(args: &Ls) -> Result<(), Exit> {
    let sockets: Vec<PathBuf> = match &args.control {
        Some(path) => vec![path.clone()],
        None => place::all(),
    };
    let mut failures = Vec::new();
    let mut daemons = Vec::new();
    for socket in &sockets {
        match ls_of(socket) {
            Ok(daemon) => daemons.push(daemon),
            Err(error) => failures.push(format!("{}: {error}", socket.display())),
        }
    }
    if daemons.is_empty() {
        let why = match (&args.control, failures.first()) {
            (Some(_), Some(failure)) => failure.clone(),
            _ => format!("looked in {}", place::directory().display()),
        };
        return Err(Exit::new(NO_DAEMON, format!("no roundsman daemon is running ({why})")));
    }
    let mut out = std::io::stdout().lock();
    for (at, daemon) in daemons.iter().enumerate() {
        let text = match (args.json, serde_json::to_string(daemon)) {
            (true, Ok(json)) => json,
            _ => format!("{}{}", if at > 0 { "\n" } else { "" }, render::table(daemon)),
        };
        // A closed pipe (`ls | head`) is no error.
        if writeln!(out, "{text}").is_err() {
            break;
        }
    }
    Ok(())
}

fn ls_of(socket: &Path) -> std::io::Result<Daemon> {
    let mut line = String::new();
    ask(socket, &Request::Ls {}, Some(PATIENCE))?.read_line(&mut line)?;
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
pub fn order(target: &Target, request: &Request) -> Result<(), Exit> {
    let socket = choose(target)?;
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let answers = ask(&socket, request, None).map_err(|error| gone(&error))?;
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

/// On a terminal: a line that shows that it goes on.
fn progress() -> Option<ProgressBar> {
    std::io::stdout().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message("…");
        bar
    })
}

/// The one daemon that is meant.
fn choose(target: &Target) -> Result<PathBuf, Exit> {
    if let Some(path) = &target.control {
        return Ok(path.clone());
    }
    if let Some(name) = &target.name {
        let socket = place::socket(name, None);
        let command = |name: &str| Path::new(name).exists() || name.ends_with(".js") || name.contains('/');
        if !socket.exists() && command(name) {
            let run = if name.ends_with(".js") { format!("node {name}") } else { name.clone() };
            return Err(Exit::new(
                USAGE,
                format!("'{name}' is not the name of a running service; to run it as the server: roundsman -- {run}"),
            ));
        }
        return Ok(socket);
    }
    let mut live: Vec<(PathBuf, Daemon)> =
        place::all().into_iter().filter_map(|socket| ls_of(&socket).ok().map(|daemon| (socket, daemon))).collect();
    match (live.pop(), live.is_empty()) {
        (None, _) => {
            let place = place::directory().display().to_string();
            Err(Exit::new(NO_DAEMON, format!("no roundsman daemon is running (looked in {place})")))
        }
        (Some((socket, _)), true) => Ok(socket),
        (Some(last), false) => {
            live.push(last);
            let names = live.iter().flat_map(|(_, daemon)| daemon.services.iter().map(|service| service.name.as_str()));
            let names: Vec<_> = names.collect();
            Err(Exit::new(USAGE, format!("several daemons are running; say which: {}", names.join(", "))))
        }
    }
}
