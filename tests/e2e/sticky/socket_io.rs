//! Socket.IO itself: polling over several processes, with `setupWorker` of `@socket.io/sticky`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::intake;
use crate::support::direct::start_with;
use crate::support::{eventually, free_port, roundsman, seconds, servers, source};

/// Sessions in a process of their own.
struct Clients(Child, BufReader<std::process::ChildStdout>);

impl Clients {
    fn start(port: u16, count: usize) -> Self {
        let mut command = Command::new("node");
        command.arg(source("socket-io-clients.js")).args([port.to_string(), count.to_string()]);
        command.env("NODE_PATH", servers().join("node_modules")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self(child, out)
    }

    /// All ask for their slots.
    fn round(&mut self) -> Value {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_hundred_sessions_by_polling_over_four_processes() {
    // The servers find their packages in NODE_PATH, which is the daemon's.
    let port = free_port();
    let modules = format!("NODE_PATH={}", servers().join("node_modules").display());
    let port_of_app = format!("PORT_OF_APP={port}");
    let options = ["--policy", "hash", "--hash-on", "socket.io", "--env", &modules, "--env", &port_of_app];
    let times = ["--drain-timeout", "1s", "--min-uptime", "100ms", "--max-surge", "4"];
    let daemon =
        start_with(port, "4", &[&options[..], &times].concat(), &["node", &source("socket-io.js")].map(str::to_owned));
    let mut clients = Clients::start(port, 200);
    let fine = |all: &Value| all["sessions"] == 200 && all["errors"] == 0 && all["mixed"] == 0;
    for _ in 0..2 {
        let all = clients.round();
        assert!(fine(&all) && all["broken"] == 0, "{all}");
        let slots = all["slots"].as_object().unwrap();
        assert!(slots.len() == 4 && slots.values().all(|count| count.as_u64().unwrap() >= 20), "{all}");
    }
    let no_key = intake(&daemon)["no_key"].clone();
    assert_eq!((&no_key["unknown-session"], &no_key["absent"]), (&0.into(), &200.into()), "{no_key}");
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("all have connected again", seconds(30), || {
        let all = clients.round();
        assert_eq!(all["sessions"], 200);
        (all["broken"] == 200 && all["mixed"] == 0).then_some(())
    });
}
