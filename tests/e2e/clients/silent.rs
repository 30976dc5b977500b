//! `--first-byte-timeout`: clients that say nothing.
//! Mostly waits: tests/run runs it beside others.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{REQUEST, answered, ask, from, intake, refused, start};
use crate::proxy::v1;
use crate::support::{Daemon, eventually, install_dir, millis, roundsman, seconds};

#[test]
fn who_says_nothing_in_time_reaches_no_worker() {
    for (via, policy) in [("relay", "rr"), ("direct", "least-conn")] {
        let options =
            ["--via", via, "-p", policy, "-i", "1", "--first-byte-timeout", "1500ms", "--proxy-from", "127.0.0.9"];
        let daemon = start("127.0.0.1", &options);
        daemon.wait_online(1);
        let begin = Instant::now();
        let silent: Vec<_> = (0..50).map(|_| from("127.0.0.1", daemon.port)).collect();
        // The first byte is the one behind the header.
        let mut behind = from("127.0.0.9", daemon.port);
        behind.write_all(&v1("192.0.2.1", "203.0.113.1")).unwrap();
        eventually("all wait", seconds(10), || (intake(&daemon)["waiting"] == 51).then_some(()));
        assert_eq!(daemon.total("connections"), 0, "{via}");
        // Others are served meanwhile, also one that takes its time, and one whose first byte is all for a while.
        ask(from("127.0.0.1", daemon.port), b"").unwrap();
        ask(from("127.0.0.9", daemon.port), &v1("192.0.2.1", "203.0.113.1")).unwrap();
        let mut slow = from("127.0.0.1", daemon.port);
        std::thread::sleep(millis(200));
        slow.write_all(&REQUEST[..1]).unwrap();
        eventually("it has a worker", seconds(10), || (daemon.total("connections") == 3).then_some(()));
        slow.write_all(&REQUEST[1..]).unwrap();
        answered(slow).unwrap();
        // Nothing, and then the end.
        let mut gone = from("127.0.0.1", daemon.port);
        gone.shutdown(Shutdown::Write).unwrap();
        assert_eq!(gone.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{via}");
        for mut client in silent.into_iter().chain([behind]) {
            assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{via}");
        }
        assert!(begin.elapsed() >= Duration::from_millis(1500), "{:?}", begin.elapsed());
        eventually("all are counted", seconds(10), || (refused(&daemon, "first-byte-timeout") == 51).then_some(()));
        assert_eq!((refused(&daemon, "client-left"), daemon.total("connections")), (1, 3), "{via}");
        daemon.wait_for("they sent nothing within --first-byte-timeout");
    }
}

#[test]
fn at_a_stop_they_keep_their_time() {
    let mut daemon = start("127.0.0.1", &["--via", "direct", "-i", "1", "--first-byte-timeout", "2s"]);
    daemon.wait_online(1);
    let (mut late, mut silent) = (from("127.0.0.1", daemon.port), from("127.0.0.1", daemon.port));
    eventually("both wait", seconds(10), || (intake(&daemon)["waiting"] == 2).then_some(()));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("stopping");
    late.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    drop(answered(late).unwrap());
    assert_eq!(silent.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
}

#[test]
fn it_holds_for_unix_sockets_which_have_no_address_to_be_denied() {
    let dir = install_dir();
    let path = dir.path().join("web.sock");
    let listen = format!("unix:{}", path.display());
    let options = ["-l", &listen, "-l", "127.0.0.1:0", "--via", "relay", "-i", "1", "--allow", "192.0.2.0/24"];
    let server = [env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
    let all =
        [&options[..], &["--source-conns", "1", "--first-byte-timeout", "1s", "--", server[0], server[1]]].concat();
    let daemon = Daemon::launch(roundsman(), &all, 0);
    daemon.wait_online(1);
    let mut silent = UnixStream::connect(&path).unwrap();
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("hello from slot 0"), "{answer}");
            client
        })
        .collect();
    silent.set_read_timeout(Some(seconds(20))).unwrap();
    assert!(matches!(silent.read(&mut [0]), Ok(0)));
    assert_eq!((refused(&daemon, "first-byte-timeout"), refused(&daemon, "source-conns")), (1, 0));
    drop(held);
}
