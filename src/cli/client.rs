//! Verbs that ask a running daemon: `ls`, `health`, `send`, `reload`, `restart`, `stop`, `start`, `scale`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::{self, Part};
use super::which::{self, nobody, unreachable};
use super::{Ls, Places, Send, Target, Targets, render};
use crate::codes::{NO_DAEMON, USAGE};
use crate::control::ask::{ask, ls_of};
use crate::control::status::Daemon;
use crate::control::{Reply, Request, socket_path};
use crate::exit::Exit;
use crate::sys::reason;

/// Time for a daemon to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// `roundsman ls`: prints all daemons (or the one at `--control`), or all that is known of one service.
///
/// # Errors
/// As [`shown`].
pub fn ls(args: &Ls) -> Result<(), Exit> {
    let mut out = anstream::stdout().lock();
    for text in shown(&args.target, args.json)? {
        // A closed pipe (`ls | head`) is no error.
        if writeln!(out, "{text}").is_err() {
            break;
        }
    }
    Ok(())
}

/// What `ls` prints.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, [`USAGE`] when it has no such service.
pub(super) fn shown(target: &Target, json: bool) -> Result<Vec<String>, Exit> {
    let mut daemons: Vec<Daemon> = match &target.control {
        Some(path) => vec![ls_of(path, TIMEOUT).map_err(|error| unreachable(path, &error))?],
        None => live()?.into_iter().map(|(_, daemon)| daemon).collect(),
    };
    if daemons.is_empty() {
        return Err(nobody());
    }
    if let Some(name) = &target.name {
        let all = names(&daemons);
        daemons.iter_mut().for_each(|daemon| daemon.services.retain(|service| service.name == *name));
        daemons.retain(|daemon| !daemon.services.is_empty());
        if daemons.is_empty() {
            return Err(Exit::new(USAGE, format!("there is no service {name:?}; running are {all}")));
        }
    }
    let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    Ok(match &target.name {
        _ if json => daemons.iter().map(|daemon| serde_json::to_string(daemon).unwrap_or_default()).collect(),
        None => vec![render::overview(&daemons, width)],
        Some(_) => {
            let services = daemons.iter().flat_map(|daemon| daemon.services.iter().map(move |one| (daemon, one)));
            services.map(|(daemon, service)| render::detail(daemon, service, width)).collect()
        }
    })
}

/// `roundsman health`: whether every service (or those that are named) has a worker online, and an upstream up if it has any.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, 1 with what is wrong.
pub fn health(targets: &Targets) -> Result<(), Exit> {
    for_each(targets, |socket, service, _| health_of(&socket, service.as_ref()))
}

/// Acts on every target, also after a failure; `act` is told whether there are several.
pub(super) fn for_each(
    targets: &Targets,
    mut act: impl FnMut(PathBuf, Option<String>, bool) -> Result<(), Exit>,
) -> Result<(), Exit> {
    let meant = which::each(targets)?;
    let several = meant.len() > 1;
    all(meant, |(socket, service)| act(socket, service, several))
}

