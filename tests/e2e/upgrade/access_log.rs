//! The access log through upgrades: one line for each connection, whichever program saw it begin.
//! Mostly waits: tests/run runs it beside others.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Site, upgrade, upgraded};
use crate::support::{eventually, get, millis, read_all, reset, seconds};

const LOG: [&str; 4] = ["--access-log", "access.log", "--access-format", "json"];

/// All lines, once there are so many.
#[track_caller]
fn lines(site: &Site, count: usize) -> Vec<Value> {
    let text = eventually(&format!("{count} lines"), seconds(20), || {
        let text = std::fs::read_to_string(site.dir.path().join("access.log")).unwrap_or_default();
        (text.lines().count() >= count && text.ends_with('\n')).then_some(text)
    });
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), count, "{text}");
    lines
}

fn lost(site: &Site) -> u64 {
    site.daemon.ls()["services"][0]["access_lost"].as_u64().unwrap()
}

/// A connection and what its line has to say.
struct Client {
    stream: TcpStream,
    begun: Instant,
    sent: u64,
    received: u64,
}

impl Client {
    fn new(site: &Site) -> Self {
        let (stream, begun) = (site.connect(), Instant::now());
        let mut client = Self { stream, begun, sent: 0, received: 0 };
        client.ask();
        client
    }

    fn write(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).unwrap();
        self.sent += request.len() as u64;
    }

    fn ask(&mut self) {
        self.write("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
        let mut bytes = Vec::new();
        let whole = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                length.is_some_and(|length| body.len() == length.parse::<usize>().unwrap())
            })
        };
        while !whole(&bytes) {
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).unwrap();
            assert!(n > 0, "cut");
            bytes.extend_from_slice(&buffer[..n]);
        }
        self.received += bytes.len() as u64;
    }

    /// Ends it in a way; its port, the end and the duration in milliseconds.
    fn end(mut self, end: &'static str) -> Expected {
        let client = self.stream.local_addr().unwrap().to_string();
        match end {
            "client" => drop(self.stream),
            "reset" => reset(self.stream),
            _ => {
                self.write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                self.received += read_all(&mut self.stream).unwrap().len() as u64;
            }
        }
        Expected {
            client,
            end,
            sent: self.sent,
            received: self.received,
            begun: self.begun,
            least: self.begun.elapsed(),
        }
    }
}

struct Expected {
    client: String,
    end: &'static str,
    sent: u64,
    received: u64,
    begun: Instant,
    least: std::time::Duration,
}

#[track_caller]
fn agree(site: &Site, expected: &[Expected]) {
    let lines = lines(site, expected.len());
    for one in expected {
        let [line] = lines.iter().filter(|line| line["client"] == one.client).collect::<Vec<_>>()[..] else {
            panic!("{}: {lines:?}", one.client)
        };
        assert_eq!(
            (&line["end"], &line["bytes_in"], &line["bytes_out"]),
            (&one.end.into(), &one.sent.into(), &one.received.into()),
            "{line}"
        );
        assert_eq!(line["listener"], format!("127.0.0.1:{}", site.port), "{line}");
        // A client knows of it a moment after the kernel's accept, or before.
        let duration = line["duration_ms"].as_f64().unwrap();
        let (least, most) = (one.least.as_secs_f64() * 1000.0, one.begun.elapsed().as_secs_f64() * 1000.0);
        assert!(duration <= most && duration >= least - 1000.0, "{least} {most} {line}");
    }
    assert_eq!(lost(site), 0);
}

