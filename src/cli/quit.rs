//! `roundsman quit`: ends daemons.

use std::io::{BufRead, BufReader};
use std::path::Path;

use super::client::{TIMEOUT, for_each};
use super::which::unreachable;
use super::{Targets, client};
use crate::codes::NO_DAEMON;
use crate::control::ask::{ask, ls_of};
use crate::control::{Reply, Request};
use crate::exit::Exit;
use crate::sys::reason;

/// Ends the daemons that are meant, gracefully, and returns when they are gone.
///
/// # Errors
/// As [`client::order`].
pub fn quit(targets: &Targets) -> Result<(), Exit> {
    for_each(targets, |socket, service, _| end(&socket, service))
}

fn end(socket: &Path, service: Option<String>) -> Result<(), Exit> {
    let daemon = ls_of(socket, TIMEOUT).map_err(|error| unreachable(socket, &error))?;
    let answers = ask(socket, &Request::Quit { service }, TIMEOUT).map_err(|error| unreachable(socket, &error))?;
    for line in BufReader::new(answers).lines() {
        // Its end is what is waited for.
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).map_err(|error| Exit::new(NO_DAEMON, reason(&error.into())))? {
            Reply::Step(text) | Reply::Done(text) => println!("{text}"),
            Reply::Error(why) => return Err(Exit::new(1, why)),
        }
    }
    println!("{}: the daemon has ended (pid {})", client::names(std::slice::from_ref(&daemon)), daemon.pid);
    Ok(())
}
