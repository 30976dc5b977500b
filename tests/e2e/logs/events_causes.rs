//! `roundsman events` says why connections and workers moved: stalls, deaths, age, use; upstreams; reloads. As text, as JSON, and
//! on the page.
//! Mostly waits: tests/run runs it beside others.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::admin::streams::Page;
use crate::support::{Daemon, Upstream, eventually, free_port, freeze, get, roundsman, seconds};

const DEMO: [&str; 3] = ["--", env!("CARGO_BIN_EXE_roundsman"), "demo-server"];

/// A daemon and its admin port.
fn daemon(words: &[&str], server: &[&str]) -> (Daemon, u16) {
    let (listen, admin) = (free_port(), free_port());
    let (port, address) = (listen.to_string(), admin.to_string());
    let first = ["-l", &port, "--admin", &address, "-n", "web", "--min-uptime", "50ms"];
    let words = [&first[..], words, server].concat();
    (Daemon::launch(roundsman(), &words, listen), admin)
}

fn verb(daemon: &Daemon, words: &[&str]) -> String {
    let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The events so far, as JSON.
fn events(daemon: &Daemon) -> Vec<Value> {
    verb(daemon, &["events", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for an event of this kind for which `wanted` holds.
#[track_caller]
fn event(daemon: &Daemon, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(kind, seconds(30), || events(daemon).into_iter().find(|event| event["event"] == kind && wanted(event)))
}

/// The same event as text, and on the page.
#[track_caller]
fn shown(daemon: &Daemon, admin: u16, event: &Value) -> String {
    let number = event["number"].as_u64().unwrap();
    let json = events(daemon);
    let at = json.iter().position(|event| event["number"] == number).unwrap();
    let text = verb(daemon, &["events"]);
    let line = text.lines().nth(at).unwrap();
    let message = event["message"].as_str().unwrap();
    let place = event["slot"].as_u64().map_or("web".to_owned(), |slot| format!("web/{slot}"));
    assert!(line.contains(&format!("Z {place} {message}")), "{line}: {event}");
    let on_page = Page::open(admin, "").next("log", |log| (log["number"] == number).then(|| log.clone()));
    assert!(on_page["text"].as_str().unwrap().starts_with(message), "{on_page}");
    assert_eq!((&on_page["slot"], &on_page["service"]), (&event["slot"], &"web".into()));
    line.to_owned()
}

/// Clients that have asked, and wait for their answers.
fn clients(daemon: &Daemon, count: usize) -> Vec<TcpStream> {
    let one = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream
    };
    (0..count).map(one).collect()
}

fn answered(clients: Vec<TcpStream>) {
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("hello from slot"), "{answer:?}");
    }
}

#[test]
fn a_stalled_worker_and_the_rescue_of_its_queue_are_events_with_their_count() {
    let (daemon, admin) = daemon(&["-i", "2"], &DEMO);
    daemon.wait_online(2);
    freeze(daemon.workers()[0]);
    let clients = clients(&daemon, 10);
    let stalled = event(&daemon, "worker-stalled", |event| event["slot"] == 0);
    let rescued = event(&daemon, "rescued", |event| event["slot"] == 0);
    assert!(stalled["number"].as_u64() < rescued["number"].as_u64());
    let count = rescued["fields"]["count"].as_u64().unwrap();
    assert!((1..=10).contains(&count) && count <= daemon.slot(0, "rescued").as_u64().unwrap(), "{rescued}");
    shown(&daemon, admin, &stalled);
    assert!(shown(&daemon, admin, &rescued).ends_with(&format!(" count={count}")));
    answered(clients);
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGCONT).unwrap();
}