fn open_connections(via: &str, options: &[&str]) {
    let site = Site::start(via, 2, &[&LOG[..], options].concat());
    let ends = ["client", "server", "reset"];
    let mut open: Vec<(Client, &str)> = Vec::new();
    let mut over = Vec::new();
    for _ in 0..2 {
        // Two of each kind: one ends before the next upgrade's connections come, one after the last upgrade.
        open.extend(ends.iter().map(|end| (Client::new(&site), *end)));
        upgraded(&site.daemon);
        open.iter_mut().for_each(|(client, _)| client.ask());
        over.push(Client::new(&site).end("client"));
        agree(&site, &over);
    }
    let killed = Client::new(&site);
    let address = killed.stream.local_addr().unwrap().to_string();
    upgraded(&site.daemon);
    open.iter_mut().for_each(|(client, _)| client.ask());
    over.extend(open.into_iter().map(|(client, end)| client.end(end)));
    agree(&site, &over);
    // The processes that it found are watched.
    for slot in site.daemon.slots() {
        kill(Pid::from_raw(slot["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    }
    let line = lines(&site, over.len() + 1).into_iter().find(|line| line["client"] == address).unwrap();
    assert_eq!(line["end"], "worker-exit", "{line}");
    // New workers are logged as well.
    site.daemon.wait_online(2);
    eventually("the next generation", seconds(20), || get(site.port).ok());
    assert_eq!(lines(&site, over.len() + 2).last().unwrap()["generation"], 2);
}

#[test]
fn open_connections_have_one_line_with_direct_delivery() {
    open_connections("direct", &[]);
}

#[test]
fn open_connections_have_one_line_under_the_policy_none() {
    open_connections("direct", &["--policy", "none"]);
}

#[test]
fn open_connections_have_one_line_with_relay_workers() {
    open_connections("relay", &[]);
}

#[test]
fn workers_on_their_way_out_have_the_lines_of_their_connections() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 1, &[&LOG[..], &["--drain-timeout", "60s", "--max-served", "2"]].concat());
        let mut kept: Vec<_> = (0..2).map(|_| Client::new(&site)).collect();
        eventually("a successor", seconds(20), || (site.daemon.slot(0, "generation") == 2).then_some(()));
        site.daemon.wait_online(1);
        upgraded(&site.daemon);
        kept.iter_mut().for_each(Client::ask);
        upgraded(&site.daemon);
        let over: Vec<_> = kept.into_iter().map(|client| client.end("client")).collect();
        agree(&site, &over);
        assert!(lines(&site, 2).iter().all(|line| line["generation"] == 1), "{via}");
    }
}

/// Two processes beside the first one accept, and send back what comes; one that is told to dies.
const FORKS: &str = "
import os, signal, socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
for n in range(2):
    if os.fork() == 0:
        while True:
            c, _ = s.accept()
            while got := c.recv(100):
                if got == b'die': os.kill(os.getpid(), signal.SIGKILL)
                c.sendall(got)
            c.close()
time.sleep(1000)
";

#[test]
fn processes_beside_the_worker_are_watched() {
    let site = Site::of(FORKS, "direct", 1, &LOG);
    let talk = |stream: &mut TcpStream| {
        stream.write_all(b"word").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    let (mut killed, mut other) = (site.connect(), site.connect());
    talk(&mut killed);
    talk(&mut other);
    for _ in 0..2 {
        upgraded(&site.daemon);
        talk(&mut killed);
        talk(&mut other);
    }
    killed.write_all(b"die").unwrap();
    let of_killed = &lines(&site, 1)[0];
    assert_eq!((&of_killed["end"], &of_killed["bytes_in"]), (&"worker-exit".into(), &Value::Null), "{of_killed}");
    assert_eq!(of_killed["client"], killed.local_addr().unwrap().to_string());
    talk(&mut other);
    drop(other);
    let of_other = &lines(&site, 2)[1];
    assert_eq!((&of_other["end"], &of_other["bytes_in"]), (&"client".into(), &16.into()), "{of_other}");
}

#[test]
fn no_line_is_lost_or_written_twice_under_load() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 2, &LOG);
        let stop = AtomicBool::new(false);
        let answered = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut answered = HashMap::<String, usize>::new();
                        while !stop.load(SeqCst) {
                            let mut stream = site.connect();
                            let address = stream.local_addr().unwrap().to_string();
                            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
                            assert!(!read_all(&mut stream).unwrap().is_empty());
                            *answered.entry(address).or_default() += 1;
                            std::thread::sleep(millis(2));
                        }
                        answered
                    })
                })
                .collect();
            let upgrades = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                (0..3).for_each(|_| upgraded(&site.daemon));
            }));
            stop.store(true, SeqCst);
            let answered: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            upgrades.unwrap();
            answered
        });
        let mut expected = HashMap::<String, usize>::new();
        answered.into_iter().flatten().for_each(|(address, count)| *expected.entry(address).or_default() += count);
        let mut found = HashMap::<String, usize>::new();
        for line in lines(&site, expected.values().sum()) {
            *found.entry(line["client"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!((found, lost(&site)), (expected, 0), "{via}");
    }
}

#[test]
fn a_fifo_that_nobody_reads_holds_up_nothing_and_its_lines_are_counted() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = crate::support::install_dir();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let mut reader = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo).unwrap();
    // A page of memory is full soon.
    nix::fcntl::fcntl(reader.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let to = fifo.to_str().unwrap();
    let site = Site::start("relay", 1, &["--access-log", to, "--access-format", "json"]);
    const COUNT: u64 = 60;
    (0..COUNT).for_each(|_| drop(get(site.port).unwrap()));
    eventually("all over", seconds(20), || (site.daemon.total("open") == 0).then_some(()));
    let begun = Instant::now();
    upgraded(&site.daemon);
    assert!(begun.elapsed() < seconds(20));
    let counted = lost(&site);
    let mut text = Vec::new();
    while let Ok(n @ 1..) = reader.read(&mut [0; 4096][..]).inspect(|n| text.push(*n)) {
        assert!(n <= 4096);
    }
    let read: usize = text.iter().sum();
    assert!(read > 0 && counted > 0 && counted < COUNT, "{read} bytes, {counted} lines lost");
    get(site.port).unwrap();
    let line = eventually("a line of the next program", seconds(20), || {
        let mut buffer = [0; 4096];
        reader.read(&mut buffer).ok().filter(|&n| n > 0).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned())
    });
    assert!(line.ends_with("}\n"), "{line}");
    assert_eq!(lost(&site), counted);
}

#[test]
fn a_file_that_cannot_be_opened_is_found_by_the_trial() {
    let site = Site::start("direct", 1, &LOG);
    let (path, away) = (site.dir.path().join("access.log"), site.dir.path().join("away.log"));
    let mut kept = Client::new(&site);
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    let (code, text) = upgrade(&site.daemon, None);
    assert!(code == 1 && text.contains("cannot write to") && text.contains("access.log"), "{text}");
    kept.ask();
    std::fs::remove_dir(&path).unwrap();
    upgraded(&site.daemon);
    kept.ask();
    agree(&site, &[kept.end("client")]);
    let old: BTreeSet<String> = std::fs::read_to_string(away).unwrap().lines().map(str::to_owned).collect();
    assert!(old.is_empty(), "{old:?}");
}
