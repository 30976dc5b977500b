//! The end.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Daemon, Upstream, eventually, freeze, get, http_get, millis, read_all, roundsman, seconds};

const DEMO: [&str; 3] = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];

fn demo(arguments: &[&str]) -> Daemon {
    Daemon::start(&arguments.iter().copied().chain(DEMO).collect::<Vec<_>>())
}

#[test]
fn a_stop_is_clean_and_leaves_nothing() {
    for (policy, signal) in [("rr", Signal::SIGTERM), ("none", Signal::SIGINT)] {
        let mut daemon = demo(&["-i", "3", "-p", policy]);
        daemon.wait_online(3);
        get(daemon.port).unwrap();
        let pids: Vec<_> = daemon.slots().iter().map(|slot| slot["server_pid"].as_i64().unwrap()).collect();
        let begin = Instant::now();
        daemon.signal(signal);
        let end = daemon.finish(seconds(5));
        assert_eq!(end.code(), 0, "{}", end.log);
        assert!(begin.elapsed() < seconds(2), "nothing was open: {:?}", begin.elapsed());
        assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
        assert!(TcpStream::connect(("127.0.0.1", daemon.port)).is_err());
        assert!(!daemon.control().exists(), "the control socket is removed");
    }
}

#[test]
fn open_connections_finish_and_new_ones_are_refused() {
    for policy in ["rr", "none"] {
        let upstream = Upstream::echo();
        let mut daemon = Daemon::start(&["-i", "2", "-p", policy, "-u", &upstream.arg()]);
        let mut open: Vec<_> = (0..10).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
        for stream in &mut open {
            stream.write_all(b"a").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        daemon.signal(Signal::SIGTERM);
        eventually("the port is closed", seconds(3), || {
            TcpStream::connect(("127.0.0.1", daemon.port)).is_err().then_some(())
        });
        for stream in &mut open {
            stream.write_all(b"still here").unwrap();
            let mut word = [0; 10];
            stream.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"still here");
        }
        drop(open);
        let end = daemon.finish(seconds(3));
        assert_eq!(end.code(), 0, "{}", end.log);
    }
}

#[test]
fn a_connection_that_does_not_end_is_cut_when_the_stop_time_is_up() {
    let upstream = Upstream::echo();
    let mut daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg(), "--stop-timeout", "1s"]);
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let begin = Instant::now();
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    assert!((millis(600)..millis(1900)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert!(end.log.contains("stop time is up"), "{}", end.log);
}

#[test]
fn what_lies_in_the_backlog_is_taken() {
    for policy in ["rr", "none"] {
        let mut daemon = demo(&["-i", "1", "-p", policy, "--stall-timeout", "1h"]);
        daemon.wait_online(1);
        // A stopped worker cannot take them: they lie in its queue, in the master, in the backlog.
        let worker = Pid::from_raw(daemon.workers()[0]);
        freeze(worker.as_raw());
        let mut clients: Vec<_> = (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
                stream
            })
            .collect();
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for("draining");
        kill(worker, Signal::SIGCONT).unwrap();
        for client in &mut clients {
            client.set_read_timeout(Some(seconds(10))).unwrap();
            let answer = String::from_utf8(read_all(client).unwrap()).unwrap();
            assert!(answer.contains("hello from slot 0"), "{answer:?}");
        }
        assert_eq!(daemon.finish(seconds(10)).code(), 0);
    }
}

/// Stops a daemon under load; how many of its eight clients were cut.
fn cut_by_a_stop() -> usize {
    let mut daemon = demo(&["-i", "2"]);
    daemon.wait_online(2);
    let port = daemon.port;
    let served = [const { AtomicUsize::new(0) }; 8];
    let client = |served: &AtomicUsize| {
        // Refused is the end; whoever got through is served.
        while let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            if let Err(error) = http_get(&mut stream) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                return true;
            }
            served.fetch_add(1, SeqCst);
        }
        false
    };
    std::thread::scope(|scope| {
        let clients = served.each_ref().map(|served| scope.spawn(move || client(served)));
        let all_served = || served.iter().all(|served| served.load(SeqCst) > 10);
        eventually("the load is on", seconds(20), || all_served().then_some(()));
        assert_eq!(daemon.stop().code(), 0);
        clients.map(|client| client.join().unwrap()).iter().filter(|cut| **cut).count()
    })
}

