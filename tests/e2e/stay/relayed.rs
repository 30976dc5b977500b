//! The same for relayed connections: a relay worker that leaves gives them back.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use super::clients::{answer, meanwhile};
use super::reloads::NODE;
use super::{keeps, launch, reload};
use crate::support::{install_dir, millis, seconds, write_file};

fn node(reloads: usize) {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.js", NODE);
    let daemon = launch(2, &["--via", "relay"], &["node", script.to_str().unwrap()]);
    let noticed = meanwhile(daemon.port, || (0..reloads).for_each(|_| reload(&daemon)));
    let moved = daemon.total("moved");
    println!("{} answered, {} connections, {moved} moved", noticed.answered, noticed.connections);
    assert!(noticed.lost.is_empty() && noticed.hung == 0, "{noticed:?}\n{}", daemon.log());
    assert!(noticed.connections <= 51 && moved >= 50, "{noticed:?}, {moved} moved\n{}", daemon.log());
}

#[test]
fn clients_of_node_behind_relay_notice_nothing() {
    node(2);
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn nor_of_a_hundred_reloads() {
    node(100);
}

/// Bodies that are spliced, and requests behind them.
#[test]
fn a_connection_moves_after_bodies_that_nobody_looked_at() {
    const BYTES: usize = 4 << 20;
    let daemon = launch(1, &["--via", "relay", "--output", "raw"], &["python3", &keeps()]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    let old = daemon.slot(0, "server_pid").to_string();
    let evil = "POST /evil HTTP/1.1\r\nContent-Length: 0\r\n\r\n".repeat(BYTES / 44);
    for turn in 0..2 {
        let post = format!("POST /sent HTTP/1.1\r\nContent-Length: {}\r\n\r\n{evil}", evil.len());
        stream.write_all(post.as_bytes()).unwrap();
        let sent = String::from_utf8(answer(&mut stream).unwrap()).unwrap();
        stream.write_all(b"GET /large HTTP/1.1\r\n\r\n").unwrap();
        let large = answer(&mut stream).unwrap();
        let body = &large[large.len() - BYTES..];
        assert!(body.chunks(16).enumerate().all(|(at, chunk)| chunk == format!("{at:016}").as_bytes()));
        let pid = sent.split_once("\r\n\r\n").unwrap().1.split(' ').next().unwrap().to_owned();
        assert_eq!(pid == old, turn == 0, "{sent}");
        reload(&daemon);
        assert_eq!(daemon.total("moved"), turn + 1, "{}", daemon.log());
    }
}

/// A request by another one's connection: who answered.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let answer = String::from_utf8(answer(stream).unwrap()).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn a_drain_lasts_as_long_as_a_request_and_its_connection_moves_then() {
    for via in ["direct", "relay"] {
        let pid = if via == "relay" { "server_pid" } else { "pid" };
        let options = ["--via", via, "--drain-timeout", "100s"];
        let daemon = launch(1, &options, &["python3", &keeps()]);
        let connect = || {
            let stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
            stream.set_read_timeout(Some(seconds(20))).unwrap();
            stream
        };
        let mut idle: Vec<_> = (0..200).map(|_| connect()).collect();
        idle.iter_mut().for_each(|stream| drop(ask(stream, "/idle")));
        let old = daemon.slot(0, pid).to_string();
        let mut busy = connect();
        busy.write_all(b"GET /slow HTTP/1.1\r\n\r\n").unwrap();
        std::thread::sleep(millis(50));
        let began = Instant::now();
        reload(&daemon);
        assert!(began.elapsed() < seconds(30), "{via}: {:?}", began.elapsed());
        let slow = String::from_utf8(answer(&mut busy).unwrap()).unwrap();
        assert!(slow.ends_with(&format!("{old} /slow")), "{via}: {slow}");
        let new = daemon.slot(0, pid).to_string();
        assert_ne!(old, new);
        for stream in idle.iter_mut().chain([&mut busy]) {
            assert_eq!(ask(stream, "/after"), format!("{new} /after"), "{via}");
        }
        assert_eq!(daemon.total("moved"), 201, "{via}\n{}", daemon.log());
    }
}
