//! `drain` and `undrain` of a slot.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::reload::{app, daemon, under_load};
use super::verbs::{ask, done};
use crate::support::{Daemon, Upstream, eventually, get, install_dir, millis, roundsman, seconds};

/// The slot that answers on an open connection.
fn answer(mut stream: &TcpStream) -> usize {
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("pid ") {
        let mut buffer = [0; 2048];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed");
        text.extend(&buffer[..count]);
    }
    slot_of(&String::from_utf8_lossy(&text))
}

fn slot_of(text: &str) -> usize {
    text.split_once(" slot ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
}

/// The slots that so many new connections, open at the same time, reach.
fn reached(daemon: &Daemon, count: usize) -> Vec<usize> {
    let open: Vec<_> = (0..count).map(|_| TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()).collect();
    let mut slots: Vec<_> = open.iter().map(answer).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

#[test]
fn a_drained_slot_keeps_what_is_open_and_gets_nothing_new_until_undrain() {
    for (via, policy) in [("direct", "rr"), ("relay", "ip-hash"), ("direct", "least-conn")] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "3", via, &["-n", "web", "--policy", policy]);
        let open = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        let at = answer(&open);
        let place = format!("web/{at}");
        let serves = |drained: bool| match drained {
            true => assert!(!reached(&daemon, 12).contains(&at), "{via} {policy}"),
            // Right after its start one may be passed over.
            false => eventually("it is reached", seconds(10), || reached(&daemon, 12).contains(&at).then_some(())),
        };
        serves(false);
        under_load(daemon.port, 5, || {
            done(&daemon, &["drain", &place], &format!("draining slot {at}; connections open: "))
        });
        serves(true);
        assert_eq!(answer(&open), at, "{via} {policy}");
        assert_eq!((daemon.slot(at, "drain"), daemon.slot(at, "state")), (true.into(), "online".into()));
        assert!(ask(&daemon, &["ls"]).1.contains("draining"));
        done(&daemon, &["drain", &place], "draining slot");
        // --wait returns when the connection has ended.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| done(&daemon, &["drain", "--wait", &place], "draining slot"));
            std::thread::sleep(millis(300));
            assert!(!waiting.is_finished());
            drop(open);
        });
        assert!(ask(&daemon, &["ls"]).1.contains("drained"));
        // The mark is the slot's, not the worker's.
        done(&daemon, &["reload", &place], "reloaded");
        serves(true);
        done(&daemon, &["restart", &place], "restarted");
        serves(true);
        let (pid, generation) = (daemon.workers()[at], daemon.slot(at, "generation"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("another one is online", seconds(20), || {
            (daemon.slot(at, "generation") != generation && daemon.slot(at, "state") == "online").then_some(())
        });
        serves(true);
        under_load(daemon.port, 5, || {
            done(&daemon, &["undrain", &place], &format!("slot {at} takes connections again"))
        });
        serves(false);
        assert_eq!(daemon.slot(at, "drain"), serde_json::Value::Null);
    }
}

#[test]
fn draining_the_last_one_needs_force_and_its_clients_wait_for_undrain() {
    let dir = install_dir();
    app(dir.path(), "one", "");
    let daemon = daemon(dir.path(), "2", "relay", &["-n", "web", "--queue-timeout", "20s"]);
    done(&daemon, &["drain", "web/0"], "draining");
    let (code, text) = ask(&daemon, &["drain", "web/1"]);
    assert!(code == 1 && text.contains("slot 1 is the last of web that takes connections; with --force"), "{text}");
    // One that is drained already is not the last one.
    done(&daemon, &["drain", "web/0"], "draining");
    done(&daemon, &["health"], "2 of 2 online");
    done(&daemon, &["drain", "--force", "web/1"], "draining");
    let (code, text) = ask(&daemon, &["health"]);
    assert!(code == 1 && text.contains("all workers that are online are drained"), "{text}");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..5).map(|_| scope.spawn(|| get(daemon.port).unwrap())).collect();
        eventually("they wait", seconds(10), || (daemon.ls()["services"][0]["held"] == 5).then_some(()));
        done(&daemon, &["undrain"], "2 slots take connections again");
        assert!(clients.into_iter().all(|client| client.join().unwrap().starts_with("release")));
    });
    done(&daemon, &["undrain", "web/1"], "slot 1 was not drained");
    // A slot that comes later in its place is not drained, and others keep their marks.
    done(&daemon, &["drain", "web/1"], "draining");
    done(&daemon, &["scale", "1"], "1 slot");
    done(&daemon, &["scale", "3"], "3 slots");
    eventually("all are reached", seconds(10), || (reached(&daemon, 12) == [0, 1, 2]).then_some(()));
    done(&daemon, &["drain", "web/0", "web/2"], "web: draining slot 2");
    done(&daemon, &["scale", "+1"], "4 slots");
    eventually("the two others are reached", seconds(10), || {
        let reached = reached(&daemon, 12);
        assert!(!reached.contains(&0) && !reached.contains(&2), "{reached:?}");
        (reached == [1, 3]).then_some(())
    });
    // The slots that would be left take no connections.
    for (words, cure) in [(&["undrain"][..], "undrain web/0"), (&["weight", "web/0", "1"], "weight web/0 1")] {
        let (code, text) = ask(&daemon, &["scale", "1"]);
        let says = format!("1 slot of web would be left, and none that takes connections; first: roundsman {cure}");
        assert!(code == 1 && text.contains(&says), "{text}");
        assert_eq!(daemon.slots().len(), 4);
        done(&daemon, words, "");
        if words == ["undrain"] {
            done(&daemon, &["scale", "2"], "2 slots");
            done(&daemon, &["scale", "4"], "4 slots");
            done(&daemon, &["weight", "web/0", "0"], "weight 0");
        }
    }
    done(&daemon, &["scale", "1"], "1 slot");
    assert_eq!(reached(&daemon, 3), [0]);
}

