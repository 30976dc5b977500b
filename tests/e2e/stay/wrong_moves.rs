//! Which connections go on with the successor of a server that closes all of them, and which may not.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use super::clients::answer;
use super::{keeps, launch, reload};
use crate::support::{eventually, millis, seconds};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next request is answered by the successor.
    Moves,
    /// The client sees its end, and no byte more.
    Ends,
}
use Then::{Ends, Moves};

struct Case {
    name: &'static str,
    /// Sent one after the other, each with what its answer ends with (nothing: none comes).
    steps: &'static [(&'static str, &'static str)],
    then: Then,
}

/// Those that end because of what the server did with its socket, or that a child may have: by relay it has another one.
const OF_SOCKET: &[&str] = &[
    "never used",
    "a child has written",
    "a copy",
    "passed on",
    "resets at its close",
    "a thread waits in recv",
    "a child goes on",
    "read by recvmmsg",
    "read by io_uring",
    "written by sendmmsg",
    "written by io_uring",
    "written by stdio",
    "written by splice",
    "written by MSG_ZEROCOPY",
];

const fn case(name: &'static str, steps: &'static [(&'static str, &'static str)], then: Then) -> Case {
    Case { name, steps, then }
}

const HALF: &str = "POST /half HTTP/1.1\r\nContent-Length: 50\r\n\r\nGET /evil HTTP/1.1\r\n\r\n";
const EVIL: &str = "POST /body HTTP/1.1\r\nContent-Length: 22\r\n\r\nGET /evil HTTP/1.1\r\n\r\n";

