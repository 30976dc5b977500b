//! `drain` and `undrain` of an upstream.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::verbs::{ask, done, refused};
use crate::support::{Daemon, Upstream, eventually, free_port, install_dir, millis, roundsman, seconds, write_file};

/// Says its name, a letter, to each byte.
fn named(name: u8) -> Upstream {
    Upstream::start(move |mut stream| {
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&[name])?;
        }
        Ok(())
    })
}

/// Who is at the other end.
fn whose(mut stream: &TcpStream) -> u8 {
    let mut name = [0];
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut name).unwrap();
    name[0]
}

fn connect(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(("127.0.0.1", daemon.port)).unwrap()
}

/// How many of 40 connections, one after the other, the upstream of that name gets.
fn share(daemon: &Daemon, name: u8) -> usize {
    (0..40).filter(|_| whose(&connect(daemon)) == name).count()
}

fn upstream(daemon: &Daemon, at: usize) -> Value {
    daemon.ls()["services"][0]["upstreams"][at].clone()
}

#[test]
fn a_drained_upstream_keeps_what_is_open_and_gets_nothing_new_until_undrain() {
    for policy in ["rr", "least-conn", "ip-hash", "none"] {
        let (dir, port, all) = (install_dir(), free_port(), [named(b'a'), named(b'b')]);
        let [a, b] = all.each_ref().map(Upstream::arg);
        let text = format!(
            "[service.px]\nlisten = '127.0.0.1:{port}'\ninstances = 2\npolicy = '{policy}'\nupstream = ['{a}', '{b}']\n"
        );
        let file = write_file(dir.path(), "px.toml", &text);
        let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
        daemon.wait_for_count("worker online", 2);
        let place = format!("px@{a}");
        let drained = |marked: bool| {
            let (a, b) = (upstream(&daemon, 0), upstream(&daemon, 1));
            assert_eq!((a["drain"].as_bool(), b["drain"].as_bool()), (marked.then_some(true), None), "{policy}");
            assert_eq!(a["state"], "up");
        };
        done(&daemon, &["weight", &place, "3"], "weight 3, before 1");
        let open = std::iter::repeat_with(|| connect(&daemon)).find(|open| whose(open) == b'a').unwrap();
        eventually("only that one is open", seconds(10), || (upstream(&daemon, 0)["open"] == 1).then_some(()));
        done(&daemon, &["drain", &place], &format!("draining upstream {a}; connections open: 1"));
        drained(true);
        assert_eq!((share(&daemon, b'a'), whose(&open)), (0, b'a'), "{policy}");
        assert!(ask(&daemon, &["ls", "px"]).1.contains("draining"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| done(&daemon, &["drain", "--wait", &place], "draining upstream"));
            std::thread::sleep(millis(300));
            assert!(!waiting.is_finished());
            assert_eq!(whose(&open), b'a', "{policy}");
            drop(open);
        });
        let shown = ask(&daemon, &["ls", "px"]).1;
        assert!(shown.contains("drained") && shown.contains("weight=3"), "{shown}");
        // The mark is beside the weight, and stays over a reload.
        done(&daemon, &["weight", &place, "4"], "weight 4, before 3; it is drained");
        assert_eq!(share(&daemon, b'a'), 0, "{policy}");
        done(&daemon, &["reload"], "reloaded");
        drained(true);
        assert_eq!(share(&daemon, b'a'), 0, "{policy}");
        done(&daemon, &["undrain", &place], &format!("upstream {a} takes connections again"));
        drained(false);
        let restored = share(&daemon, b'a');
        assert!((29..=35).contains(&restored), "{policy}: {restored} of 40 with weight 4 beside 1");
        done(&daemon, &["undrain", &place], &format!("upstream {a} was not drained"));
    }
}

#[test]
fn draining_the_last_upstream_needs_force_and_its_clients_wait_for_undrain() {
    let all = [named(b'a'), named(b'b')];
    let [a, b] = all.each_ref().map(Upstream::arg);
    // An address that is given twice is drained as one.
    let daemon = Daemon::start(&["-n", "px", "-i", "2", "-u", &format!("{a},{b},{a}")]);
    daemon.wait_online(2);
    let [of_a, of_b] = [&a, &b].map(|address| format!("px@{address}"));
    done(&daemon, &["drain", &of_a], "draining");
    assert!([0, 2].iter().all(|&at| upstream(&daemon, at)["drain"] == true));
    refused(&daemon, &["drain", &of_b], 1, &format!("{b} is the last upstream that takes connections"));
    refused(&daemon, &["weight", &of_b, "0"], 1, "is the last upstream that takes connections");
    done(&daemon, &["drain", &of_a], "draining");
    for verb in ["drain", "undrain"] {
        refused(&daemon, &[verb, "px@10.0.0.5:6379"], 1, &format!("no upstream \"10.0.0.5:6379\"; here are {a}, {b}"));
        refused(&daemon, &[verb, "px@"], 1, &format!("here are {a}, {b}"));
        refused(&daemon, &[verb, &format!("nosuch@{a}")], 1, "there is no service \"nosuch\"");
    }
    refused(&daemon, &["drain", "px"], 2, "or which upstream: px@10.0.0.5:6379");
    done(&daemon, &["drain", "--force", &of_b], "draining");
    refused(&daemon, &["health"], 1, "px: all upstreams are drained");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| whose(&connect(&daemon)))).collect();
        let waiting = || daemon.ls()["services"][0]["waiting_for_upstream"] == 4;
        eventually("they wait", seconds(10), || waiting().then_some(()));
        done(&daemon, &["undrain"], "2 upstreams take connections again");
        clients.into_iter().for_each(|client| assert!(b"ab".contains(&client.join().unwrap())));
    });
    done(&daemon, &["health"], "2 of 2 online");
    done(&daemon, &["drain", "px/0", &of_a], "px: draining upstream");
    done(&daemon, &["undrain"], &format!("slot 0 takes connections again; upstream {a} takes connections again"));
    done(&daemon, &["undrain"], "no slot was drained, and no upstream");
}
