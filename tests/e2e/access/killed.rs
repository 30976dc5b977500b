//! Workers that are killed while they write records.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Logged, SERVER, number};
use crate::support::{Random, eventually, install_dir, millis, read_all, seconds, write_file};

/// Two processes accept. One that is told to takes places in the ring, as for records, and is killed before it writes them.
const TAKES_PLACES: &str = "
import ctypes, os, signal, socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ['PORT']))); s.listen(100)
def die():
    ring = next(line for line in open('/proc/self/maps') if 'roundsman-access' in line)
    head = ctypes.c_uint64.from_address(int(ring.split('-')[0], 16))
    head.value += 5
    os.kill(os.getpid(), signal.SIGKILL)
for n in range(2):
    if os.fork() == 0:
        while True:
            c, _ = s.accept()
            while got := c.recv(100):
                if got == b'die': die()
                c.sendall(got)
            c.close()
time.sleep(1000)
";

fn talk(stream: &mut TcpStream) {
    stream.write_all(b"word").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"word");
}

#[test]
fn places_of_one_that_was_killed_before_it_wrote_are_counted_and_the_other_goes_on() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", TAKES_PLACES);
    let logged = Logged::in_dir(dir, &["--via", "direct", "-i", "1", "--", "python3", script.to_str().unwrap()]);
    let (mut killed, mut other) = (logged.connect(), logged.connect());
    // Each is served by a process of its own.
    talk(&mut killed);
    talk(&mut other);
    let port = |stream: &TcpStream| format!("127.0.0.1:{}", stream.local_addr().unwrap().port());
    let line = |lines: &[Value], client: &str| lines.iter().find(|line| line["client"] == client).unwrap().clone();
    killed.write_all(b"die").unwrap();
    assert!(read_all(&mut killed).is_ok_and(|bytes| bytes.is_empty()), "its end");
    let of_killed = line(&logged.lines(1), &port(&killed));
    assert_eq!((&of_killed["end"], &of_killed["bytes_in"]), (&"worker-exit".into(), &Value::Null), "{of_killed}");
    talk(&mut other);
    let client = port(&other);
    drop(other);
    let of_other = line(&logged.lines(2), &client);
    assert_eq!((&of_other["end"], number(&of_other, "bytes_in")), (&"client".into(), 8), "{of_other}");
    for count in 3..8 {
        let mut next = logged.connect();
        talk(&mut next);
        drop(next);
        logged.lines(count);
    }
    eventually("the places are counted", seconds(10), || (logged.lost() == 5).then_some(()));
    logged.daemon.wait_for("access log: lines lost");
}

const KILLS: usize = 5;

/// Clients, each with a connection of its own, while workers are killed at any moment; what was answered has its line.
fn killed_at_any_moment(via: &str) {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let options = ["--via", via, "-i", "2", "--min-uptime", "1ms", "--max-restarts", "1000", "--backoff", "1ms..2ms"];
    let logged = Logged::in_dir(dir, &[&options[..], &["--", "python3", script.to_str().unwrap()]].concat());
    logged.daemon.wait_for_count("worker online", 2);
    let over = AtomicBool::new(false);
    // The port of each client, and whether it was answered.
    let clients: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let client = || {
            let mut clients = Vec::new();
            while !over.load(Relaxed) {
                let mut stream = logged.connect();
                let port = stream.local_addr().unwrap().port();
                let _ = stream.write_all(b"stop");
                clients.push((port, read_all(&mut stream).is_ok_and(|bytes| bytes == b"stop")));
                // The workers' starts need the processors, too.
                std::thread::sleep(millis(2));
            }
            clients
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(client)).collect();
        let mut random = Random(11);
        for round in 0..KILLS {
            std::thread::sleep(millis(random.below(60)));
            let pid = eventually("a worker", seconds(20), || logged.daemon.workers().get(round % 2).copied());
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            logged.daemon.wait_for_count("worker online", round + 3);
        }
        over.store(true, Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // A port can be a client's more than once.
    let (mut answered, mut all) = (BTreeMap::new(), BTreeMap::new());
    for (port, was_answered) in clients {
        *all.entry(port).or_insert(0) += 1;
        *answered.entry(port).or_insert(0) += u32::from(was_answered);
    }
    assert!(answered.len() > 50, "{via}: {}", answered.len());
    let lines = || {
        let text = std::fs::read_to_string(logged.path()).unwrap();
        let mut lines: BTreeMap<u16, u32> = BTreeMap::new();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line: Value = serde_json::from_str(line).unwrap();
            let port = line["client"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
            *lines.entry(port).or_insert(0) += 1;
        }
        lines
    };
    eventually(&format!("{via}: lines of all that were answered"), seconds(30), || {
        let lines = lines();
        answered.iter().all(|(port, count)| lines.get(port).unwrap_or(&0) >= count).then_some(())
    });
    for (port, count) in lines() {
        assert!(all.get(&port).is_some_and(|connections| count <= *connections), "{via}: {count} lines of {port}");
    }
    // A place is lost that a worker had taken when it was killed; each has a few threads.
    assert!(logged.lost() <= KILLS as u64 * 4, "{via}: {}", logged.lost());
}

#[test]
fn what_was_answered_has_its_line_whenever_workers_are_killed() {
    std::thread::scope(|scope| {
        for via in ["direct", "relay"] {
            scope.spawn(move || killed_at_any_moment(via));
        }
    });
}
