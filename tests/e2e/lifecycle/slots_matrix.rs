//! Verbs for one slot beside deliveries, policies and what its connections are doing.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::verbs::{done, refused};
use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds, write_file};

/// Answers with its slot and pid: `/` at once, `/slow` when the file `gate` is there. Ends at once when it is told to.
const SERVER: &str = "
import os, socket, threading, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(1000)
body = '%s %d\\n' % (os.environ['ROUNDSMAN_SLOT'], os.getpid())
def serve(c):
    while True:
        head = c.recv(4096)
        if not head: break
        while b'/slow' in head and not os.path.exists('gate'): time.sleep(.01)
        c.sendall(body.encode())
    c.close()
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
";

struct Scene {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

/// A connection and who is at its other end.
struct Client {
    stream: TcpStream,
    slot: usize,
    pid: i64,
}

impl Scene {
    fn start(via: &str, policy: &str, more: &[&str]) -> Self {
        let (dir, port) = (install_dir(), free_port());
        write_file(dir.path(), "app.py", SERVER);
        let listen = format!("127.0.0.1:{port}");
        let mut all = vec!["-n", "web", "-l", &listen, "-i", "2", "--via", via, "-p", policy, "--min-uptime", "50ms"];
        all.extend(more);
        all.extend(["--", "python3", "app.py"]);
        let mut command = roundsman();
        command.current_dir(dir.path());
        let daemon = Daemon::launch(command, &all, port);
        daemon.wait_online(2);
        Self { daemon, dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.daemon.port)).unwrap();
        stream.set_read_timeout(Some(seconds(30))).unwrap();
        stream
    }

    /// A client that has had an answer.
    fn client(&self) -> Client {
        let stream = self.connect();
        let (slot, pid) = ask(&stream, "/");
        Client { stream, slot, pid }
    }

    /// One of this slot, among new ones.
    fn client_of(&self, slot: usize) -> Client {
        std::iter::repeat_with(|| self.client()).find(|client| client.slot == slot).unwrap()
    }

    /// Two clients of one process, which may be replaced at any time.
    fn two_of_one(&self) -> (Client, TcpStream) {
        loop {
            let one = self.client();
            if let Some(other) = (0..8).map(|_| self.client()).find(|other| other.pid == one.pid) {
                return (one, other.stream);
            }
        }
    }

    fn open_gate(&self) {
        write_file(self.dir.path(), "gate", "");
    }

    fn close_gate(&self) {
        let _ = std::fs::remove_file(self.dir.path().join("gate"));
    }
}

fn send(mut stream: &TcpStream, path: &str) {
    // In one piece.
    stream.write_all(format!("GET {path}\r\n\r\n").as_bytes()).unwrap();
}

#[track_caller]
fn answer(mut stream: &TcpStream) -> (usize, i64) {
    let mut text = String::new();
    while !text.ends_with('\n') {
        let mut buffer = [0; 64];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {text:?}");
        text += std::str::from_utf8(&buffer[..count]).unwrap();
    }
    let (slot, pid) = text.trim_end().split_once(' ').unwrap();
    (slot.parse().unwrap(), pid.parse().unwrap())
}

#[track_caller]
fn ask(stream: &TcpStream, path: &str) -> (usize, i64) {
    send(stream, path);
    answer(stream)
}

const ALL: [(&str, &str); 8] = [
    ("direct", "rr"),
    ("direct", "least-conn"),
    ("direct", "ip-hash"),
    ("direct", "none"),
    ("relay", "rr"),
    ("relay", "least-conn"),
    ("relay", "ip-hash"),
    ("relay", "none"),
];

/// With a request in flight and an idle connection in the slot: both go on with the worker that has them until it ends, new
/// connections go where the verb says, and the other slot keeps its process.
fn one_slot(via: &str, policy: &str) {
    let scene = Scene::start(via, policy, &[]);
    let daemon = &scene.daemon;
    for verb in ["drain", "reload", "restart"] {
        let case = format!("{verb} {via} {policy}");
        let busy = scene.client();
        let (at, place) = (busy.slot, format!("web/{}", busy.slot));
        let idle = scene.client_of(at);
        send(&busy.stream, "/slow");
        if verb == "drain" && policy == "none" {
            refused(daemon, &[verb, &place], 1, "workers of web take connections themselves");
            refused(daemon, &["undrain", &place], 0, "was not drained");
        } else if verb == "drain" {
            done(daemon, &[verb, &place], &format!("draining slot {at}; connections open: 2"));
            assert!((0..6).all(|_| scene.client().slot != at), "{case}");
            assert_eq!(ask(&idle.stream, "/").1, idle.pid, "{case}: idle");
            scene.open_gate();
            assert_eq!(answer(&busy.stream).1, busy.pid, "{case}: in flight");
            done(daemon, &["undrain", &place], "takes connections again");
            drop(scene.client_of(at));
        } else {
            let (other, generation) = (daemon.slot(1 - at, "pid"), daemon.slot(at, "generation").as_u64().unwrap());
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| done(daemon, &[verb, &place], &format!("ed slot {at}")));
                daemon.wait_for(&format!("{verb}ing service=web slot={at}"));
                assert_eq!(ask(&idle.stream, "/").1, idle.pid, "{case}: idle");
                scene.open_gate();
                assert_eq!(answer(&busy.stream).1, busy.pid, "{case}: in flight");
                drop((busy, idle));
                asked.join().unwrap();
            });
            assert_eq!(daemon.slot(1 - at, "pid"), other, "{case}: the other slot");
            assert_eq!(daemon.slot(at, "generation"), generation + 1, "{case}");
        }
        scene.close_gate();
    }
    assert_eq!(daemon.total("restarts"), 0, "{via} {policy}");
    scene.client();
}

