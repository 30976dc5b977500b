//! Who gets the next connection.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::support::{Daemon, eventually, get, http_get, seconds, slot_of};

/// Four slots, each with a responder of its own that names its slot.
fn four(policy: &str, more: &[&str]) -> Daemon {
    let mut arguments = vec!["-i", "4", "-p", policy];
    arguments.extend(more);
    arguments.extend(["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    let daemon = Daemon::start(&arguments);
    daemon.wait_online(4);
    daemon
}

/// `total` connections by `at_once` threads; how many each slot got.
fn load(port: u16, total: usize, at_once: usize) -> [usize; 4] {
    let (next, counts) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new([0; 4])));
    let client = |_| {
        let (next, counts) = (next.clone(), counts.clone());
        std::thread::spawn(move || {
            while next.fetch_add(1, Ordering::SeqCst) < total {
                let slot = slot_of(&get(port).unwrap());
                counts.lock().unwrap()[slot] += 1;
            }
        })
    };
    let clients: Vec<_> = (0..at_once).map(client).collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let counts = *counts.lock().unwrap();
    counts
}

#[test]
fn rr_one_after_the_other_goes_in_strict_turns() {
    let daemon = four("rr", &[]);
    let first = slot_of(&get(daemon.port).unwrap());
    for n in 1..10_000 {
        assert_eq!(slot_of(&get(daemon.port).unwrap()), (first + n) % 4, "connection {n}");
    }
    assert_eq!(daemon.total("connections"), 10_000);
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn rr_forty_at_a_time_is_even() {
    let daemon = four("rr", &[]);
    let counts = load(daemon.port, 10_000, 40);
    let busiest = *counts.iter().max().unwrap() as f64;
    assert_eq!(counts.iter().sum::<usize>(), 10_000);
    assert!(busiest / 2_500.0 <= 1.05, "{counts:?}");
}

#[test]
fn a_stopped_worker_delays_nobody_by_more_than_the_stall_timeout() {
    let daemon = four("rr", &[]);
    let stopped = Pid::from_raw(daemon.workers()[2]);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..400 {
        let begin = Instant::now();
        let slot = slot_of(&get(daemon.port).unwrap());
        slowest = slowest.max(begin.elapsed());
        assert_ne!(slot, 2);
    }
    let rescued = daemon.slot(2, "rescued").as_u64().unwrap();
    assert!(rescued >= 1, "the stopped worker's queue was rescued");
    assert!(slowest <= Duration::from_millis(10 + 20), "slowest {slowest:?}");
    kill(stopped, Signal::SIGCONT).unwrap();
    eventually("it takes its turn again", seconds(5), || (slot_of(&get(daemon.port).unwrap()) == 2).then_some(()));
}

#[test]
fn least_conn_fills_up_whoever_has_fewest() {
    let daemon = four("least-conn", &[]);
    let connect = || TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let mut kept: Vec<_> = (0..40).map(|_| connect()).collect();
    let open = |slot: usize| daemon.slot(slot, "open").as_u64().unwrap();
    eventually("ten each", seconds(5), || (0..4).all(|slot| open(slot) == 10).then_some(()));
    // One connection more on three of the slots: the next must go to the fourth.
    let mut filled = Vec::new();
    for _ in 0..3 {
        let mut stream = connect();
        filled.push(slot_of(&http_get_keep(&mut stream)));
        kept.push(stream);
    }
    let missing = (0..4).find(|slot| !filled.contains(slot)).expect("three different slots");
    assert_eq!(slot_of(&get(daemon.port).unwrap()), missing);
}

/// A GET that leaves the connection open.
fn http_get_keep(stream: &mut TcpStream) -> String {
    use std::io::{Read, Write};
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut buffer = [0; 1024];
    let n = stream.read(&mut buffer).unwrap();
    let answer = String::from_utf8_lossy(&buffer[..n]).into_owned();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// From a loopback address of one's own.
fn get_from(source: [u8; 4], port: u16) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    http_get(&mut socket.into()).unwrap()
}

#[test]
fn ip_hash_keeps_a_client_at_its_slot() {
    let daemon = four("ip-hash", &[]);
    let mut used = [0; 4];
    for last in 1..=60 {
        let home = slot_of(&get_from([127, 9, 9, last], daemon.port));
        used[home] += 1;
        for _ in 0..3 {
            assert_eq!(slot_of(&get_from([127, 9, 9, last], daemon.port)), home);
        }
    }
    assert!(used.iter().all(|&clients| clients >= 5), "clients are spread: {used:?}");
}

#[test]
fn none_lets_the_workers_accept_and_all_of_them_do() {
    let daemon = four("none", &[]);
    let counts = load(daemon.port, 4_000, 40);
    assert_eq!(counts.iter().sum::<usize>(), 4_000);
    // Uneven by nature, but re-adding keeps the kernel from favouring one for ever.
    assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    assert_eq!(daemon.total("connections"), 4_000);
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn many_slots_all_get_their_turn() {
    let daemon = Daemon::start(&["-i", "32", "-p", "rr", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    daemon.wait_online(32);
    let slots: std::collections::BTreeSet<_> = (0..32).map(|_| slot_of(&get(daemon.port).unwrap())).collect();
    assert_eq!(slots.len(), 32);
}
