//! Clients that leave while their key or their session is waited for, and more of them than may wait.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use super::sessions::{ask, launch, make, of};
use super::{intake, relay, request};
use crate::proxy::{body, connect};
use crate::support::{Daemon, eventually, reset, roundsman, seconds};

fn refused(daemon: &Daemon, reason: &str) -> u64 {
    intake(daemon)["refused"][reason].as_u64().unwrap()
}

#[track_caller]
fn waiting(daemon: &Daemon, count: u64) {
    eventually("they wait", seconds(10), || (intake(daemon)["waiting"] == count).then_some(()));
}

fn begin(port: u16, text: &str) -> TcpStream {
    let mut client = connect(port);
    client.write_all(text.as_bytes()).unwrap();
    client
}

#[test]
fn who_resets_is_dropped_and_who_only_ends_its_side_is_served() {
    let (daemon, port, _dir) = launch(roundsman(), "direct", &["--hash-wait", "20s"], "{}");
    let mut half = begin(port, &request(&of("half"), ""));
    half.shutdown(Shutdown::Write).unwrap();
    let gone: Vec<_> = (0..5).map(|n| begin(port, &request(&of(&format!("gone-{n}")), ""))).collect();
    waiting(&daemon, 6);
    gone.into_iter().for_each(reset);
    waiting(&daemon, 1);
    assert_eq!(refused(&daemon, "client-left"), 5);
    let slot = ask(port, "/?make=half");
    assert_eq!(body(&mut half).unwrap(), slot);
    // A report of a session for which nobody waits any more.
    ask(port, "/?make=gone-1");
    assert_eq!((intake(&daemon)["keys"].as_u64(), daemon.total("connections")), (Some(1), 3));
}

#[test]
fn who_resets_before_its_head_has_come_reaches_no_worker() {
    let daemon = relay(&["-i", "2", "--hash-on", "header:X-Key"]);
    let clients: Vec<_> = (0..5).map(|_| connect(daemon.port)).collect();
    waiting(&daemon, 5);
    clients.into_iter().for_each(reset);
    waiting(&daemon, 0);
    assert_eq!((refused(&daemon, "client-left"), daemon.total("connections")), (5, 0));
}

#[test]
fn one_too_many_costs_a_key_first_and_a_session_then_and_resets_nobody() {
    // A quarter of the descriptors may wait: 32.
    let mut command = Command::new("prlimit");
    command.args(["--nofile=128:128", env!("CARGO_BIN_EXE_roundsman")]);
    let (daemon, port, _dir) = launch(command, "direct", &["--hash-wait", "20s"], "{}");
    let made = make(port, 9);
    let mut unknown: Vec<_> = (0..16).map(|n| begin(port, &request(&of(&format!("late-{n}")), ""))).collect();
    waiting(&daemon, 16);
    let mut heads: Vec<_> = (0..16).map(|_| begin(port, "GET /half")).collect();
    waiting(&daemon, 32);
    let mut more: Vec<_> = (0..24).map(|n| begin(port, &request(&of(&format!("later-{n}")), ""))).collect();
    eventually("room is made", seconds(10), || (intake(&daemon)["no_key"]["unknown-session"] == 8).then_some(()));
    assert_eq!((&intake(&daemon)["no_key"]["incomplete"], &intake(&daemon)["waiting"]), (&16.into(), &32.into()));
    for (session, slot) in &made {
        assert_eq!(ask(port, &of(session)), *slot);
    }
    for head in &mut heads {
        head.write_all(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        body(head).unwrap();
    }
    // Those that came first have gone on.
    unknown.drain(..8).for_each(|mut client| drop(body(&mut client).unwrap()));
    let slot = ask(port, "/?make=late-15");
    assert_eq!(body(&mut unknown.pop().unwrap()).unwrap(), slot);
    let slot = ask(port, "/?make=later-23");
    assert_eq!(body(&mut more.pop().unwrap()).unwrap(), slot);
    assert_eq!(refused(&daemon, "stage-full"), 0);
    drop((unknown, more));
}