/// Acts on each, also after a failure; the last failure is returned, those before it are printed.
fn all<T>(meant: Vec<T>, mut act: impl FnMut(T) -> Result<(), Exit>) -> Result<(), Exit> {
    let mut failed: Option<Exit> = None;
    for one in meant {
        if let Err(exit) = act(one)
            && let Some(earlier) = failed.replace(exit)
        {
            crate::exit::tell(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn health_of(socket: &Path, service: Option<&String>) -> Result<(), Exit> {
    let daemon = ls_of(socket, TIMEOUT).map_err(|error| unreachable(socket, &error))?;
    if daemon.stopping {
        return Err(Exit::new(1, "the daemon is stopping"));
    }
    if let Some(name) = service.filter(|&name| daemon.services.iter().all(|one| *name != one.name)) {
        let all = names(std::slice::from_ref(&daemon));
        return Err(Exit::new(1, format!("there is no service {name:?}; here are {all}")));
    }
    let meant = daemon.services.iter().filter(|one| service.is_none_or(|name| *name == one.name));
    let mut sick = Vec::new();
    for service in meant {
        let finished = match service.finished() {
            0 => String::new(),
            count => format!(", {count} finished"),
        };
        let upstreams = match service.upstreams.len() {
            0 => String::new(),
            count => format!(", {} of {count} upstreams up", service.upstreams_up()),
        };
        println!("{}: {} of {} online{finished}{upstreams}", service.name, service.online(), service.slots.len());
        sick.extend(service.sick());
    }
    if sick.is_empty() { Ok(()) } else { Err(Exit::new(1, sick.join("; "))) }
}

/// The names of all services.
pub(super) fn names(daemons: &[Daemon]) -> String {
    let names = daemons.iter().flat_map(|daemon| daemon.services.iter().map(|service| service.name.as_str()));
    names.collect::<Vec<_>>().join(", ")
}

/// All daemons of this user that answer.
///
/// # Errors
/// [`NO_DAEMON`] when their directory is somebody else's.
pub(super) fn live() -> Result<Vec<(PathBuf, Daemon)>, Exit> {
    let sockets =
        socket_path::all().map_err(|why| Exit::new(NO_DAEMON, format!("no roundsman daemon is running ({why})")))?;
    let answers = sockets.into_iter().filter_map(|socket| ls_of(&socket, TIMEOUT).ok().map(|daemon| (socket, daemon)));
    Ok(answers.collect())
}

/// Sends a request, prints the progress, and waits for the end.
///
/// # Errors
/// [`NO_DAEMON`] when there is none, [`USAGE`] when it is not clear which, 1 with the reason when it fails.
pub fn order(target: &Target, request: impl FnOnce(Option<String>) -> Request) -> Result<(), Exit> {
    let (socket, service) = which::one(target)?;
    order_at(&socket, &request(service), None)
}

/// The same for several services, one after the other.
///
/// # Errors
/// As [`order`].
pub fn order_each(targets: &Targets, request: impl Fn(Option<String>) -> Request) -> Result<(), Exit> {
    for_each(targets, |socket, service, several| {
        let label = label(&socket, service.as_ref(), several);
        order_at(&socket, &request(service), label.as_deref())
    })
}

/// The same for services and parts of them.
///
/// # Errors
/// As [`order`], and those of `request`.
pub fn order_places(
    places: &Places,
    request: impl Fn(Option<String>, Part) -> Result<Request, Exit>,
) -> Result<(), Exit> {
    let meant = place::each(places)?;
    let several = meant.len() > 1;
    let meant = meant.into_iter().map(|(socket, service, part)| {
        let label = label(&socket, service.as_ref(), several);
        request(service, part).map(|request| (socket, request, label))
    });
    // What is no such request is refused before the first is sent.
    let meant = meant.collect::<Result<Vec<_>, _>>()?;
    all(meant, |(socket, request, label)| order_at(&socket, &request, label.as_deref()))
}

/// What lines of a daemon begin with, where there are several targets.
fn label(socket: &Path, service: Option<&String>, several: bool) -> Option<String> {
    let daemon = || socket.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    service.cloned().or_else(daemon).filter(|_| several)
}

/// Prefixes the target's name, where there are several and the text does not begin with it.
fn labelled(label: Option<&str>, text: String) -> String {
    match label {
        Some(label) if !text.starts_with(&format!("{label}: ")) => format!("{label}: {text}"),
        _ => text,
    }
}

fn order_at(socket: &Path, request: &Request, label: Option<&str>) -> Result<(), Exit> {
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let answers = ask(socket, request, TIMEOUT).map(BufReader::new).map_err(|error| unreachable(socket, &error))?;
    for line in answers.lines() {
        let line = line.map_err(|error| gone(&reason(&error)))?;
        match serde_json::from_str(&line).map_err(|error| gone(&error))? {
            Reply::Step(text) => println!("{}", labelled(label, text)),
            Reply::Done(text) => {
                println!("{}", labelled(label, text));
                return Ok(());
            }
            Reply::Error(text) => return Err(Exit::new(1, labelled(label, text))),
        }
    }
    Err(gone(&"the daemon ended"))
}

/// `NAME/SLOT`, taken apart.
pub(super) fn place_of(of: Option<&String>) -> Result<(Option<String>, Option<u32>), Exit> {
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
        let quotes = format!("a text needs its own quotes: '\"{text}\"'");
        let name = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        Exit::new(
            USAGE,
            match of {
                None if text.chars().all(name) => {
                    format!(
                        "a message is needed: roundsman send {text} '{{\"a\":1}}' (if {text} is the message: {quotes})"
                    )
                }
                _ => format!("'{text}' is not JSON ({error}); {quotes}"),
            },
        )
    })?;
    let (name, slot) = place_of(of)?;
    let target = Target { name, control: args.control.clone() };
    order(&target, |service| Request::Send { service, slot, message })
}
