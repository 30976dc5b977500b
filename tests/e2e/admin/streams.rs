//! Pages that listen, their limits, and the probes beside them.
//! Mostly waits: tests/run runs it beside others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Daemon, eventually, free_port, read_all, roundsman, seconds};

/// A daemon with two slots, and its admin port.
pub fn daemon(more: &[&str]) -> (Daemon, u16) {
    daemon_of(2, more)
}

fn daemon_of(slots: usize, more: &[&str]) -> (Daemon, u16) {
    let (admin, listen) = (free_port(), free_port());
    let (address, port, count) = (admin.to_string(), listen.to_string(), slots.to_string());
    let all =
        ["-l", &port, "--via", "relay", "-i", &count, "--admin", &address, "--name", "shop", "--min-uptime", "100ms"];
    let server = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let daemon = Daemon::launch(roundsman(), &[&all[..], more, &server].concat(), listen);
    daemon.wait_online(slots);
    (daemon, admin)
}

/// The answer to a request with these further header lines.
pub fn ask(admin: u16, request: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    stream.set_read_timeout(Some(seconds(15))).unwrap();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    stream
        .write_all(format!("{request} HTTP/1.1\r\nHost: 127.0.0.1:{admin}\r\n{length}{headers}\r\n{body}").as_bytes())
        .unwrap();
    let text = String::from_utf8_lossy(&read_all(&mut stream).unwrap()).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text)
}

/// A page that listens.
pub struct Page {
    stream: TcpStream,
    text: String,
}

impl Page {
    pub fn open(admin: u16, headers: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", admin)).unwrap();
        stream.set_read_timeout(Some(seconds(15))).unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nHost: localhost:{admin}\r\n{headers}\r\n").unwrap();
        Self { stream, text: String::new() }
    }

    /// Reads until there is a message of a kind that something is wanted of.
    #[track_caller]
    pub fn next<T>(&mut self, kind: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let end = Instant::now() + seconds(15);
        while Instant::now() < end {
            while let Some((message, rest)) = self.text.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                self.text = rest;
                let data = message.split_once(&format!("event: {kind}\ndata: "));
                if let Some(found) = data.and_then(|(_, data)| wanted(&json(data))) {
                    return found;
                }
            }
            assert!(self.read(), "the stream has ended");
        }
        panic!("no {kind} as wanted");
    }

    /// Whether it gets a stream.
    pub fn begins(&mut self) -> bool {
        self.read() && self.text.contains(" 200 OK")
    }

    /// Whether more came.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                true
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => true,
            Err(_) => false,
        }
    }
}

/// A message's data; the boundaries of HTTP's chunks lie between messages.
fn json(data: &str) -> Value {
    serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))
}

/// CPU time of all threads of a process.
fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let used = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(used.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}

#[test]
fn sixteen_pages_listen_one_more_is_refused_and_probes_are_answered() {
    let (daemon, admin) = daemon_of(8, &[]);
    let mut pages: Vec<Page> = (0..16).map(|_| Page::open(admin, "")).collect();
    for page in &mut pages {
        assert_eq!(page.next("hello", |hello| Some(hello["trusted"].clone())), true);
        page.next("state", |state| (state["services"][0]["slots"].as_array()?.len() == 8).then_some(()));
    }
    let (status, text) = ask(admin, "GET /events", "", "");
    assert!(status == 503 && text.contains("16 pages are open already"), "{text}");
    // Not a state from before the workers were there.
    eventually("ready", seconds(10), || (ask(admin, "GET /readyz", "", "").0 == 200).then_some(()));
    for path in ["/livez", "/readyz", "/metrics", "/"] {
        let begin = Instant::now();
        let (status, text) = ask(admin, &format!("GET {path}"), "", "");
        assert_eq!(status, 200, "{path}: {text}");
        assert!(begin.elapsed() < seconds(5), "{path}: {:?}", begin.elapsed());
    }
    // Clients that hold on do not take the pages' places, nor the other way round.
    let _held: Vec<_> = (0..300).map(|_| TcpStream::connect(("127.0.0.1", admin)).unwrap()).collect();
    // At most once a second, and longer than any other connection may last.
    let (begin, used) = (Instant::now(), cpu_time(daemon.pid()));
    let mut states = 0;
    while begin.elapsed() < seconds(11) {
        pages[0].next("state", |_| Some(()));
        states += 1;
    }
    assert!((3..=13).contains(&states), "{states} states in {:?}", begin.elapsed());
    let used = cpu_time(daemon.pid()) - used;
    assert!(used < begin.elapsed() / 50, "all pages together cost less than 2 % of a CPU: {used:?}");
    assert!(
        pages.iter_mut().all(|page| {
            page.text.clear();
            page.read()
        }),
        "all of them are there"
    );
    // A page that is closed makes room.
    pages.pop();
    eventually("a place", seconds(15), || Page::open(admin, "").begins().then_some(()));
    // The daemon's end is the stream's.
    daemon.signal(Signal::SIGTERM);
    eventually("the end of the stream", seconds(15), || (!pages[1].read()).then_some(()));
}

#[test]
fn a_page_is_sent_events_and_the_history_as_it_grows() {
    let (daemon, admin) = daemon(&[]);
    let mut page = Page::open(admin, "");
    page.next("log", |event| (event["text"].as_str()?.starts_with("worker online")).then_some(()));
    let column = page.next("column", |column| Some(column.clone()));
    assert_eq!(column["services"][0]["name"], "shop");
    let slot = column["services"][0]["slots"][1].as_array().unwrap();
    assert!(slot.len() == 6 && slot[3].as_u64().unwrap() > 100_000, "{column}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
    let text = page.next("log", |event| {
        let text = event["text"].as_str()?;
        (event["slot"] == 1 && event["level"] == "warn" && text.contains("exited")).then(|| text.to_owned())
    });
    assert!(text.contains("SIGKILL"), "{text}");
    page.next("state", |state| (state["services"][0]["slots"][1]["generation"].as_u64()? >= 2).then_some(()));
    // One that comes later is sent what was, once.
    let mut later = Page::open(admin, "");
    later.next("column", |_| Some(()));
    later.next("log", |event| (event["text"] == text.as_str()).then_some(()));
    later.next("state", |_| Some(()));
    later.next("state", |_| Some(()));
    assert!(!later.text.contains(&text), "{}", later.text);
}

#[test]
fn pages_that_read_nothing_cost_nobody() {
    let (daemon, admin) = daemon(&[]);
    let _slow: Vec<TcpStream> = (0..16)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(1024).unwrap();
            socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], admin)).into()).unwrap();
            let mut stream = TcpStream::from(socket);
            write!(stream, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    eventually("all places are taken", seconds(15), || (ask(admin, "GET /events", "", "").0 == 503).then_some(()));
    assert_eq!(ask(admin, "GET /livez", "", "").0, 200);
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 40 << 20, "{rss}");
}
