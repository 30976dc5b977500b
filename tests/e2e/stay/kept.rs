//! What a connection keeps when it moves: its line in the log, its client's addresses, its place among limits.

use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use super::clients::answer;
use super::{keeps, launch, reload};
use crate::support::{Daemon, eventually, install_dir, roundsman, seconds};

/// A client with what it has sent and received.
struct Client {
    stream: TcpStream,
    sent: u64,
    received: u64,
}

impl Client {
    fn new(port: u16, first: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        Self { stream, sent: first.len() as u64, received: 0 }
    }

    fn ask(&mut self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\n\r\n");
        self.stream.write_all(request.as_bytes()).unwrap();
        let answer = answer(&mut self.stream).unwrap();
        self.sent += request.len() as u64;
        self.received += answer.len() as u64;
        String::from_utf8(answer).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

fn moved(daemon: &Daemon, count: u64) {
    assert_eq!(daemon.total("moved"), count, "{}", daemon.log());
}

#[test]
fn a_connection_has_one_line_with_all_its_bytes() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        let path = dir.path().join("access.log");
        let options = ["--via", via, "--access-log", path.to_str().unwrap(), "--access-format", "json"];
        let daemon = launch(2, &options, &["python3", &keeps()]);
        let mut clients: Vec<_> = (0..10).map(|_| Client::new(daemon.port, "")).collect();
        for turn in 0..3 {
            for (n, client) in clients.iter_mut().enumerate() {
                (0..=n).for_each(|_| drop(client.ask("/idle")));
            }
            if turn < 2 {
                reload(&daemon);
            }
        }
        // Each slot's connections go to its own new worker.
        moved(&daemon, 20);
        let seen: Vec<(u64, u64, u64)> = clients
            .iter()
            .map(|client| (client.stream.local_addr().unwrap().port().into(), client.sent, client.received))
            .collect();
        drop(clients);
        let lines = eventually("ten lines", seconds(20), || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            (lines.len() >= 10).then_some(lines)
        });
        let port = |line: &Value| line["client"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let number = |line: &Value, key: &str| line[key].as_u64().unwrap();
        let mut logged: Vec<(u64, u64, u64)> =
            lines.iter().map(|line| (port(line), number(line, "bytes_in"), number(line, "bytes_out"))).collect();
        let mut seen = seen;
        seen.sort_unstable();
        logged.sort_unstable();
        assert_eq!(logged, seen, "{via}");
        assert!(lines.iter().all(|line| line["end"] == "client" && line["generation"] == 3), "{via}: {lines:?}");
    }
}

#[test]
fn the_addresses_of_a_proxy_header_move_with_it() {
    for more in [&["--via", "direct"][..], &["--via", "relay", "--send-proxy", "v1"]] {
        let options = [&["--proxy-from", "127.0.0.1"][..], more].concat();
        let daemon = launch(2, &options, &["python3", &keeps()]);
        let named = |n: usize| format!("PROXY TCP4 192.0.2.{n} 192.0.2.200 {} 80\r\n", 1000 + n);
        let shown = |n: usize| match more.len() {
            2 => format!("192.0.2.{n}:{}", 1000 + n),
            _ => named(n).trim_end().to_owned(),
        };
        let mut clients: Vec<_> = (0..10).map(|n| Client::new(daemon.port, &named(n))).collect();
        for _ in 0..2 {
            for (n, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.ask("/peer"), shown(n), "{more:?}\n{}", daemon.log());
            }
            reload(&daemon);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.ask("/peer"), shown(n), "{more:?}");
        }
        moved(&daemon, 20);
    }
}

#[test]
fn a_place_is_needed_for_it_and_a_restart_holds_it() {
    for via in ["direct", "relay"] {
        let options = ["--via", via, "--worker-conns", "5", "--queue-timeout", "60s"];
        let daemon = launch(2, &options, &["python3", &keeps()]);
        let mut clients: Vec<_> = (0..10).map(|_| Client::new(daemon.port, "")).collect();
        clients.iter_mut().for_each(|client| drop(client.ask("/idle")));
        reload(&daemon);
        clients.iter_mut().for_each(|client| drop(client.ask("/idle")));
        assert_eq!((0..2).map(|slot| daemon.slot(slot, "open")).collect::<Vec<_>>(), [5, 5], "{via}");
        moved(&daemon, 10);
        let restarted = roundsman().arg("restart").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        assert!(restarted.status.success(), "{restarted:?}");
        clients.iter_mut().for_each(|client| drop(client.ask("/idle")));
        moved(&daemon, 20);
    }
}
