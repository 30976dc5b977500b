//! `weight` of slots and of upstreams.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::verbs::{ask, done, refused};
use crate::support::{
    Daemon, Upstream, eventually, free_port, get, install_dir, read_all, roundsman, seconds, slot_of, write_file,
};

/// What each slot gets of 100 connections, one after the other.
fn counts(daemon: &Daemon) -> [usize; 3] {
    let mut counts = [0; 3];
    (0..100).for_each(|_| counts[slot_of(&get(daemon.port).unwrap())] += 1);
    counts
}

/// Clients that go on while `act` runs; all must be served.
fn under_load(port: u16, clients: usize, act: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = || {
            while !over.load(SeqCst) {
                slot_of(&get(port).unwrap());
            }
        };
        (0..clients).for_each(|_| drop(scope.spawn(client)));
        act();
        over.store(true, SeqCst);
    });
}

fn three(policy: &str) -> Daemon {
    let server = env!("CARGO_BIN_EXE_roundsman");
    let daemon =
        Daemon::start(&["-i", "3", "-p", policy, "-n", "web", "--min-uptime", "0s", "--", server, "demo-server"]);
    daemon.wait_online(3);
    daemon
}

#[test]
fn a_slots_weight_changes_under_load_and_stays_with_the_slot() {
    for policy in ["rr", "least-conn"] {
        let daemon = three(policy);
        under_load(daemon.port, 5, || done(&daemon, &["weight", "web/1", "0"], "slot 1: weight 0, before 1"));
        assert_eq!(counts(&daemon)[1], 0, "{policy}");
        under_load(daemon.port, 5, || done(&daemon, &["weight", "web/1", "3"], "slot 1: weight 3, before 0"));
        let heavy = || {
            let counts = counts(&daemon);
            assert!((52..=68).contains(&counts[1]), "{policy}: {counts:?}");
        };
        heavy();
        assert_eq!(daemon.slot(1, "weight"), 3);
        assert!(ask(&daemon, &["ls"]).1.contains("web slot 1: weight 3"));
        if policy == "least-conn" {
            continue;
        }
        done(&daemon, &["restart", "web/1"], "restarted");
        heavy();
        done(&daemon, &["reload"], "reloaded");
        heavy();
        let (pid, generation) = (daemon.workers()[1], daemon.slot(1, "generation"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("another one is online", seconds(20), || {
            (daemon.slot(1, "generation") != generation && daemon.slot(1, "state") == "online").then_some(())
        });
        heavy();
        // A drain is a mark beside it.
        done(&daemon, &["drain", "web/1"], "draining");
        assert_eq!(counts(&daemon)[1], 0, "{policy}");
        done(&daemon, &["weight", "web/1", "2"], "slot 1: weight 2, before 3; it is drained");
        assert_eq!(counts(&daemon)[1], 0, "{policy}");
        done(&daemon, &["undrain", "web/1"], "takes connections again");
        let mixed = counts(&daemon);
        assert!((42..=58).contains(&mixed[1]), "{policy}: {mixed:?}");
        // One that is scaled away and comes back is another one.
        done(&daemon, &["weight", "web/2", "9"], "weight 9");
        done(&daemon, &["scale", "2"], "");
        done(&daemon, &["scale", "3"], "");
        assert_eq!(daemon.slot(2, "weight"), 1);
        assert_eq!(daemon.total("open"), 0);
    }
}

#[test]
fn mistakes_are_named() {
    let daemon = three("ip-hash");
    for (words, code, says) in [
        (&["weight", "web/9", "1"][..], 1, "web has no slot 9; it has slots 0 to 2"),
        (&["weight", "web/0", "257"], 2, "0 to 256"),
        (&["weight", "web/0", "-1"], 2, "0 to 256"),
        (&["weight", "web/0", "much"], 2, "0 to 256"),
        (&["weight", "3", "web/0"], 2, "did you mean: roundsman weight web/0 3?"),
        (&["weight", "web", "1"], 2, "say which slot or upstream"),
        (&["weight", "web/x", "1"], 2, ""),
        (&["weight", "web@10.0.0.5:6379", "1"], 1, "web has no upstreams"),
        (&["weight", "web/0"], 2, ""),
    ] {
        refused(&daemon, words, code, says);
    }
    done(&daemon, &["weight", "web/0", "0"], "weight 0");
    done(&daemon, &["weight", "web/1", "0"], "weight 0");
    refused(&daemon, &["weight", "web/2", "0"], 1, "slot 2 is the last of web that takes connections; with --force");
    assert_eq!(slot_of(&get(daemon.port).unwrap()), 2);
    done(&daemon, &["weight", "web/2", "0", "--force"], "weight 0");
    refused(&daemon, &["health"], 1, "drained");
    // The client waits until somebody gets a weight again.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| slot_of(&get(daemon.port).unwrap()));
        eventually("it waits", seconds(10), || (daemon.ls()["services"][0]["held"] == 1).then_some(()));
        done(&daemon, &["weight", "web/0", "1"], "weight 1");
        assert_eq!(waiting.join().unwrap(), 0);
    });
    let none = three("none");
    refused(&none, &["weight", "web/0", "1"], 1, "with --policy none");
}