#[test]
fn undrain_restores_the_weight_that_was_set() {
    let dir = install_dir();
    app(dir.path(), "one", "");
    let daemon = daemon(dir.path(), "2", "direct", &["-n", "web", "--slow-start", "500ms"]);
    let share = || (0..60).filter(|_| slot_of(&get(daemon.port).unwrap()) == 1).count();
    let warm = |least: usize| {
        eventually("its share is that of its weight", seconds(20), || (least..=54).contains(&share()).then_some(()))
    };
    done(&daemon, &["weight", "web/1", "5"], "slot 1: weight 5, before 1");
    for again in [None, Some("reload"), Some("restart")] {
        done(&daemon, &["drain", "web/1"], "draining");
        assert_eq!((share(), daemon.slot(1, "weight")), (0, 5.into()));
        if let Some(verb) = again {
            done(&daemon, &[verb], "2 slots");
            assert_eq!((share(), daemon.slot(1, "weight")), (0, 5.into()), "{verb}");
        }
        done(&daemon, &["undrain", "web/1"], "slot 1 takes connections again");
        warm(46);
        assert_eq!(daemon.slot(1, "weight"), 5);
    }
    // Without a weight there is nothing to restore.
    done(&daemon, &["weight", "web/1", "0"], "weight 0");
    done(&daemon, &["drain", "web/1"], "draining");
    done(&daemon, &["undrain"], "slot 1 takes connections again");
    assert_eq!(share(), 0);
}

#[test]
fn what_cannot_be_drained_is_refused_with_the_reason() {
    let upstream = Upstream::echo();
    let none = Daemon::start(&["-n", "web", "-i", "2", "--policy", "none", "-u", &upstream.arg()]);
    let job = ["-n", "web", "--no-listen", "-i", "2", "--", "sleep", "1000"];
    let job = Daemon::launch(roundsman(), &job, 0);
    job.wait_online(2);
    let rr = Daemon::start(&["-n", "web", "-i", "2", "-u", &upstream.arg()]);
    rr.wait_online(2);
    for (daemon, words, code, says) in [
        (&none, vec!["drain", "web/0"], 1, "with --policy none the workers of web take connections themselves"),
        (&job, vec!["drain", "web/0"], 1, "web serves no port"),
        (&rr, vec!["drain"], 2, "NAME/SLOT"),
        (
            &rr,
            vec!["drain", "web"],
            2,
            "say which slot: web/0; or which upstream: web@10.0.0.5:6379; to stop all workers: roundsman stop web",
        ),
        (&rr, vec!["drain", "web/2"], 1, "web has no slot 2; it has slots 0 to 1"),
        (&rr, vec!["undrain", "web/99"], 1, "web has no slot 99; it has slots 0 to 1"),
        (&rr, vec!["drain", "web/x"], 2, "'x' is not a slot of web: web/0"),
        (&rr, vec!["undrain", "web/-1"], 2, "'-1' is not a slot of web"),
        (&rr, vec!["undrain", "nosuch/0"], 1, "there is no service \"nosuch\""),
        (&rr, vec!["undrain"], 0, "no slot was drained"),
    ] {
        let (found, text) = ask(daemon, &words);
        assert!(found == code && text.contains(says), "{words:?}: {found} {text}");
    }
}
