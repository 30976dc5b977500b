//! gRPC-go under direct delivery: HTTP/2 connections that stay, and clients that connect again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::start_with;
use crate::support::go::go_program;
use crate::support::{Daemon, Killed, eventually, free_port, roundsman, seconds, unsaid};

/// Calls to the server, by the same program.
struct Client {
    process: Killed,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(go_program("grpc"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Killed::spawn(&mut command);
        let Child { stdin, stdout, .. } = &mut process.0;
        Self { input: stdin.take(), output: BufReader::new(stdout.take().unwrap()), process }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// A call on the connection that is kept: its slot and the client's port.
    fn call(&mut self) -> (String, String) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        answer(&self.line())
    }

    /// The end of the input, and what the client says then.
    fn end(mut self) -> String {
        self.input = None;
        let line = self.line();
        assert!(self.process.0.wait().unwrap().success());
        line
    }
}

/// The slot and the port in an answer, which is the client's own.
fn answer(line: &str) -> (String, String) {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["slot", slot, "peer", peer, "own", own, "error", "<nil>"] = words[..] else { panic!("{line:?}") };
    assert_eq!(peer, own, "the client's address");
    (slot.to_owned(), own.to_owned())
}

fn reload(daemon: &Daemon) {
    let done = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
#[ignore = "needs Go: tests/run --all"]
fn grpc_calls_through_reloads_and_kills() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    // Its connections stay until the server is asked to stop: GOAWAY ends them.
    let options = ["--via", "direct", "-l", &address, "--drain-timeout", "500ms", "--min-uptime", "10ms"];
    let more = ["--backoff", "1ms..10ms", "--max-restarts", "1000"];
    let command = [go_program("grpc"), "server".to_owned(), address.clone()];
    let mut daemon = start_with(port, "2", &[&options[..], &more].concat(), &command);
    assert_eq!(daemon.ls()["services"][0]["via_seccomp"], true);

    let mut once = Client::start(&["once", &address, "20"]);
    let slots: Vec<_> = (0..20).map(|_| answer(&once.line()).0).collect();
    assert!(["0", "1"].iter().all(|slot| slots.iter().filter(|other| other == slot).count() >= 5), "{slots:?}");

    // The server pings an idle connection every second, and would close it if no answer came within another.
    let mut keep = Client::start(&["keep", &address]);
    let first = keep.call();
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(keep.call(), first, "the connection is the same");
    assert_eq!(daemon.total("open"), 1);

    let load = Client::start(&["load", &address, "20"]);
    for _ in 0..5 {
        reload(&daemon);
        assert_ne!(keep.call().1, first.1, "the server's end was the connection's");
    }
    let (served, unavailable, lost) = fates(&load.end());
    assert!(served > 100 && (unavailable, lost) == (0, 0), "{served} {unavailable} {lost}\n{}", daemon.log());

    let load = Client::start(&["load", &address, "20"]);
    for n in 0..20 {
        daemon.wait_online(2);
        kill(Pid::from_raw(daemon.workers()[n % 2]), Signal::SIGKILL).unwrap();
        eventually("the end is noticed", seconds(10), || (daemon.total("restarts") > n as u64).then_some(()));
    }
    daemon.wait_online(2);
    let (served, unavailable, lost) = fates(&load.end());
    // What a killed server had received: a call of each client at most.
    assert!(served > 100 && unavailable <= 20 * 20 && lost == 0, "{served} {unavailable} {lost}\n{}", daemon.log());
    keep.call();
    drop(keep);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["did not end"]);
}

/// The calls that were served, those whose server was lost, and those that came late or failed otherwise.
fn fates(line: &str) -> (usize, usize, usize) {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["served", served, "unavailable", unavailable, "late", late, "other", other] = words[..] else {
        panic!("{line:?}")
    };
    let [served, unavailable, late, other] = [served, unavailable, late, other].map(|n| n.parse::<usize>().unwrap());
    (served, unavailable, late + other)
}