#[test]
fn what_a_killed_worker_had_not_received_is_an_event_with_its_count() {
    let (daemon, admin) = daemon(&["-i", "2", "--stall-timeout", "1h"], &DEMO);
    daemon.wait_online(2);
    let victim = daemon.workers()[0];
    freeze(victim);
    let clients = clients(&daemon, 20);
    let pending = eventually("some are pending", seconds(10), || {
        daemon.slot(0, "pending").as_u64().filter(|&pending| pending > 0)
    });
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let rescued = event(&daemon, "rescued", |event| event["slot"] == 0);
    assert_eq!(rescued["fields"]["count"], pending, "{rescued}");
    assert!(shown(&daemon, admin, &rescued).ends_with(&format!(" count={pending}")));
    let exited = event(&daemon, "worker-exited", |event| event["pid"] == victim);
    assert!(shown(&daemon, admin, &exited).contains(" status=\"killed by SIGKILL\""), "{exited}");
    answered(clients);
}

#[test]
fn workers_that_are_replaced_for_their_age_or_use_say_so() {
    let limits = ["--max-served", "3", "--max-age", "1s", "--recycle-jitter", "0%"];
    for (words, reason) in [(&limits[..2], "--max-served 3"), (&limits[2..], "--max-age 1s")] {
        let (daemon, admin) = daemon(&[&["-i", "1"], words].concat(), &DEMO);
        daemon.wait_online(1);
        (0..3).for_each(|_| drop(get(daemon.port).unwrap()));
        let recycling = event(&daemon, "recycling", |_| true);
        assert_eq!((&recycling["fields"]["reason"], &recycling["slot"]), (&reason.into(), &0.into()));
        assert!(shown(&daemon, admin, &recycling).contains(&format!(" reason=\"{reason}\"")));
        // What came of it: a successor, and then the end of the old one, which the event names.
        event(&daemon, "worker-stopped", |event| event["pid"] == recycling["pid"]);
        let online = events(&daemon).iter().filter(|event| event["event"] == "worker-online").count();
        assert!(online >= 2, "{online}");
    }
}

#[test]
fn an_upstream_that_goes_and_comes_is_two_events() {
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    drop(first);
    let other = Upstream::echo();
    let (daemon, admin) = daemon(&["-i", "1", "-u", &other.arg(), "-u", &address.to_string()], &[]);
    daemon.wait_online(1);
    let ask = || drop(TcpStream::connect(("127.0.0.1", daemon.port)).and_then(|mut client| client.write_all(b"x")));
    eventually("it was found to be down", seconds(20), || {
        ask();
        verb(&daemon, &["events"]).contains("upstream down").then_some(())
    });
    let down = event(&daemon, "upstream-down", |_| true);
    assert_eq!(down["fields"]["upstream"], address.to_string());
    assert!(shown(&daemon, admin, &down).contains(&format!(" upstream={address}")));
    let _again = TcpListener::bind(address).unwrap();
    eventually("it was found to be up", seconds(30), || {
        ask();
        verb(&daemon, &["events"]).contains("upstream up").then_some(())
    });
    let up = event(&daemon, "upstream-up", |_| true);
    assert_eq!(up["fields"]["upstream"], address.to_string());
    shown(&daemon, admin, &up);
}

#[test]
fn each_step_of_a_reload_is_an_event() {
    let (daemon, admin) = daemon(&["-i", "2"], &DEMO);
    daemon.wait_online(2);
    verb(&daemon, &["reload"]);
    let mut steps = BTreeMap::new();
    for done in [1, 2] {
        let step = event(&daemon, "reload-step", |event| event["fields"]["done"] == done);
        assert_eq!(step["fields"]["of"], 2);
        assert!(shown(&daemon, admin, &step).contains(&format!(" done={done} of=2")));
        steps.insert(step["slot"].as_u64().unwrap(), step["number"].as_u64().unwrap());
    }
    assert_eq!(steps.keys().copied().collect::<Vec<_>>(), [0, 1]);
    let over = event(&daemon, "reloaded", |_| true);
    shown(&daemon, admin, &over);
    assert!(steps.values().all(|&step| step < over["number"].as_u64().unwrap()));
}
