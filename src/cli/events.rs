//! `roundsman events`.

use std::io::{BufRead, BufReader, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use super::client::{TIMEOUT, place_of};
use super::which::{self, unreachable};
use super::{Events, Target};
use crate::codes::NO_DAEMON;
use crate::control::ask::ask;
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::output::recent::{Entry, Value};
use crate::output::time;
use crate::sys::reason;

/// A line of the answer to [`Request::Events`].
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Shown<'a> {
    Event(Entry<'a>),
    Dropped { dropped: u64 },
    Reply(Reply),
}

/// Prints what has happened, and goes on with it if asked.
///
/// # Errors
/// As [`super::client::order`].
pub fn show(args: &Events) -> Result<(), Exit> {
    let (name, slot) = place_of(args.of.as_ref())?;
    let (socket, service) = which::one(&Target { name, control: args.control.clone() })?;
    let gone = |error: &dyn std::fmt::Display| Exit::new(NO_DAEMON, format!("{}: {error}", socket.display()));
    let request = Request::Events { service, slot, lines: args.lines as usize, follow: args.follow };
    let lines = ask(&socket, &request, TIMEOUT).map(BufReader::new).map_err(|error| unreachable(&socket, &error))?;
    let terminal = std::io::stdout().is_terminal();
    let mut out = anstream::stdout().lock();
    for line in lines.lines() {
        let line = line.map_err(|error| gone(&reason(&error)))?;
        let printed = match serde_json::from_str(&line).map_err(|error| gone(&error))? {
            Shown::Reply(Reply::Error(why)) => return Err(Exit::new(1, why)),
            Shown::Event(_) | Shown::Dropped { .. } if args.json => writeln!(out, "{line}"),
            Shown::Event(event) => writeln!(out, "{}", text(&event, terminal)),
            Shown::Dropped { dropped } => writeln!(out, "… {dropped} events dropped: too slow a reader"),
            Shown::Reply(Reply::Step(text) | Reply::Done(text)) => writeln!(out, "{text}"),
        };
        // A closed pipe (`events -f | head`) is no error.
        if printed.and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Time, place, what happened, and the fields.
fn text(event: &Entry<'_>, terminal: bool) -> String {
    let style = match &*event.level {
        "error" => AnsiColor::Red.on_default(),
        "warn" => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    };
    let time = match humantime::parse_rfc3339(&event.time) {
        Ok(at) if terminal => time::date_and_time(at),
        _ => event.time.to_string(),
    };
    format!("{time} {} {style}{}{style:#}{}", place(event), event.message, fields(event))
}

/// `web/1`
pub(super) fn place(event: &Entry<'_>) -> String {
    event.slot.map_or_else(|| event.service.to_string(), |slot| format!("{}/{slot}", event.service))
}

/// The process that it is about and the fields, each after a space.
pub(super) fn fields(event: &Entry<'_>) -> String {
    let pid = event.pid.map(|pid| format!(" pid={pid}")).unwrap_or_default();
    let fields = event.fields.iter().map(|(name, value)| format!(" {name}={}", word(value)));
    std::iter::once(pid).chain(fields).collect()
}

/// What is more than one word is quoted.
fn word(value: &Value) -> String {
    match value {
        Value::Text(text) if !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            text.to_string()
        }
        value => value.to_string(),
    }
}
