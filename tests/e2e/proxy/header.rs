//! Headers: in pieces, wrong, late, and from others.
//! Mostly waits: tests/run runs it beside others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{CLIENT, DESTINATION, ask, body, connect, v1, v2};
use crate::support::direct::start_with;
use crate::support::{Daemon, Upstream, eventually, free_port, seconds, source};

fn node(from: &str) -> (Daemon, u16) {
    let port = free_port();
    let command = ["node", &source("app.js"), "http", &port.to_string()].map(str::to_owned);
    (start_with(port, "2", &["--proxy-from", from], &command), port)
}

/// How a connection ended on which nothing came.
fn end(client: &mut TcpStream) -> Option<ErrorKind> {
    client.read_to_end(&mut Vec::new()).err().map(|error| error.kind())
}

fn intake(daemon: &Daemon) -> serde_json::Value {
    daemon.ls()["services"][0]["intake"].clone()
}

#[test]
fn byte_by_byte_and_with_data_behind() {
    let (daemon, port) = node("127.0.0.1");
    let attachments = [&[4, 1, 0][..], &[0; 256]].concat();
    let headers = [v1(CLIENT, DESTINATION), v2(CLIENT, DESTINATION, &[]), v2(CLIENT, DESTINATION, &attachments)];
    let mut clients: Vec<_> = headers.iter().map(|header| (connect(port), header)).collect();
    let longest = headers.iter().map(Vec::len).max().unwrap();
    for at in 0..longest {
        for (client, header) in &mut clients {
            if let Some(byte) = header.get(at) {
                client.write_all(&[*byte]).unwrap();
            }
        }
        if at == 10 {
            eventually("three wait", seconds(10), || (intake(&daemon)["waiting"] == 3).then_some(()));
            assert_eq!(daemon.total("connections"), 0);
        }
    }
    for (client, _) in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        assert!(body(client).unwrap().ends_with("peer 56324"));
    }
    for header in headers {
        assert!(ask(port, &header, "/").unwrap().ends_with("peer 56324"));
    }
    let intake = intake(&daemon);
    assert_eq!((&intake["waiting"], &intake["proxy_headers"]), (&0.into(), &6.into()), "{intake}");
}

#[test]
fn what_is_no_header_or_does_not_come_is_reset_and_counted() {
    let (daemon, port) = node("127.0.0.1");
    let begin = Instant::now();
    let (mut silent, mut slow) = (connect(port), connect(port));
    slow.write_all(b"PROXY TCP4 ").unwrap();
    for wrong in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 1 2 3 4\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
        let mut client = connect(port);
        client.write_all(wrong).unwrap();
        assert_eq!(end(&mut client), Some(ErrorKind::ConnectionReset));
    }
    // Half a header and then the end; nothing and then the end, as a check of the port does.
    for half in [&b"PROXY "[..], b""] {
        let mut client = connect(port);
        client.write_all(half).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(end(&mut client), Some(ErrorKind::ConnectionReset));
    }
    for client in [&mut silent, &mut slow] {
        assert_eq!(end(client), Some(ErrorKind::ConnectionReset));
    }
    assert!(begin.elapsed() >= Duration::from_secs(3), "{:?}", begin.elapsed());
    let refused = eventually("all are counted", seconds(10), || {
        let refused = intake(&daemon)["refused"].clone();
        (refused["proxy-timeout"] == 2).then_some(refused)
    });
    assert_eq!((&refused["proxy-invalid"], &refused["client-left"]), (&4.into(), &1.into()), "{refused}");
    daemon.wait_for("a source of --proxy-from did not begin with a valid PROXY header");
    daemon.wait_for("the PROXY header did not come within 3 s");
    assert_eq!(daemon.total("connections"), 0);
    assert!(ask(port, &v1(CLIENT, DESTINATION), "/").unwrap().ends_with("peer 56324"));
}

#[test]
fn more_than_may_wait_replace_those_that_have_waited_longest() {
    let upstream = Upstream::echo();
    let mut command = std::process::Command::new("prlimit");
    command.args(["--nofile=128:128", env!("CARGO_BIN_EXE_roundsman")]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let words = ["-l", &listen, "-i", "1", "--proxy-from", "127.0.0.1", "-u", &upstream.arg()];
    let daemon = Daemon::launch(command, &words, port);
    daemon.wait_online(1);
    // A quarter of the descriptors.
    let (most, begin) = (32, Instant::now());
    let mut clients: Vec<_> = (0..most).map(|_| connect(port)).collect();
    eventually("all wait", seconds(10), || (intake(&daemon)["waiting"] == most).then_some(()));
    let more: Vec<_> = (0..8).map(|_| connect(port)).collect();
    for client in clients.drain(..8) {
        assert_eq!(end(&mut { client }), Some(ErrorKind::ConnectionReset));
    }
    assert!(begin.elapsed() < Duration::from_millis(2900), "their time was over: {:?}", begin.elapsed());
    for mut client in clients.into_iter().chain(more) {
        client.write_all(&[&v1(CLIENT, DESTINATION)[..], b"ping"].concat()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ping");
    }
    let refused = intake(&daemon)["refused"].clone();
    assert_eq!((&refused["stage-full"], &refused["proxy-timeout"]), (&8.into(), &0.into()), "{refused}");
    daemon.wait_for("too many connections have not sent their first bytes yet");
}

#[test]
fn at_a_stop_a_header_still_has_its_time() {
    let (mut daemon, port) = node("127.0.0.1");
    let (mut slow, mut silent) = (connect(port), connect(port));
    slow.write_all(b"PROXY TCP4 192.0.2.7 ").unwrap();
    eventually("both wait", seconds(10), || (intake(&daemon)["waiting"] == 2).then_some(()));
    let shown = std::process::Command::new(env!("CARGO_BIN_EXE_roundsman"))
        .args(["ls", "app", "--control"])
        .arg(daemon.control())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("0 PROXY headers, 2 waiting for first bytes, none refused"), "{shown}");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait_for("stopping");
    slow.write_all(b"203.0.113.1 56324 443\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(body(&mut slow).unwrap().ends_with("peer 56324"));
    assert_eq!(end(&mut silent), Some(ErrorKind::ConnectionReset));
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
}

#[test]
fn the_first_bytes_of_others_are_data() {
    let (daemon, port) = node("10.0.0.0/8,2001:db8::/32");
    assert!(ask(port, b"", "/").unwrap().starts_with("slot "));
    // The server gets it as it is, and does not understand it.
    let mut client = connect(port);
    client.write_all(&[&v1(CLIENT, DESTINATION)[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"].concat()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(intake(&daemon)["proxy_headers"], 0);
}
