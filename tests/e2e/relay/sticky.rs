//! `ip-hash`: a client's connections reach the same worker, and when they do not.
//! Mostly waits: tests/run runs it beside others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::support::{App, Daemon, eventually, freeze, http_get, millis, seconds, slot_of};

/// Blocks its process for 20 ms for each request.
const BUSY: &str = "require('http').createServer((request, response) => {
  const end = Date.now() + 20
  while (Date.now() < end);
  response.end(process.env.ROUNDSMAN_SLOT)
}).listen(process.env.PORT_OF_APP, '127.0.0.1')";

/// A connection from 127.7.0.`last`.
fn connect(last: u8, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 7, 0, last], 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    socket.into()
}

/// The slots that answer `total` requests of one address, of which `at_once` are under way at a time.
fn slots(last: u8, port: u16, total: usize, at_once: usize) -> BTreeSet<String> {
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while next.fetch_add(1, SeqCst) < total {
                    let slot = http_get(&mut connect(last, port)).unwrap();
                    seen.lock().unwrap().insert(slot);
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

/// The wait is long, so that a machine which holds up a process for a second does not move a client.
#[test]
fn a_busy_worker_keeps_its_clients() {
    let app = App::start("node", "app.js", BUSY, &["-p", "ip-hash", "--hash-wait", "15s"]).online(2);
    let mut used = BTreeSet::new();
    for last in 1..=20 {
        let slot = slots(last, app.port, 2, 1);
        assert_eq!(slot.len(), 1, "{slot:?}");
        used.extend(slot);
    }
    assert_eq!(used.len(), 2, "addresses are spread");
    assert_eq!(slots(1, app.port, 200, 2).len(), 1, "two clients, one after the other");
    // More than may be on their way to one worker at a time.
    assert_eq!(slots(1, app.port, 180, 60).len(), 1, "sixty clients");
    assert_eq!(app.daemon.total("rescued"), 0);
    assert_eq!(app.daemon.total("connections"), 20 * 2 + 200 + 180);
}

/// Two slots by relay, with an address of each, and slot 0 stopped.
struct Stopped {
    daemon: Daemon,
    own: [u8; 2],
    worker: Pid,
}

impl Stopped {
    fn start(hash_wait: &[&str]) -> Self {
        let mut all = vec!["-i", "2", "-p", "ip-hash", "--backoff", "20s..20s"];
        all.extend(hash_wait);
        all.extend(["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
        let daemon = Daemon::start(&all);
        daemon.wait_online(2);
        let of = |slot: usize| {
            let at = |last: &u8| slot_of(&http_get(&mut connect(*last, daemon.port)).unwrap()) == slot;
            (1..=200).find(at).unwrap()
        };
        let own = [of(0), of(1)];
        let worker = Pid::from_raw(daemon.workers()[0]);
        freeze(worker.as_raw());
        Self { daemon, own, worker }
    }

    /// More requests of slot 0's client than its queue takes, sent and not answered.
    fn requests(&self) -> Vec<TcpStream> {
        let request = |_| {
            let mut stream = connect(self.own[0], self.daemon.port);
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            stream.set_read_timeout(Some(seconds(20))).unwrap();
            stream
        };
        (0..100).map(request).collect()
    }

    fn waiting(&self) -> (u64, u64) {
        let held = self.daemon.ls()["services"][0]["held"].as_u64().unwrap();
        (self.daemon.slot(0, "pending").as_u64().unwrap(), held)
    }

    /// Slot 1 answers its own client.
    fn others_are_served(&self) {
        for _ in 0..20 {
            assert_eq!(slot_of(&http_get(&mut connect(self.own[1], self.daemon.port)).unwrap()), 1);
        }
    }
}

/// Reads the answer; the slot that it came from.
fn answer(stream: &mut TcpStream) -> usize {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    slot_of(text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("cut answer: {text:?}")).1)
}

#[test]
fn clients_of_a_stuck_worker_wait_for_it_and_move_after_the_hash_wait() {
    let stopped = Stopped::start(&[]);
    let begin = Instant::now();
    let mut clients = stopped.requests();
    stopped.others_are_served();
    assert!(begin.elapsed() < seconds(1), "others waited: {:?}", begin.elapsed());
    for client in &mut clients {
        assert_eq!(answer(client), 1);
        // The first hand-off is the oldest; the others' moment comes with it.
        assert!(begin.elapsed() >= millis(950), "moved after {:?}", begin.elapsed());
    }
    assert!(begin.elapsed() < seconds(10), "{:?}", begin.elapsed());
    assert_eq!(stopped.daemon.slot(0, "rescued"), 64);
    // It is known to be stuck now: nobody waits for it.
    let begin = Instant::now();
    assert_eq!(slot_of(&http_get(&mut connect(stopped.own[0], stopped.daemon.port)).unwrap()), 1);
    assert!(begin.elapsed() < millis(900), "{:?}", begin.elapsed());
    kill(stopped.worker, Signal::SIGCONT).unwrap();
    eventually("its client comes back to it", seconds(10), || {
        (slot_of(&http_get(&mut connect(stopped.own[0], stopped.daemon.port)).unwrap()) == 0).then_some(())
    });
}

#[test]
fn clients_of_a_worker_that_is_killed_move_at_once_and_none_is_lost() {
    let stopped = Stopped::start(&["--hash-wait", "15s"]);
    let mut clients = stopped.requests();
    let all = 64 + 36;
    eventually("all wait for it", seconds(10), || (stopped.waiting() == (64, all - 64)).then_some(()));
    stopped.others_are_served();
    let begin = Instant::now();
    kill(stopped.worker, Signal::SIGKILL).unwrap();
    for client in &mut clients {
        assert_eq!(answer(client), 1);
    }
    assert!(begin.elapsed() < seconds(7), "{:?}", begin.elapsed());
    assert_eq!(stopped.daemon.ls()["services"][0]["shed"], 0);
    assert_eq!(stopped.waiting().1, 0);
}

#[test]
fn clients_of_a_worker_that_wakes_up_in_time_stay_with_it() {
    let stopped = Stopped::start(&["--hash-wait", "15s"]);
    let mut clients = stopped.requests();
    eventually("all wait for it", seconds(10), || (stopped.waiting() == (64, 36)).then_some(()));
    // Long enough for a rescue (5 ms), which ip-hash puts off, and far from the end of the hash wait.
    std::thread::sleep(Duration::from_millis(200));
    kill(stopped.worker, Signal::SIGCONT).unwrap();
    for client in &mut clients {
        assert_eq!(answer(client), 0);
    }
    assert_eq!(stopped.daemon.total("rescued"), 0);
}
