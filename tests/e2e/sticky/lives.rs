//! Keys while workers die, are drained, replaced, stuck.

use std::io::Write;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{answer, relay, request, send};
use crate::proxy::connect;
use crate::support::{Daemon, eventually, freeze, roundsman, seconds};

const KEYS: usize = 24;

fn homes(daemon: &Daemon) -> Vec<usize> {
    (0..KEYS).map(|key| answer(&mut send(daemon.port, &key.to_string()))).collect()
}

/// Only keys of this slot have moved, and all of them.
fn only_moved(slot: usize, before: &[usize], after: &[usize]) {
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before == after, *before != slot, "{before} {after}");
    }
}

#[test]
fn only_the_keys_of_a_slot_that_leaves_move() {
    let daemon = relay(&["-i", "4", "--hash-on", "header:X-Key", "--backoff", "20s..20s"]);
    let before = homes(&daemon);
    let verb = |words: &[&str]| {
        let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let name = daemon.ls()["services"][0]["name"].as_str().unwrap().to_owned();
    verb(&["drain", &format!("{name}/1")]);
    only_moved(1, &before, &homes(&daemon));
    verb(&["undrain", &format!("{name}/1")]);
    assert_eq!(homes(&daemon), before);
    verb(&["reload", &name]);
    assert_eq!(homes(&daemon), before, "after a reload");
    kill(Pid::from_raw(daemon.slot(2, "server_pid").as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    eventually("it is known", seconds(20), || (daemon.slot(2, "state") != "online").then_some(()));
    only_moved(2, &before, &homes(&daemon));
}

/// Connections of one key that are taken back from a worker all go to the same other one.
#[test]
fn a_rescued_connection_still_has_its_key() {
    for end in [Signal::SIGCONT, Signal::SIGKILL] {
        let daemon = relay(&["-i", "4", "--hash-on", "header:X-Key", "--hash-wait", "300ms"]);
        let before = homes(&daemon);
        let own = before[0];
        let victim = daemon.workers()[own];
        freeze(victim);
        let mut clients: Vec<TcpStream> = (0..12).map(|_| send(daemon.port, "0")).collect();
        eventually("a rescue", seconds(20), || (daemon.slot(own, "rescued") == 12).then_some(()));
        let slots: Vec<_> = clients.iter_mut().map(answer).collect();
        assert_eq!(slots, [slots[0]; 12], "the next in the order of the hash");
        assert_ne!(slots[0], own);
        kill(Pid::from_raw(victim), end).unwrap();
    }
}

#[test]
fn clients_held_while_no_worker_is_alive_are_served_and_keys_are_back_where_they_were() {
    let daemon = relay(&["-i", "3", "--hash-on", "header:X-Key", "--backoff", "2s..2s"]);
    let before = homes(&daemon);
    let pid = |slot| Pid::from_raw(daemon.slot(slot, "server_pid").as_i64().unwrap() as i32);
    (0..3).map(pid).collect::<Vec<_>>().into_iter().for_each(|pid| kill(pid, Signal::SIGKILL).unwrap());
    // What a relay worker has received by then goes with its server.
    let none_is_online = || (0..3).all(|slot| daemon.slot(slot, "state") != "online");
    eventually("all are known to be dead", seconds(20), || none_is_online().then_some(()));
    let mut clients: Vec<_> = (0..KEYS).map(|key| send(daemon.port, &key.to_string())).collect();
    eventually("all are held", seconds(10), || (daemon.ls()["services"][0]["held"] == KEYS).then_some(()));
    for client in &mut clients {
        answer(client);
    }
    daemon.wait_online(3);
    assert_eq!(homes(&daemon), before);
}

/// A stop lets those finish that are still sending their head.
#[test]
fn a_stop_serves_those_that_are_sending_their_head() {
    let mut daemon = relay(&["-i", "2", "--hash-on", "header:X-Key"]);
    let request = request("/", "X-Key: a\r\n");
    let (begin, rest) = request.split_at(20);
    let mut client = connect(daemon.port);
    client.write_all(begin.as_bytes()).unwrap();
    eventually("it waits", seconds(10), || (super::intake(&daemon)["waiting"] == 1).then_some(()));
    daemon.signal(Signal::SIGTERM);
    eventually("it stops", seconds(10), || daemon.ls()["stopping"].as_bool().filter(|stopping| *stopping));
    client.write_all(rest.as_bytes()).unwrap();
    answer(&mut client);
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
}
