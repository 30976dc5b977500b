//! Mostly waits: `--accept-rate`.

use std::time::Instant;

use crate::support::direct::start_with;
use crate::support::{Daemon, free_port, get, source};

const CLIENTS: usize = 60;
const PER_SECOND: f64 = 50.0;

/// All clients come at once and are served, not faster than allowed.
fn crowd(daemon: &Daemon, port: u16) {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| get(port).unwrap());
        }
    });
    let took = begin.elapsed().as_secs_f64();
    // A burst of 50 ms comes first.
    let least = CLIENTS as f64 / PER_SECOND - 0.05 - 2.0 / PER_SECOND;
    assert!(took >= least, "{took} s, not {least}");
    assert_eq!(daemon.total("connections"), CLIENTS as u64);
    let state = daemon.ls();
    let service = &state["services"][0];
    assert!(service["accept_pauses"].as_u64().unwrap() >= 1, "{service}");
    assert_eq!(service["limits"]["accept_rate"], 50, "{service}");
    assert_eq!(service["shed"], 0, "{service}");
}

#[test]
fn more_connections_than_the_rate_wait_in_the_backlog_by_relay() {
    let server = [env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let arguments = ["-i", "2", "--accept-rate", "50/s", "--", server[0], server[1]];
    let daemon = Daemon::start(&arguments);
    daemon.wait_online(2);
    crowd(&daemon, daemon.port);
}

#[test]
fn more_connections_than_the_rate_wait_in_the_backlog_direct() {
    let port = free_port();
    let command = ["node", &source("app.js"), "http", &port.to_string(), "."].map(str::to_owned);
    let daemon = start_with(port, "2", &["--via", "direct", "--accept-rate", "50/s"], &command);
    crowd(&daemon, port);
}