const CASES: &[Case] = &[
    case("idle", &[("GET /idle HTTP/1.1\r\n\r\n", "/idle")], Moves),
    case(
        "idle after several",
        &[("GET /a HTTP/1.1\r\n\r\n", "/a"), (EVIL, "/body"), ("GET /b HTTP/1.1\r\n\r\n", "/b")],
        Moves,
    ),
    case("two pipelined, both answered", &[("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "/b")], Moves),
    case("read byte by byte", &[("GET /bytes HTTP/1.1\r\n\r\n", "/bytes"), (EVIL, "/body")], Moves),
    case("read into parts", &[("GET /vectors HTTP/1.1\r\n\r\n", "/vectors"), (EVIL, "/body")], Moves),
    case("read by recvmsg", &[("GET /messages HTTP/1.1\r\n\r\n", "/messages"), (EVIL, "/body")], Moves),
    case("read by preadv2", &[("GET /read-at HTTP/1.1\r\n\r\n", "/read-at"), (EVIL, "/body")], Moves),
    case("written by pwritev2", &[("GET /written-at HTTP/1.1\r\n\r\n", "/written-at")], Moves),
    case("read by recvmmsg", &[("GET /many HTTP/1.1\r\n\r\n", "/many"), (EVIL, "/body")], Ends),
    case("read by io_uring", &[("GET /ring HTTP/1.1\r\n\r\n", "/ring"), (EVIL, "/body")], Ends),
    case("written by sendmmsg", &[("GET /many-written HTTP/1.1\r\n\r\n", "/many-written")], Ends),
    case("written by io_uring", &[("GET /ring-written HTTP/1.1\r\n\r\n", "/ring-written")], Ends),
    case("written by stdio", &[("GET /stdio HTTP/1.1\r\n\r\n", "/stdio")], Ends),
    case("written by splice", &[("GET /splice HTTP/1.1\r\n\r\n", "/splice")], Ends),
    case("written by MSG_ZEROCOPY", &[("GET /zerocopy HTTP/1.1\r\n\r\n", "/zerocopy")], Ends),
    case("written in parts", &[("GET /parts HTTP/1.1\r\n\r\n", "/parts")], Moves),
    case("written by writev", &[("GET /vector HTTP/1.1\r\n\r\n", "/vector")], Moves),
    case("written by sendmsg", &[("GET /message HTTP/1.1\r\n\r\n", "/message")], Moves),
    case("written by sendfile", &[("GET /file HTTP/1.1\r\n\r\n", "")], Moves),
    case("events with their end", &[("GET /events-ended HTTP/1.1\r\n\r\n", "0\r\n\r\n")], Moves),
    case("shutdown before close", &[("GET /shutdown HTTP/1.1\r\n\r\n", "/shutdown")], Moves),
    case("never used", &[], Ends),
    case("an answer that ends with the connection", &[("GET /until-close HTTP/1.1\r\n\r\n", "/until-close")], Ends),
    case("HTTP/1.0", &[("GET /old HTTP/1.1\r\n\r\n", "/old")], Ends),
    case("a request of HTTP/1.0", &[("GET /idle HTTP/1.0\r\n\r\n", "/idle")], Ends),
    case("Connection: close", &[("GET /says-close HTTP/1.1\r\n\r\n", "/says-close")], Ends),
    case("asked to close", &[("GET /idle HTTP/1.1\r\nConnection: close\r\n\r\n", "/idle")], Ends),
    case("events cut", &[("GET /events HTTP/1.1\r\n\r\n", "/events\r\n")], Ends),
    case(
        "WebSocket",
        &[("GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "/socket")],
        Ends,
    ),
    case(
        "WebSocket with its close frame",
        &[
            ("GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "/socket"),
            ("\x08\x02\x03\x1f", ""),
        ],
        Ends,
    ),
    case("switched without a word", &[("GET /socket HTTP/1.1\r\n\r\n", "/socket")], Ends),
    case("an answer cut short", &[("GET /short HTTP/1.1\r\n\r\n", "/short")], Ends),
    case("no answer", &[("GET /silent HTTP/1.1\r\n\r\n", "")], Ends),
    case("half a body", &[(HALF, "")], Ends),
    case("half of the next request", &[("GET /a HTTP/1.1\r\n\r\n", "/a"), (HALF, "")], Ends),
    case("half of the next line", &[("GET /a HTTP/1.1\r\n\r\n", "/a"), ("GE", "")], Ends),
    case("a body not read that looks like a request", &[("GET /heads HTTP/1.1\r\n\r\n", "/heads"), (EVIL, "")], Ends),
    case("two pipelined, one answered", &[("GET /a HTTP/1.1\r\n\r\nGET /one-of-two HTTP/1.1\r\n\r\n", "/a")], Ends),
    case("TLS", &[("\x16\x03\x01", "hello")], Ends),
    case("HTTP/2", &[("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0")], Ends),
    case("PROXY", &[("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /idle HTTP/1.1\r\n\r\n", "/idle")], Ends),
    case("Redis", &[("PING\r\n", "+PONG\r\n")], Ends),
    case("HEAD", &[("HEAD /idle HTTP/1.1\r\n\r\n", "/idle")], Ends),
    case("two lengths", &[("POST /idle HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n-", "/idle")], Ends),
    case("a child has written", &[("GET /child HTTP/1.1\r\n\r\n", "/child")], Ends),
    case("a copy", &[("GET /copy HTTP/1.1\r\n\r\n", "/copy")], Ends),
    case("passed on", &[("GET /passed HTTP/1.1\r\n\r\n", "/passed")], Ends),
    case("resets at its close", &[("GET /resets HTTP/1.1\r\n\r\n", "/resets")], Ends),
    case("a thread waits in recv", &[("GET /thread HTTP/1.1\r\n\r\n", "/thread")], Ends),
    case("a child goes on", &[("GET /forked HTTP/1.1\r\n\r\n", "/forked"), ("GET /x HTTP/1.1\r\n\r\n", "child")], Ends),
];

/// Everything that comes until the answer ends like this.
fn expect(stream: &mut TcpStream, end: &str, name: &str) -> String {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    while !got.ends_with(end.as_bytes()) || got.is_empty() {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => got.extend_from_slice(&buffer[..n]),
            other => panic!("{name}: {other:?} after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}

#[test]
fn only_a_connection_between_two_requests_goes_on_with_the_successor() {
    only_those_move("pid", &["--output", "raw"], |case| case.then);
}

#[test]
fn and_so_by_relay() {
    let then = |case: &Case| if OF_SOCKET.contains(&case.name) { Moves } else { case.then };
    only_those_move("server_pid", &["--output", "raw", "--via", "relay", "--drain-timeout", "1s"], then);
}

/// `pid`: the field of `ls` with the server's.
fn only_those_move(pid: &str, options: &[&str], then: impl Fn(&Case) -> Then) {
    let daemon = launch(1, options, &["python3", &keeps()]);
    let old = daemon.slot(0, pid).to_string();
    let mut streams = Vec::new();
    for case in CASES {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        for (request, end) in case.steps {
            stream.write_all(request.as_bytes()).unwrap();
            if request.contains("/file ") {
                assert_eq!(answer(&mut stream).unwrap().len(), 40 + 100);
            } else if !end.is_empty() {
                expect(&mut stream, end, case.name);
            }
        }
        streams.push(stream);
    }
    // What was sent last is read; a connection that was never used is in the server's hands.
    eventually("all are received", seconds(20), || (daemon.slot(0, "open") == CASES.len()).then_some(()));
    std::thread::sleep(millis(200));
    reload(&daemon);
    let new = daemon.slot(0, pid).to_string();
    assert_ne!(old, new);
    let mut wrong = Vec::new();
    for (case, mut stream) in CASES.iter().zip(streams) {
        stream.set_read_timeout(Some(seconds(5))).unwrap();
        let then = then(case);
        let seen = match then {
            Moves => stream.write_all(b"GET /after HTTP/1.1\r\n\r\n").map(drop).and_then(|()| answer(&mut stream)),
            Ends => {
                let mut rest = Vec::new();
                match stream.read_to_end(&mut rest) {
                    Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error),
                    _ => Ok(rest),
                }
            }
        };
        let text = seen.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let right = match (then, &text) {
            (Moves, Ok(text)) => text.ends_with(&format!("{new} /after")),
            (Ends, Ok(text)) => text.is_empty(),
            (_, Err(_)) => false,
        };
        if !right {
            wrong.push(format!("{}: {then:?}, {text:?}", case.name));
        }
    }
    let moved = CASES.iter().filter(|case| then(case) == Moves).count();
    assert!(wrong.is_empty() && daemon.total("moved") == moved as u64, "{wrong:#?}\n{}", daemon.log());
}

#[test]
fn nothing_moves_from_a_server_whose_epoll_instances_cannot_be_found() {
    let daemon = launch(1, &["--env", "KEEPS=full"], &["python3", &keeps()]);
    let mut streams = Vec::new();
    for path in ["/idle", "/shutdown"] {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        expect(&mut stream, path, path);
        streams.push(stream);
    }
    reload(&daemon);
    for mut stream in streams {
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    assert_eq!(daemon.total("moved"), 0, "{}", daemon.log());
}

#[test]
fn a_connection_that_two_threads_end_at_once_stays_whole_or_ends() {
    let daemon = launch(1, &["--env", "KEEPS=both"], &["python3", &keeps()]);
    let mut streams: Vec<_> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    for stream in &mut streams {
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").unwrap();
        expect(stream, "/idle", "idle");
    }
    reload(&daemon);
    let stays = |stream: &mut TcpStream| {
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").and_then(|()| answer(stream)).map(drop)
    };
    let stay = streams.iter_mut().filter_map(|stream| stays(stream).ok()).count() as u64;
    // What one thread gives away the other one leaves alone.
    assert_eq!(daemon.total("moved"), stay, "{}", daemon.log());
    assert!(stay > 0);
}
