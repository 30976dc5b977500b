//! A client of a server of the list: one connection, one answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use super::list::{Client, Server};
use crate::support::seconds;

/// What an answer says about its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It names the client's own port.
    Client,
    /// It names another one.
    Other,
    /// The server does not say.
    Nothing,
}

/// Asks once.
///
/// # Errors
///
/// What came instead of the answer.
pub fn ask(server: &Server, port: u16) -> Result<Seen, String> {
    let (answer, own) = match server.client {
        Client::Plain => return plain(server, port),
        Client::Https => curl("--http1.1", port)?,
        Client::Http2 => curl("--http2", port)?,
    };
    judge(&server.expect, &answer, own).ok_or(answer)
}

/// Whether the answer is complete, and what it says.
fn judge(expect: &str, answer: &str, own: u16) -> Option<Seen> {
    let Some((before, after)) = expect.split_once("{peer}") else {
        return answer.contains(expect).then_some(Seen::Nothing);
    };
    if answer.contains(&format!("{before}{own}{after}")) {
        return Some(Seen::Client);
    }
    let mut numbers = answer.match_indices(before).map(|(at, _)| &answer[at + before.len()..]);
    let other = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        end > 0 && rest[end..].starts_with(after)
    };
    numbers.any(other).then_some(Seen::Other)
}

fn plain(server: &Server, port: u16) -> Result<Seen, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(seconds(15))).unwrap();
    let own = stream.local_addr().unwrap().port();
    let bytes: Vec<u8> = server.send.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let (mut all, mut buffer) = (Vec::new(), [0; 16384]);
    let sent = stream.write_all(&bytes);
    loop {
        let got = stream.read(&mut buffer);
        if let Ok(n @ 1..) = got {
            all.extend_from_slice(&buffer[..n]);
        }
        let answer = String::from_utf8_lossy(&all);
        match judge(&server.expect, &answer, own) {
            // Other connections may be named first; this one may yet come.
            Some(Seen::Other) if matches!(got, Ok(1..)) => {}
            Some(seen) => return Ok(seen),
            None if matches!(got, Ok(1..)) => {}
            None => return Err(format!("{own}: sent {sent:?}, then {got:?} after {answer:?}")),
        }
    }
}

fn curl(version: &str, port: u16) -> Result<(String, u16), String> {
    let address = format!("https://127.0.0.1:{port}/");
    let output = Command::new("curl").args(["-sSk", version, "-w", "\n%{local_port}", &address]).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, own) = text.rsplit_once('\n').unwrap();
    Ok((format!("{body}\n"), own.parse().unwrap()))
}
