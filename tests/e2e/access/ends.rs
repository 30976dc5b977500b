//! How connections end: every delivery, policy and end.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Logged, SERVER, number};
use crate::support::{eventually, install_dir, reset, seconds, write_file};

/// Sends words and gets each back.
fn talk(stream: &mut TcpStream, words: &[&str]) {
    for word in words {
        stream.write_all(word.as_bytes()).unwrap();
        let mut back = vec![0; word.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, word.as_bytes());
    }
}

#[track_caller]
fn is_line(line: &Value, case: &str, client: u16, end: &str, bytes: Option<u64>) {
    let bytes = Value::from(bytes);
    assert_eq!(line["client"], format!("127.0.0.1:{client}"), "{case}: {line}");
    assert_eq!((&line["end"], &line["bytes_in"], &line["bytes_out"]), (&end.into(), &bytes, &bytes), "{case}: {line}");
}

/// One connection after the other; of each the line.
fn each_end(via: &str, policy: &str) {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let options = ["--via", via, "-p", policy, "-i", "1", "--", "python3", script.to_str().unwrap()];
    let logged = Logged::in_dir(dir, &options);
    let case = format!("{via} {policy}");
    let connect = || {
        let stream = logged.connect();
        let port = stream.local_addr().unwrap().port();
        (stream, port)
    };

    let (mut stream, port) = connect();
    talk(&mut stream, &["one", "two", "three"]);
    drop(stream);
    is_line(&logged.lines(1)[0], &case, port, "client", Some(11));

    let (mut stream, port) = connect();
    talk(&mut stream, &["stop"]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop(stream);
    is_line(&logged.lines(2)[1], &case, port, "server", Some(4));

    let (mut stream, port) = connect();
    talk(&mut stream, &["reset"]);
    reset(stream);
    is_line(&logged.lines(3)[2], &case, port, "reset", Some(5));

    let (mut stream, port) = connect();
    talk(&mut stream, &["killed"]);
    kill(Pid::from_raw(logged.daemon.workers()[0]), Signal::SIGKILL).unwrap();
    let lines = logged.lines(4);
    is_line(&lines[3], &case, port, "worker-exit", None);

    logged.daemon.wait_for_count("worker online", 2);
    let (mut stream, port) = connect();
    talk(&mut stream, &["stop"]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop(stream);
    let lines = logged.lines(5);
    is_line(&lines[4], &case, port, "server", Some(4));
    for line in &lines {
        assert_eq!(line["wait_us"].is_null(), policy == "none", "{case}: {line}");
        assert_eq!(line["listener"], format!("127.0.0.1:{}", logged.port), "{case}: {line}");
        assert_eq!(line.get("upstream").is_some(), via == "relay", "{case}: {line}");
        let killed = line["end"] == "worker-exit";
        assert_eq!((line["rtt_us"].is_null(), line["retransmits"].is_null()), (killed, killed), "{case}: {line}");
    }
    let generations: Vec<u64> = lines.iter().map(|line| number(line, "generation")).collect();
    assert_eq!(generations, [1, 1, 1, 1, 2], "{case}");
    assert_eq!(logged.lost(), 0, "{case}");
}

#[test]
fn each_end_of_each_delivery_under_each_policy_has_its_line() {
    std::thread::scope(|scope| {
        for via in ["direct", "relay"] {
            for policy in ["rr", "least-conn", "ip-hash", "none"] {
                scope.spawn(move || each_end(via, policy));
            }
        }
    });
}

/// A server whose children accept.
const PREFORK: &str = "
import os, socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
for n in range(2):
    if os.fork() == 0:
        while True:
            c, _ = s.accept(); c.sendall(str(os.getpid()).encode().rjust(10)); c.recv(100); c.close()
time.sleep(1000)
";

#[test]
fn connections_of_one_process_of_several_end_with_it() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", PREFORK);
    let logged = Logged::in_dir(dir, &["--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap()]);
    let mut answer = [0; 10];
    let mut stream = logged.connect();
    let port = stream.local_addr().unwrap().port();
    stream.read_exact(&mut answer).unwrap();
    let pid: i32 = std::str::from_utf8(&answer).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    is_line(&logged.lines(1)[0], "child", port, "worker-exit", None);
    // The other one serves on.
    let mut stream = logged.connect();
    stream.read_exact(&mut answer).unwrap();
    drop(stream);
    assert_eq!(logged.lines(2)[1]["end"], "client");
}

#[test]
fn nothing_and_an_open_connection_cost_nothing_and_this_one_ends_with_the_daemon() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let mut logged = Logged::in_dir(dir, &["--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap()]);
    let switches = |logged: &Logged| {
        let of = |task: std::io::Result<std::fs::DirEntry>| {
            let path = task.unwrap().path();
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            (comm == "access\n").then(|| count.trim().to_owned())
        };
        std::fs::read_dir(format!("/proc/{}/task", logged.daemon.pid())).unwrap().find_map(of).unwrap()
    };
    let sleeps = |logged: &Logged| {
        eventually("the thread sleeps", seconds(20), || {
            let before = switches(logged);
            std::thread::sleep(std::time::Duration::from_millis(500));
            (before == switches(logged)).then_some(())
        });
    };
    sleeps(&logged);
    let mut stream = logged.connect();
    talk(&mut stream, &["stays"]);
    // Once the connection was seen, it sleeps until something comes.
    sleeps(&logged);
    assert_eq!(logged.daemon.stop().code(), 0);
    let lines = logged.lines(1);
    assert!(["worker-exit", "server"].contains(&lines[0]["end"].as_str().unwrap()), "{}", lines[0]);
}