fn named(name: &'static str) -> Upstream {
    Upstream::start(move |mut stream| stream.write_all(name.as_bytes()))
}

/// How many of 100 connections, one after the other, the upstream of that name gets.
fn share(port: u16, name: &str) -> usize {
    let one = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // Its end first: otherwise a worker that runs late would still have the connection open at the next one.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        String::from_utf8(read_all(&mut stream).unwrap()).unwrap()
    };
    (0..100).filter(|_| one() == name).count()
}

#[test]
fn an_upstreams_weight_holds_until_the_file_has_another_one() {
    let (dir, port) = (install_dir(), free_port());
    let all = [named("a"), named("b")];
    let [a, b] = all.each_ref().map(Upstream::arg);
    let write = |of_a: u32, of_b: u32| {
        let upstreams = format!("[{{ addr = '{a}', weight = {of_a} }}, {{ addr = '{b}', weight = {of_b} }}]");
        let text = format!(
            "[service.px]\nlisten = '127.0.0.1:{port}'\ninstances = 2\nmin-uptime = '0s'\nupstream = {upstreams}\n"
        );
        write_file(dir.path(), "px.toml", &text)
    };
    let file = write(1, 1);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    daemon.wait_for_count("worker online", 2);
    let of_a = format!("px@{a}");
    let is = |least: usize, most: usize| {
        let share = share(port, "a");
        assert!((least..=most).contains(&share), "{share} of 100, not {least} to {most}");
    };
    is(40, 60);
    done(&daemon, &["weight", &of_a, "4"], &format!("upstream {a}: weight 4, before 1"));
    is(70, 90);
    done(&daemon, &["reload"], "reloaded");
    is(70, 90);
    // The other one's changes, its own does not.
    write(1, 4);
    done(&daemon, &["reload"], "reloaded");
    is(40, 60);
    write(2, 4);
    done(&daemon, &["reload"], "reloaded");
    is(23, 43);
    assert_eq!(daemon.ls()["services"][0]["upstreams"][0]["weight"], 2);
    assert!(ask(&daemon, &["ls", "px"]).1.contains(&format!("{a} weight=2")));
    done(&daemon, &["weight", &of_a, "0"], "weight 0");
    is(0, 0);
    refused(&daemon, &["weight", &format!("px@{b}"), "0"], 1, "is the last upstream that takes connections");
    refused(&daemon, &["weight", "px@10.0.0.5:6379", "1"], 1, &format!("here are {a}, {b}"));
    done(&daemon, &["weight", "px/0", "2"], "slot 0: weight 2");
}