#[test]
fn a_stop_under_load_loses_no_accepted_connection() {
    let cut: Vec<_> = (0..8).map(|_| cut_by_a_stop()).collect();
    // The instant between the last look at the backlog and the close belongs to nobody: on a busy machine a few may fall
    // into it at one of the stops.
    assert!(cut.iter().sum::<usize>() <= 8, "cut, of 8 each: {cut:?}");
}

#[test]
fn the_stop_delay_keeps_accepting() {
    let mut daemon = demo(&["-i", "1", "--stop-delay", "700ms"]);
    daemon.wait_online(1);
    let begin = Instant::now();
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("stopping");
    while begin.elapsed() < millis(400) {
        get(daemon.port).unwrap();
    }
    assert_eq!(daemon.finish(seconds(5)).code(), 0);
    assert!(begin.elapsed() >= millis(700));
}

#[test]
fn a_second_signal_ends_at_once() {
    let upstream = Upstream::echo();
    for second in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut daemon = Daemon::start(&["-i", "1", "-u", &upstream.arg()]);
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for("draining");
        // The same signal a moment later is the first one twice (timeout(1) does that).
        daemon.signal(Signal::SIGTERM);
        // That moment (250 ms) is over.
        std::thread::sleep(millis(300));
        let begin = Instant::now();
        daemon.signal(second);
        let end = daemon.finish(seconds(2));
        assert_eq!(end.code(), 128 + second as i32, "{}", end.log);
        assert!(begin.elapsed() < millis(500), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_server_that_ignores_the_stop_signal_is_killed_with_its_children() {
    let port = crate::support::free_port();
    let script = format!("trap '' TERM; python3 -m http.server {port} --bind 127.0.0.1 & while :; do wait; done");
    let upstream = format!("127.0.0.1:{port}");
    let mut daemon = Daemon::start(&["-i", "1", "-u", &upstream, "--stop-timeout", "1s", "--", "sh", "-c", &script]);
    get(daemon.port).unwrap();
    let begin = Instant::now();
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    assert!(end.log.contains("did not end within the stop time"), "{}", end.log);
    assert!(begin.elapsed() < seconds(3));
    eventually("its child is gone, too", seconds(1), || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
}

#[test]
fn stopping_before_anything_is_online_is_quick() {
    let port = crate::support::free_port().to_string();
    let mut daemon = Daemon::launch(crate::support::roundsman(), &["-l", &port, "-i", "2", "--", "sleep", "1000"], 0);
    daemon.wait_for_count("server started", 2);
    let begin = Instant::now();
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    assert!(begin.elapsed() < seconds(2), "{:?}\n{}", begin.elapsed(), end.log);
}

#[test]
fn the_signal_for_an_upgrade_does_no_harm() {
    let mut daemon = demo(&["-i", "1"]);
    daemon.wait_online(1);
    daemon.signal(Signal::SIGUSR2);
    daemon.wait_for("upgraded from=");
    get(daemon.port).unwrap();
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn files_of_sockets_go_also_when_the_stop_is_over_before_its_delay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let unix = format!("unix:{}", path.display());
    let mut daemon = Daemon::start(&["-l", &unix, "-i", "1", "--stop-delay", "1m", "-u", "127.0.0.1:1"]);
    daemon.wait_online(1);
    assert!(path.exists());
    let stopped = roundsman().arg("stop").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(stopped.status.success());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
    assert!(!path.exists());
}
