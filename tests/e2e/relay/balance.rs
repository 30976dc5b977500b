//! Who gets the next connection.

use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::support::{Daemon, Process, eventually, freeze, get, http_get, install_dir, seconds, slot_of};

/// Four slots, each with a responder of its own that names its slot.
fn four(policy: &str, more: &[&str]) -> Daemon {
    let mut arguments = vec!["-i", "4", "-p", policy];
    arguments.extend(more);
    arguments.extend(["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    let daemon = Daemon::start(&arguments);
    daemon.wait_online(4);
    daemon
}

/// `total` connections by `at_once` threads; every answer goes to `check`.
fn load(port: u16, total: usize, at_once: usize, check: impl Fn(&str) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::SeqCst) < total {
                    check(&get(port).unwrap());
                }
            });
        }
    });
}

#[test]
fn rr_one_after_the_other_goes_in_strict_turns() {
    let daemon = four("rr", &[]);
    // A worker that the machine itself held up is passed over until it is back, and gets those turns (256 at most) back as
    // seconds in a row: a rescue, which `ls` counts, explains what is out of turn in its round and in the next one.
    let (mut strict, mut rounds, mut rescued, mut quiet) = (0, 0, 0, true);
    while strict < 10 {
        let order: Vec<_> = (0..1_000).map(|_| slot_of(&get(daemon.port).unwrap())).collect();
        let out_of_turn = order.windows(2).filter(|pair| pair[1] != (pair[0] + 1) % 4).count();
        let before = std::mem::replace(&mut rescued, daemon.total("rescued"));
        if std::mem::replace(&mut quiet, rescued == before) && quiet {
            assert_eq!(out_of_turn, 0, "no rescue: {order:?}");
            strict += 1;
        }
        rounds += 1;
        assert!(rounds < 50, "only {strict} of {rounds} rounds without a rescue: {rescued}");
    }
    assert_eq!(daemon.total("connections"), rounds * 1_000);
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn rr_forty_at_a_time_reaches_all() {
    let dir = install_dir();
    let nginx = Process::nginx(dir.path());
    let daemon = Daemon::start(&["-i", "4", "-u", &format!("127.0.0.1:{}", nginx.port)]);
    daemon.wait_online(4);
    load(daemon.port, 10_000, 40, |_| ());
    let counts: Vec<_> = daemon.slots().iter().map(|slot| slot["connections"].as_u64().unwrap()).collect();
    assert_eq!(counts.iter().sum::<u64>(), 10_000);
    // Who is given a CPU serves more: turns follow the load.
    assert!(counts.iter().all(|&count| count > 1_000), "{counts:?}");
}

#[test]
fn a_stopped_worker_delays_nobody_by_more_than_the_stall_timeout() {
    let daemon = four("rr", &[]);
    let stopped = Pid::from_raw(daemon.workers()[2]);
    freeze(stopped.as_raw());
    let mut took = Vec::new();
    for _ in 0..400 {
        let begin = Instant::now();
        let slot = slot_of(&get(daemon.port).unwrap());
        took.push(begin.elapsed());
        assert_ne!(slot, 2);
    }
    let rescued = daemon.slot(2, "rescued").as_u64().unwrap();
    assert!(rescued >= 1, "the stopped worker's queue was rescued");
    // Because of it: only what was rescued may have waited, and that no longer than this. (A machine that holds up
    // a process for longer shows in the others as well.)
    took.sort();
    let of_others = took[took.len() - 1 - rescued as usize];
    let limit = Duration::from_millis(10 + 20).max(of_others + Duration::from_millis(10));
    assert!(took[399] <= limit, "slowest {:?}", &took[395..]);
    kill(stopped, Signal::SIGCONT).unwrap();
    eventually("it takes its turn again", seconds(5), || (slot_of(&get(daemon.port).unwrap()) == 2).then_some(()));
}

#[test]
fn least_conn_fills_up_whoever_has_fewest() {
    let daemon = four("least-conn", &[]);
    let connect = || TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    let mut kept: Vec<_> = (0..40).map(|_| connect()).collect();
    let open = || daemon.slots().iter().map(|slot| slot["open"].as_u64().unwrap()).collect::<Vec<_>>();
    eventually("all are received", seconds(5), || (open().iter().sum::<u64>() == 40).then_some(()));
    let spread = |open: &[u64]| open.iter().max().unwrap() - open.iter().min().unwrap();
    // A burst goes round whoever a busy machine holds up for 5 ms; what follows makes up for it.
    // (Or for 25 ms: then its whole queue goes to the others.)
    assert!(spread(&open()) <= 10 + 2 * daemon.total("rescued"), "{:?}", open());
    let mut outside = 0;
    for _ in 0..40 {
        let before = open();
        let mut stream = connect();
        let slot = slot_of(&http_get_keep(&mut stream));
        outside += u64::from(before[slot] != *before.iter().min().unwrap());
        kept.push(stream);
    }
    // A connection goes elsewhere only when it was rescued.
    assert!(outside <= daemon.total("rescued"), "{outside} did not go to the emptiest");
    assert!(spread(&open()) <= 2, "{:?}", open());
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
    let counts = Mutex::new([0; 4]);
    load(daemon.port, 4_000, 40, |body| counts.lock().unwrap()[slot_of(body)] += 1);
    let counts = counts.into_inner().unwrap();
    // Uneven by nature, but re-adding keeps the kernel from favouring one for ever.
    assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    assert_eq!(daemon.total("connections"), 4_000);
    eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
}

#[test]
fn the_master_keeps_no_connection() {
    let daemon = four("rr", &[]);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = descriptors();
    let _kept: Vec<_> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    eventually("all are handed over", seconds(5), || (daemon.total("open") == 100).then_some(()));
    eventually("nothing is kept", seconds(2), || (descriptors() <= before).then_some(()));
}

#[test]
fn many_slots_all_get_their_turn() {
    let daemon = Daemon::start(&["-i", "32", "-p", "rr", "--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"]);
    daemon.wait_online(32);
    let slots: std::collections::BTreeSet<_> = (0..32).map(|_| slot_of(&get(daemon.port).unwrap())).collect();
    assert_eq!(slots.len(), 32);
}
