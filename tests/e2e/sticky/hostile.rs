//! First bytes of all kinds: no byte is lost, nobody is reset, and what was no key is counted.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::{answer, intake, relay, request};
use crate::proxy::connect;
use crate::support::{Daemon, Upstream, eventually, millis, seconds};

/// Relay workers in front of a server that sends back what it gets.
fn echo() -> (Daemon, Upstream) {
    let server = Upstream::echo();
    let upstream = server.arg();
    let daemon = Daemon::start(&["-i", "2", "--policy", "hash", "--hash-on", "header:X-Key", "-u", &upstream]);
    daemon.wait_online(2);
    (daemon, server)
}

/// What comes back until the end.
fn rest(client: &mut TcpStream) -> Vec<u8> {
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn a_head_in_two_pieces_has_its_key_wherever_it_is_cut() {
    let daemon = relay(&["-i", "4", "--hash-on", "header:X-Key"]);
    let request = request("/?x=1", "X-Key: a\r\n").into_bytes();
    let mut clients: Vec<_> = (1..request.len())
        .map(|at| {
            let mut client = connect(daemon.port);
            client.write_all(&request[..at]).unwrap();
            client
        })
        .collect();
    eventually("all wait", seconds(4), || (intake(&daemon)["waiting"] == clients.len() as u64).then_some(()));
    assert_eq!(daemon.total("connections"), 0);
    for (at, client) in (1..).zip(&mut clients) {
        client.write_all(&request[at..]).unwrap();
    }
    let slots: Vec<_> = clients.iter_mut().map(answer).collect();
    assert_eq!(slots, vec![slots[0]; slots.len()]);
    assert_eq!(intake(&daemon)["keys"], slots.len() as u64);
}

#[test]
fn what_is_no_request_goes_on_as_it_came_and_is_counted() {
    let (daemon, _server) = echo();
    let sized = |bytes: usize| {
        let head = request("/", "X: \r\n").len();
        request("/", &format!("X: {}\r\n", "x".repeat(bytes - head))).into_bytes()
    };
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("absent", request("/", "").into_bytes()),
        ("absent", b"GET / HTTP/1.0\nA: b\n\n".to_vec()),
        ("absent", sized(16 * 1024)),
        ("too-large", sized(16 * 1024 + 1)),
        ("too-large", vec![b'A'; 100_000]),
        ("tls", [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &[7; 500]].concat()),
        ("http2", http2.to_vec()),
        ("not-http", b"\0".to_vec()),
        ("not-http", (0..=255).cycle().take(40_000).collect()),
        ("not-http", request("/", "A: \0\r\n").into_bytes()),
        ("not-http", b"*1\r\n$4\r\nPING\r\n".to_vec()),
        ("incomplete", b"GET / HTT".to_vec()),
        ("incomplete", b"PRI * HTTP/2".to_vec()),
        ("incomplete", vec![]),
    ];
    for (reason, bytes) in &cases {
        let mut client = connect(daemon.port);
        client.write_all(bytes).unwrap();
        assert!(rest(&mut client) == *bytes, "{reason}: {} bytes", bytes.len());
    }
    let no_key = intake(&daemon)["no_key"].clone();
    for (reason, _) in &cases {
        let count = cases.iter().filter(|(other, _)| other == reason).count();
        assert_eq!(no_key[reason], count, "{no_key}");
    }
    assert_eq!((intake(&daemon)["keys"].as_u64(), intake(&daemon)["waiting"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn a_client_that_sends_no_head_gets_a_worker_after_5_s() {
    let (daemon, _server) = echo();
    let begin = Instant::now();
    let mut clients = [connect(daemon.port), connect(daemon.port)];
    clients[1].write_all(b"GET / HTTP/1.1\r\n").unwrap();
    eventually("both wait", seconds(4), || (intake(&daemon)["waiting"] == 2).then_some(()));
    eventually("both have a worker", seconds(20), || (daemon.total("connections") == 2).then_some(()));
    assert!(begin.elapsed() >= millis(4900), "{:?}", begin.elapsed());
    assert_eq!(intake(&daemon)["no_key"]["incomplete"], 2);
    clients[0].write_all(b"late").unwrap();
    clients[1].write_all(b"X-Key: a\r\n\r\n").unwrap();
    assert_eq!(rest(&mut clients[0]), b"late");
    assert_eq!(rest(&mut clients[1]), b"GET / HTTP/1.1\r\nX-Key: a\r\n\r\n");
}

/// Each piece costs the accept thread a look at all of them.
#[test]
fn a_client_that_sends_a_long_head_byte_by_byte_gets_a_worker_early() {
    let (daemon, _server) = echo();
    let mut sent = [b"GET / HTTP/1.1\r\nX: ", &[b'x'; 15_000][..]].concat();
    let mut client = connect(daemon.port);
    let begin = Instant::now();
    client.write_all(&sent).unwrap();
    while daemon.total("connections") == 0 {
        // What comes while the master is held up is one look for it.
        sent.extend([b'y'; 4]);
        (0..4).for_each(|_| client.write_all(b"y").unwrap());
        assert!(begin.elapsed() < seconds(20) && sent.len() < 16_300, "{} bytes", sent.len());
    }
    assert_eq!(intake(&daemon)["no_key"]["incomplete"], 1);
    assert!(rest(&mut client) == sent);
}
