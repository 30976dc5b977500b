//! What the daemon says of itself.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Daemon, Killed, Upstream, eventually, free_port, get, roundsman, seconds};

#[test]
fn the_life_of_a_worker_is_told() {
    let mut daemon =
        Daemon::start(&["-i", "2", "--name", "shop", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    daemon.wait_online(2);
    kill(Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
    daemon.wait_for("killed by SIGKILL");
    daemon.wait_online(2);
    let log = daemon.stop().log;
    for words in [
        "starting service=shop",
        "listening service=shop",
        "worker online service=shop slot=1",
        "relay worker exited service=shop slot=1",
        "stopping",
        "stopped",
    ] {
        assert!(log.contains(words), "no {words:?} in {log}");
    }
    assert!(!log.contains('\x1b'), "no colours off a terminal");
}

#[test]
fn json_is_one_object_per_line() {
    let mut daemon = Daemon::start(&["-i", "1", "-u", "127.0.0.1:1", "--log-format", "json"]);
    daemon.wait_for("worker online");
    let log = daemon.stop().log;
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let online = lines.iter().find(|line| line["message"] == "worker online").unwrap();
    assert_eq!((online["slot"].as_u64(), online["level"].as_str()), (Some(0), Some("INFO")));
    assert!(online["timestamp"].is_string());
}

#[test]
fn the_level_is_obeyed() {
    let port = free_port();
    let arguments = ["-l", &format!("127.0.0.1:{port}"), "-i", "1", "-u", "127.0.0.1:1", "--log-level", "error"];
    let mut daemon = Daemon::launch(roundsman(), &arguments, port);
    daemon.wait_online(1);
    assert_eq!(daemon.stop().log, "");
}

#[test]
fn a_blocked_reader_blocks_no_connection_and_lines_are_counted() {
    let upstream = Upstream::echo();
    let port = free_port();
    let dir = crate::support::install_dir();
    let mut child = Killed::spawn(
        roundsman()
            .args(["-l", &format!("127.0.0.1:{port}"), "-i", "4", "-u", &upstream.arg(), "--log-level", "debug"])
            .args(["--backoff", "1ms..1ms", "--max-restarts", "1000000", "--min-uptime", "0s"])
            .env("ROUNDSMAN_CONTROL", dir.path().join("c").join("d.sock"))
            .stderr(Stdio::piped()),
    );
    // Nobody reads: the pipe takes 64 KiB, the channel a thousand lines; then lines are dropped.
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    // Once each was online, deaths in a row count against --max-restarts only.
    eventually("all are online", seconds(10), || {
        let output = roundsman().args(["ls", "--control"]).arg(dir.path().join("c").join("d.sock")).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).matches("online").count() == 4).then_some(())
    });
    let children = || {
        let text = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.0.id())).unwrap();
        text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    // Each death is worth at least three lines of a hundred bytes: more than the pipe and the channel take.
    let mut killed = std::collections::HashSet::new();
    eventually("a thousand deaths", seconds(60), || {
        for pid in children() {
            if killed.insert(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        (killed.len() >= 1000).then_some(())
    });
    eventually("all are back", seconds(10), || (children().len() == 4).then_some(()));
    for _ in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    let mut dropped = false;
    while !dropped {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the count of dropped lines is written");
        dropped = line.contains("log lines dropped");
    }
    kill(Pid::from_raw(child.0.id() as i32), Signal::SIGTERM).unwrap();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_is_gone_ends_the_log_and_not_the_daemon() {
    let port = free_port();
    let dir = crate::support::install_dir();
    let mut child = Killed::spawn(
        roundsman()
            .args(["-l", &format!("127.0.0.1:{port}"), "-i", "1", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"])
            .env("ROUNDSMAN_CONTROL", dir.path().join("c").join("d.sock"))
            .stderr(Stdio::piped()),
    );
    drop(child.0.stderr.take());
    for _ in 0..10 {
        eventually("it serves", seconds(10), || get(port).ok());
    }
    kill(Pid::from_raw(child.0.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}