#[test]
fn requests_and_idle_connections_of_a_slot_survive_its_verbs_by_every_delivery_and_policy() {
    std::thread::scope(|scope| {
        for (via, policy) in ALL {
            scope.spawn(move || one_slot(via, policy));
        }
    });
}

/// The worker of a request in flight and of an idle connection is recycled: both go on with it, and new ones get the others.
fn recycled(via: &str, policy: &str) {
    let scene = Scene::start(via, policy, &["--max-age", "4s", "--recycle-jitter", "0%"]);
    let (daemon, case) = (&scene.daemon, format!("recycled {via} {policy}"));
    let (Client { stream: busy, pid: old, .. }, idle) = scene.two_of_one();
    send(&busy, "/slow");
    eventually(&format!("{case}: nothing new for the old worker"), seconds(30), || {
        (0..6).all(|_| scene.client().pid != old).then_some(())
    });
    assert_eq!(ask(&idle, "/").1, old, "{case}: idle");
    scene.open_gate();
    assert_eq!(answer(&busy).1, old, "{case}: in flight");
    assert_eq!(ask(&idle, "/").1, old, "{case}: idle until it is closed");
    drop((busy, idle));
    let gone = |pid: i64| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    eventually(&format!("{case}: the old worker is gone"), seconds(30), || gone(old).then_some(()));
    assert_eq!(daemon.total("restarts"), 0, "{case}");
}

#[test]
fn requests_and_idle_connections_survive_the_recycling_of_their_worker() {
    std::thread::scope(|scope| {
        for (via, policy) in [("direct", "rr"), ("direct", "none"), ("relay", "least-conn"), ("relay", "none")] {
            scope.spawn(move || recycled(via, policy));
        }
    });
}

/// Both workers are busy, and a client waits in the line.
fn in_line(via: &str, verb: &str) {
    let scene = Scene::start(via, "rr", &["--worker-conns", "1"]);
    let (daemon, case) = (&scene.daemon, format!("{verb} {via}"));
    let held = |count: u64| {
        eventually(&format!("{case}: {count} wait"), seconds(20), || {
            (daemon.ls()["services"][0]["held"] == count).then_some(())
        });
    };
    let busy = [scene.client(), scene.client()];
    busy.iter().for_each(|client| send(&client.stream, "/slow"));
    let [first, second] = busy;
    let (at, place) = (first.slot, format!("web/{}", first.slot));
    assert_eq!(second.slot, 1 - at, "{case}");
    let waiting = scene.connect();
    send(&waiting, "/");
    held(1);
    match verb {
        "drain" => {
            done(daemon, &["drain", &place], "connections open: 1");
            scene.open_gate();
            assert_eq!(answer(&first.stream).1, first.pid, "{case}");
            drop(first);
            eventually("the slot is empty", seconds(20), || (daemon.slot(at, "open") == 0).then_some(()));
            held(1);
            done(daemon, &["undrain", &place], "takes connections again");
            assert_eq!(answer(&waiting).0, at, "{case}");
        }
        "reload" => std::thread::scope(|scope| {
            let asked = scope.spawn(|| done(daemon, &["reload", &place], "reloaded slot"));
            // Its successor has room.
            let (slot, pid) = answer(&waiting);
            assert!(slot == at && pid != first.pid, "{case}");
            scene.open_gate();
            assert_eq!(answer(&first.stream).1, first.pid, "{case}");
            drop(first);
            asked.join().unwrap();
        }),
        _ => std::thread::scope(|scope| {
            let asked = scope.spawn(|| done(daemon, &["restart", &place], "restarted slot"));
            daemon.wait_for("restarting service=web slot=");
            held(1);
            scene.open_gate();
            assert_eq!(answer(&first.stream).1, first.pid, "{case}");
            drop(first);
            let (slot, pid) = answer(&waiting);
            // The other one is busy until its client goes.
            assert!(slot == at && pid != 0, "{case}");
            asked.join().unwrap();
        }),
    }
    scene.open_gate();
    assert_eq!(answer(&second.stream).1, second.pid, "{case}");
    held(0);
}

#[test]
fn a_client_in_the_line_is_served_whatever_becomes_of_a_slot() {
    std::thread::scope(|scope| {
        for via in ["direct", "relay"] {
            for verb in ["drain", "reload", "restart"] {
                scope.spawn(move || in_line(via, verb));
            }
        }
    });
}
