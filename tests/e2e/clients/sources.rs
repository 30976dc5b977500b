//! What one source may have: in forked servers, in the line, after deaths.
//! Mostly waits: tests/run runs it beside others.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{REQUEST, ask, from, intake, is_reset, refused, start};
use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds, write_file};

#[test]
fn connections_beyond_the_rate_are_reset_and_those_of_others_are_not() {
    let daemon = start("127.0.0.1", &["--via", "relay", "-i", "1", "--source-rate", "5/s"]);
    daemon.wait_online(1);
    let begin = Instant::now();
    let all: Vec<_> = (0..20).map(|_| from("127.0.0.1", daemon.port)).collect();
    let ends: Vec<_> = all.into_iter().map(|client| ask(client, b"")).collect();
    // On a busy machine, more are due until the last has come.
    let due = 5 + 5 * (begin.elapsed().as_secs() as usize + 1);
    let served = ends.iter().filter(|end| end.is_ok()).count();
    assert!((5..=due).contains(&served), "{served} of {due}");
    for end in ends.into_iter().filter(Result::is_err) {
        is_reset("one too many", end);
    }
    assert_eq!(refused(&daemon, "source-rate") as usize, 20 - served);
    ask(from("127.0.0.2", daemon.port), b"").unwrap();
    eventually("later there is one more", seconds(10), || ask(from("127.0.0.1", daemon.port), b"").ok());
    daemon.wait_for("their source opens more than --source-rate");
}

/// Each connection is served by a child, and closed by the process that accepted it.
const FORKS: &str = "
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '2'); self.end_headers(); self.wfile.write(b'ok')
    def log_message(*_): pass
class Server(socketserver.ForkingMixIn, http.server.HTTPServer): pass
Server(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

#[test]
fn a_connection_counts_until_the_last_process_has_closed_it() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "forks.py", FORKS);
    let port_word = port.to_string();
    let words = ["--via", "direct", "-i", "1", "--source-conns", "2", "--", "python3", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &[&words[..], &[&port_word]].concat(), port);
    daemon.wait_online(1);
    let held = [0, 1].map(|_| ask(from("127.0.0.1", port), b"").unwrap());
    for _ in 0..5 {
        is_reset("a third", ask(from("127.0.0.1", port), b""));
    }
    ask(from("127.0.0.2", port), b"").unwrap();
    drop(held);
    eventually("the children have closed them", seconds(10), || ask(from("127.0.0.1", port), b"").ok());
}

#[test]
fn what_died_with_its_worker_counts_no_more() {
    for via in ["relay", "direct"] {
        let daemon = start("127.0.0.1", &["--via", via, "-i", "1", "--source-conns", "2"]);
        daemon.wait_online(1);
        let held = [0, 1].map(|_| ask(from("127.0.0.1", daemon.port), b"").unwrap());
        is_reset(via, ask(from("127.0.0.1", daemon.port), b""));
        kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
        let again = || ask(from("127.0.0.1", daemon.port), b"").ok();
        let new = [0, 1].map(|_| eventually(via, seconds(20), again));
        is_reset(via, ask(from("127.0.0.1", daemon.port), b""));
        drop((held, new));
    }
}

#[test]
fn those_in_the_line_count_and_a_reload_forgets_nobody() {
    let words = ["--via", "direct", "-i", "1", "--source-conns", "2", "--worker-conns", "1", "--drain-timeout", "30s"];
    let daemon = start("127.0.0.1", &words);
    daemon.wait_online(1);
    let open = ask(from("127.0.0.1", daemon.port), b"").unwrap();
    let mut waits = from("127.0.0.1", daemon.port);
    std::io::Write::write_all(&mut waits, REQUEST).unwrap();
    eventually("one waits", seconds(10), || (daemon.ls()["services"][0]["held"] == 1).then_some(()));
    is_reset("a third", ask(from("127.0.0.1", daemon.port), b""));
    daemon.signal(Signal::SIGHUP);
    let waits = super::answered(waits).unwrap();
    is_reset("a third, beside the new worker", ask(from("127.0.0.1", daemon.port), b""));
    drop((open, waits));
    daemon.wait_for("reloaded");
    eventually("there is a place", seconds(10), || ask(from("127.0.0.1", daemon.port), b"").ok());
    assert_eq!(intake(&daemon)["waiting"], 0);
}

