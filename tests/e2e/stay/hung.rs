//! A master that hangs keeps no server from closing its connections.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clients::answer;
use super::{keeps, launch};
use crate::support::{eventually, seconds};

#[test]
fn a_server_ends_while_the_master_hangs_and_then_its_connections_do() {
    let daemon = launch(1, &["--env", "KEEPS=hung"], &["python3", &keeps()]);
    let mut streams: Vec<_> = (0..600).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    for stream in &mut streams {
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").unwrap();
        answer(stream).unwrap();
    }
    let old = daemon.slot(0, "pid").as_i64().unwrap();
    // Its stop handler stops the master before it closes anything.
    let mut reload =
        crate::support::roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).spawn().unwrap();
    let master = daemon.pid() as i32;
    eventually("the server has given up all connections, or what could not be sent", seconds(20), || {
        let state = std::fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
        (state.is_empty() || state.contains(") Z ")).then_some(())
    });
    // What did not fit into the socket's buffer is closed; the rest waits for the master.
    let ended = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let seen = stream.read(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        matches!(seen, Ok(0))
    };
    let closed = streams.iter_mut().filter_map(|stream| ended(stream).then_some(())).count();
    kill(Pid::from_raw(master), Signal::SIGCONT).unwrap();
    assert!(reload.wait().unwrap().success(), "{}", daemon.log());
    let moved = eventually("all that were not closed have moved", seconds(20), || {
        let moved = daemon.total("moved") as usize;
        (closed + moved >= streams.len()).then_some(moved)
    });
    assert!(closed > 0 && moved > 0 && closed + moved == streams.len(), "{closed} closed, {moved} moved");
    let kept = streams.iter_mut().filter_map(|stream| {
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").ok()?;
        answer(stream).ok()
    });
    assert_eq!(kept.count(), moved);
}

#[test]
fn a_server_that_ends_its_listener_does_not_wait_for_a_master_that_hangs() {
    for how in ["close", "shutdown"] {
        let daemon = launch(1, &["--env", &format!("KEEPS=hung-{how}")], &["python3", &keeps()]);
        let old = daemon.slot(0, "pid").as_i64().unwrap();
        let mut reload =
            crate::support::roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).spawn().unwrap();
        eventually(&format!("the server has ended after {how}"), seconds(20), || {
            let state = std::fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        });
        kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGCONT).unwrap();
        assert!(reload.wait().unwrap().success(), "{}", daemon.log());
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"GET /idle HTTP/1.1\r\n\r\n").unwrap();
        answer(&mut stream).unwrap();
    }
}
