//! Socket.IO itself: polling over several processes, with `setupWorker` of `@socket.io/sticky`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{intake, request};
use crate::proxy::{body, connect};
use crate::support::direct::start_with;
use crate::support::{Daemon, eventually, free_port, roundsman, seconds, servers, source};

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
        self.ask("");
        self.answer()
    }

    /// As a round, after one has blocked this slot's worker.
    fn ask(&mut self, blocked: &str) {
        self.0.stdin.as_mut().unwrap().write_all(format!("{blocked}\n").as_bytes()).unwrap();
    }

    fn answer(&mut self) -> Value {
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

/// Four servers, with these options more.
fn start(port: u16, more: &[&str]) -> Daemon {
    // The servers find their packages in NODE_PATH, which is the daemon's.
    let modules = format!("NODE_PATH={}", servers().join("node_modules").display());
    let port_of_app = format!("PORT_OF_APP={port}");
    let options = ["--policy", "hash", "--hash-on", "socket.io", "--env", &modules, "--env", &port_of_app];
    let times = ["--drain-timeout", "1s", "--min-uptime", "100ms", "--max-surge", "4"];
    let command = ["node", &source("socket-io.js")].map(str::to_owned);
    start_with(port, "4", &[&options[..], &times, more].concat(), &command)
}

fn verb(daemon: &Daemon, words: &[&str]) {
    let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn two_hundred_sessions_by_polling_over_four_processes() {
    let port = free_port();
    let daemon = start(port, &[]);
    let mut clients = Clients::start(port, 200);
    let fine = |all: &Value| all["sessions"] == 200 && all["errors"] == 0 && all["mixed"] == 0;
    for _ in 0..2 {
        let all = clients.round();
        assert!(fine(&all) && all["broken"] == 0, "{all}");
        let slots = all["slots"].as_object().unwrap();
        // A process that is held up for a moment gets fewer.
        assert!(slots.len() == 4 && slots.values().all(|count| count.as_u64().unwrap() >= 5), "{all}");
    }
    let no_key = intake(&daemon)["no_key"].clone();
    assert_eq!((&no_key["unknown-session"], &no_key["absent"]), (&0.into(), &200.into()), "{no_key}");
    verb(&daemon, &["reload"]);
    eventually("all have connected again", seconds(30), || {
        let all = clients.round();
        assert_eq!(all["sessions"], 200);
        (all["broken"] == 200 && all["mixed"] == 0).then_some(())
    });
}

/// What happens to a worker happens to its sessions, and to no others.
#[test]
fn sessions_share_the_life_of_their_worker_and_of_no_other() {
    let port = free_port();
    let daemon = start(port, &["--name", "app"]);
    let mut clients = Clients::start(port, 60);
    let first = clients.round();
    assert_eq!(
        (&first["broken"], &first["errors"], &first["slots"].as_object().unwrap().len()),
        (&0.into(), &0.into(), &4)
    );

    // Longer than --hash-wait, and than --stall-timeout by far.
    let begin = Instant::now();
    clients.ask("0 3000");
    eventually("it takes nothing", seconds(10), || {
        (daemon.ls()["services"][0]["held"].as_u64() > Some(0)).then_some(())
    });
    for _ in 0..8 {
        // They have no session yet, and do not wait behind those.
        let mut stream = connect(port);
        stream.write_all(request("/socket.io/?EIO=4&transport=polling", "").as_bytes()).unwrap();
        assert!(body(&mut stream).unwrap().contains("sid"));
    }
    let others = begin.elapsed();
    let stalled = clients.answer();
    assert!(others < seconds(3) && begin.elapsed() >= seconds(3), "{others:?} {:?}", begin.elapsed());
    assert_eq!((&stalled["lost"], &stalled["errors"], &stalled["slots"]), (&json!({}), &0.into(), &first["slots"]));
    assert_eq!(intake(&daemon)["no_key"]["unknown-session"], 0);

    let mut lost_of = |slots: &[&str], then: &dyn Fn()| {
        let before = clients.round();
        assert_eq!((&before["lost"], &before["mixed"]), (&json!({}), &0.into()), "{before}");
        then();
        let after = clients.round();
        let wanted = slots.iter().filter_map(|slot| Some(((*slot).to_owned(), before["slots"].get(slot)?.clone())));
        assert_eq!(after["lost"], Value::Object(wanted.collect()), "{before} {after}");
        after["slots"].clone()
    };
    let pid = daemon.workers()[1];
    lost_of(&["1"], &|| {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("it is known", seconds(20), || (daemon.slot(1, "pid") != pid).then_some(()));
    });
    daemon.wait_online(4);
    assert!(lost_of(&["2"], &|| verb(&daemon, &["weight", "app/2", "0"])).get("2").is_none());
    verb(&daemon, &["weight", "app/2", "1"]);
    assert!(lost_of(&["3"], &|| verb(&daemon, &["drain", "app/3"])).get("3").is_none());
    lost_of(&[], &|| verb(&daemon, &["undrain", "app/3"]));
    lost_of(&[], &|| verb(&daemon, &["scale", "app", "5"]));
    lost_of(&["3", "4"], &|| verb(&daemon, &["scale", "app", "3"]));
}