#[test]
fn those_that_were_reset_before_they_were_accepted_free_no_place() {
    let daemon = start("127.0.0.1", &["--via", "direct", "-i", "1", "--source-conns", "2"]);
    daemon.wait_online(1);
    let held = [0, 1].map(|_| ask(from("127.0.0.1", daemon.port), b"").unwrap());
    for round in 1..=3 {
        daemon.signal(Signal::SIGSTOP);
        for _ in 0..3 {
            let client = from("127.0.0.1", daemon.port);
            socket2::SockRef::from(&client).set_linger(Some(seconds(0))).unwrap();
        }
        daemon.signal(Signal::SIGCONT);
        is_reset("a third", ask(from("127.0.0.1", daemon.port), b""));
        let left = refused(&daemon, "client-left") + refused(&daemon, "source-conns");
        assert_eq!(left, 4 * round);
    }
    assert!(refused(&daemon, "client-left") > 0);
    assert!(!daemon.log().contains("--source-conns does not hold"), "{}", daemon.log());
    drop(held);
    eventually("there is a place", seconds(10), || ask(from("127.0.0.1", daemon.port), b"").ok());
}

/// As a balancer does: a client's connection comes from a port that another client's came from before.
#[test]
fn a_port_of_the_balancers_that_another_client_has_now_counts_for_that_one() {
    let daemon = start("127.0.0.1", &["--via", "relay", "-i", "1", "--proxy-from", "127.0.0.9", "--source-conns", "2"]);
    daemon.wait_online(1);
    let connect = |client: &str, port: u16| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 9], port)).into()).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], daemon.port)).into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        ask(stream, format!("PROXY TCP4 {client} 203.0.113.1 1234 80\r\n").as_bytes())
    };
    let first = [0, 0].map(|_| connect("192.0.2.1", 0).unwrap());
    is_reset("a third", connect("192.0.2.1", 0));
    let ports = first.map(|stream| {
        socket2::SockRef::from(&stream).set_linger(Some(seconds(0))).unwrap();
        stream.local_addr().unwrap().port()
    });
    let _others =
        [("192.0.2.2", ports[0]), ("192.0.2.3", ports[1])].map(|(client, port)| connect(client, port).unwrap());
    let _again = [0, 1].map(|_| eventually("it has none", seconds(10), || connect("192.0.2.1", 0).ok()));
    is_reset("a third again", connect("192.0.2.1", 0));
}

/// UNKNOWN, LOCAL, no address, a Unix socket's: as behind HAProxy's `accept-proxy`, these are the balancer's own.
#[test]
fn a_header_that_names_nobody_is_judged_by_the_balancers_address() {
    let binary = |command: u8, family: u8, rest: &[u8]| {
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, 0, rest.len() as u8][..], rest].concat()
    };
    let nobody = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.8 203.0.113.1 1 2\r\n".to_vec(),
        binary(0x20, 0, b""),
        binary(0x20, 0x11, &[192, 0, 2, 8, 203, 0, 113, 1, 0, 1, 0, 2]),
        binary(0x21, 0, b""),
        binary(0x21, 0x31, &[b'x'; 216]),
    ];
    let options =
        ["--via", "relay", "-i", "1", "--proxy-from", "127.0.0.9", "--source-conns", "6", "--source-rate", "100/s"];
    for (allow, served) in [("192.0.2.0/24", false), ("127.0.0.9,192.0.2.0/24", true)] {
        let daemon = start("127.0.0.1", &[&options[..], &["--allow", allow, "--first-byte-timeout", "20s"]].concat());
        daemon.wait_online(1);
        let limits = daemon.ls()["services"][0]["limits"].clone();
        let of = ["source_conns", "source_rate", "first_byte_timeout_ms"].map(|name| limits[name].as_u64());
        assert_eq!(of, [Some(6), Some(100), Some(20_000)]);
        let ends: Vec<_> = nobody.iter().map(|header| ask(from("127.0.0.9", daemon.port), header)).collect();
        assert_eq!(ends.iter().map(Result::is_ok).collect::<Vec<_>>(), [served; 6], "{allow}");
        assert_eq!(refused(&daemon, "denied"), if served { 0 } else { 6 }, "{allow}");
        // They are all of one source, and those that a header names are of others.
        let more = ask(from("127.0.0.9", daemon.port), &nobody[0]);
        is_reset("a seventh", more);
        assert_eq!(refused(&daemon, "source-conns"), u64::from(served), "{allow}");
        ask(from("127.0.0.9", daemon.port), b"PROXY TCP4 192.0.2.8 203.0.113.1 1 2\r\n").unwrap();
    }
}
