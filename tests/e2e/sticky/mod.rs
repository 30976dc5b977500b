//! `--policy hash`: a key of the first request decides.

mod hostile;
mod keys;
mod left;
mod lives;
mod refused;
mod sessions;
mod socket_io;

use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use crate::proxy::{body, connect};
use crate::support::{Daemon, slot_of};

/// By relay, to our own server.
fn relay(more: &[&str]) -> Daemon {
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    // A machine that holds up a process for a second moves no key.
    let wait: &[&str] = if more.contains(&"--hash-wait") { &[] } else { &["--hash-wait", "15s"] };
    let daemon = Daemon::start(&[&["--policy", "hash"], wait, more, &server].concat());
    daemon.wait_online(more[1].parse().unwrap());
    daemon
}

fn request(target: &str, header: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n")
}

/// Sends a request with this key in a header.
fn send(port: u16, key: &str) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(request("/", &format!("X-Key: {key}\r\n")).as_bytes()).unwrap();
    stream
}

/// The slot of our own server that answers.
fn answer(stream: &mut TcpStream) -> usize {
    slot_of(&body(stream).unwrap())
}

fn intake(daemon: &Daemon) -> Value {
    daemon.ls()["services"][0]["intake"].clone()
}
