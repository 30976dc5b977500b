//! The other end: `roundsman ls`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::snapshot::Daemon;
use super::{Request, place, render};
use crate::cli::Ls;
use crate::exit::{Exit, NO_DAEMON};

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
        match ask(socket) {
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

fn ask(socket: &Path) -> std::io::Result<Daemon> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = serde_json::to_vec(&Request::Ls {})?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
