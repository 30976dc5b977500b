//! The client's address goes where the connection goes: to another worker, after a stall, a crash and a reload, by relay,
//! into the access log, and into the choice.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ask, body, connect, v1, v2};
use crate::support::direct::start_with;
use crate::support::{
    Daemon, eventually, free_port, freeze, get, install_dir, roundsman, seconds, slot_of, source, write_file,
};

fn node(more: &[&str]) -> (Daemon, u16) {
    let port = free_port();
    let command = ["node", &source("client.js"), &port.to_string()].map(str::to_owned);
    (start_with(port, "2", &[&["--proxy-from", "127.0.0.1"], more].concat(), &command), port)
}

/// Sends a request behind a header that names 192.0.2.`n`.
fn send(port: u16, n: u8) -> TcpStream {
    let mut client = connect(port);
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.write_all(&[&v1(&format!("192.0.2.{n}"), "203.0.113.1")[..], request].concat()).unwrap();
    client
}

fn answers(clients: Vec<TcpStream>) {
    for (n, mut client) in (0..).zip(clients) {
        let said = body(&mut client).unwrap();
        assert_eq!(said, format!("192.0.2.{n} 56324 203.0.113.1 443"));
    }
}

#[test]
fn a_stall_and_a_crash_lose_no_address() {
    let (daemon, port) = node(&[]);
    for end in [Signal::SIGCONT, Signal::SIGKILL] {
        let victim = daemon.workers()[0];
        freeze(victim);
        let clients: Vec<_> = (0..20).map(|n| send(port, n)).collect();
        eventually("a rescue", seconds(20), || (daemon.total("rescued") > 0).then_some(()));
        kill(Pid::from_raw(victim), end).unwrap();
        answers(clients);
    }
}

#[test]
fn those_that_wait_while_no_worker_is_alive_keep_theirs() {
    let (daemon, port) = node(&[]);
    daemon.workers().into_iter().for_each(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap());
    let clients: Vec<_> = (0..10).map(|n| send(port, n)).collect();
    answers(clients);
    let before = daemon.workers();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("reloaded");
    assert_ne!(daemon.workers(), before);
    answers((0..10).map(|n| send(port, n)).collect());
}

/// What accept, getpeername and getsockname say is one thing at any time: before the option is there for all workers, and after.
#[test]
fn a_reload_that_adds_the_option_adds_it_for_all_calls() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "ends.py", super::direct::PYTHON);
    let file = |more: &str| {
        let command = format!("command = [\"python3\", \"{}\", \"{port}\", \"0.0.0.0\"]", script.display());
        write_file(dir.path(), "a.toml", &format!("[service.a]\n{command}\ninstances = 2\nvia = \"direct\"\n{more}"))
    };
    let config = file("").display().to_string();
    let daemon = Daemon::launch(roundsman(), &["-c", &config], port);
    daemon.wait_online(2);
    let known = super::direct::ends("192.0.2.7", "203.0.113.1");
    let ask = || ask(port, &v1("192.0.2.7", "203.0.113.1"), "/").unwrap_or_else(|error| error.to_string());
    assert!(ask().contains("Bad"), "{}", ask());
    file("proxy-from = \"127.0.0.1\"\nmin-uptime = \"500ms\"\n");
    daemon.signal(Signal::SIGHUP);
    let mut before = 0;
    while !daemon.log().contains("reloaded") {
        let said = ask();
        if said != known {
            assert!(said.contains("Bad"), "{said}\n{}", daemon.log());
            before += 1;
        }
    }
    assert!(before > 0, "{}", daemon.log());
    (0..8).for_each(|_| assert_eq!(ask(), known));
    // Without it a header is data at once.
    file("");
    daemon.signal(Signal::SIGHUP);
    eventually("data again", seconds(20), || ask().contains("Bad").then_some(()));
}

#[test]
fn the_hash_is_that_of_the_client() {
    let server = [env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let daemon = Daemon::start(&["-i", "4", "-p", "ip-hash", "--proxy-from", "127.0.0.1", "--", server[0], server[1]]);
    daemon.wait_online(4);
    let slot = |n: u8| slot_of(&ask(daemon.port, &v2(&format!("192.0.2.{n}"), "203.0.113.1", &[]), "/").unwrap());
    let first: Vec<_> = (0..24).map(slot).collect();
    assert_eq!(first, (0..24).map(slot).collect::<Vec<_>>(), "a client keeps its worker");
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 1, "clients are spread: {first:?}");
    assert!(get(daemon.port).is_err(), "no header");
}

#[test]
fn the_access_log_names_the_client() {
    let dir = install_dir();
    let logs = ["direct.log", "relay.log"].map(|name| dir.path().join(name));
    let options = |at: usize| ["--access-log", logs[at].to_str().unwrap(), "--access-format", "json"];
    let (_direct, port) = node(&options(0));
    let server = [env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let words = [&options(1)[..], &["--proxy-from", "127.0.0.1", "-i", "1", "--", server[0], server[1]]].concat();
    let relay = Daemon::start(&words);
    relay.wait_online(1);
    ask(port, &v1("192.0.2.7", "203.0.113.1"), "/").unwrap();
    ask(relay.port, &v2("2001:db8::7", "2001:db8::1", &[]), "/").unwrap();
    for (log, client) in logs.iter().zip(["\"192.0.2.7:56324\"", "\"[2001:db8::7]:56324\""]) {
        eventually(client, seconds(20), || std::fs::read_to_string(log).ok().filter(|text| text.contains(client)));
    }
}
