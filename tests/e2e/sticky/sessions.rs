//! `--hash-on socket.io`: requests of a session go to the worker that has reported it.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{intake, request};
use crate::proxy::{body, connect};
use crate::support::{Daemon, eventually, free_port, freeze, get, install_dir, millis, roundsman, seconds, write_file};

/// Reports what its requests ask for. Slot 0 does what is filled in, too.
const SOURCE: &str = "
require('http').createServer((request, response) => {
  const asked = new URL(request.url, 'http://x').searchParams
  const report = (type, data) => process.send({ type, data })
  if (asked.has('make')) setTimeout(() => report('sticky:connection', asked.get('make')), Number(asked.get('after')))
  if (asked.has('end')) report('sticky:disconnection', asked.get('end'))
  if (asked.has('begin')) globalThis.begin?.()
  response.setHeader('Connection', 'close')
  response.end(process.env.ROUNDSMAN_SLOT)
}).listen(process.env.PORT || process.env.PORT_OF_APP, '127.0.0.1')
if (process.env.ROUNDSMAN_SLOT === '0') HOSTILE
";

fn start(via: &str, hash_wait: &str, hostile: &str) -> (Daemon, u16, tempfile::TempDir) {
    launch(roundsman(), via, &["--hash-wait", hash_wait], hostile)
}

pub fn launch(mut command: Command, via: &str, more: &[&str], hostile: &str) -> (Daemon, u16, tempfile::TempDir) {
    let (dir, port) = (install_dir(), free_port());
    write_file(dir.path(), "app.js", &SOURCE.replace("HOSTILE", hostile));
    command.current_dir(dir.path()).env("PORT_OF_APP", port.to_string());
    let listen = format!("127.0.0.1:{port}");
    let mut all = vec!["-i", "3", "--policy", "hash", "--hash-on", "socket.io"];
    all.extend(more);
    all.extend(["--via", via, "--backoff", "20s..20s", "--name", "app"]);
    if via == "relay" {
        all.extend(["-l", &listen]);
    }
    all.extend(["--", "node", "app.js"]);
    let daemon = Daemon::launch(command, &all, port);
    daemon.wait_online(3);
    (daemon, port, dir)
}

fn send(port: u16, target: &str) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(request(target, "").as_bytes()).unwrap();
    stream
}

pub fn ask(port: u16, target: &str) -> String {
    body(&mut send(port, target)).unwrap()
}

pub fn of(session: &str) -> String {
    format!("/socket.io/?EIO=4&transport=polling&t=x&sid={session}")
}

/// Sessions and the slots that made them.
pub fn make(port: u16, count: usize) -> Vec<(String, String)> {
    let make = |n| (format!("session-{n}"), ask(port, &format!("/?make=session-{n}")));
    let made: Vec<_> = (0..count).map(make).collect();
    for slot in ["0", "1", "2"] {
        assert!(made.iter().any(|(_, at)| at == slot), "by rr: {made:?}");
    }
    made
}

#[test]
fn requests_of_a_session_go_to_the_worker_that_reported_it() {
    for via in ["direct", "relay"] {
        let (daemon, port, _dir) = start(via, "15s", "{}");
        for (session, slot) in make(port, 12) {
            for _ in 0..3 {
                assert_eq!(ask(port, &of(&session)), slot, "{via}");
            }
        }
        let service = intake(&daemon);
        assert_eq!((&service["keys"], &service["no_key"]["absent"]), (&36.into(), &12.into()));
        // A parameter of that name alone is none, and is not waited for.
        ask(port, "/?sid=session-1");
        assert_eq!(intake(&daemon)["no_key"]["absent"], 13);
        assert!(daemon.ls()["services"][0]["hash_on"] == "socket.io");
    }
}

#[test]
fn a_request_that_is_before_the_report_waits_for_it() {
    let (daemon, port, _dir) = start("direct", "15s", "{}");
    for n in 0..6 {
        let slot = ask(port, &format!("/?make=late-{n}&after=200"));
        let mut early: Vec<_> = (0..3).map(|_| send(port, &of(&format!("late-{n}")))).collect();
        for early in &mut early {
            assert_eq!(body(early).unwrap(), slot);
        }
    }
    assert_eq!(intake(&daemon)["no_key"]["unknown-session"], 0);
    assert_eq!(intake(&daemon)["waiting"], 0);
}

#[test]
fn a_session_ends_by_its_report_and_with_its_worker() {
    // A request that waited for a report would not be answered in time.
    let (daemon, port, _dir) = start("direct", "60s", "{}");
    let unknown = || intake(&daemon)["no_key"]["unknown-session"].as_u64().unwrap();
    let made = make(port, 9);
    let of_slot = |slot: &str| made.iter().filter(|made| made.1 == slot).map(|made| made.0.clone()).collect::<Vec<_>>();
    let [first, second, third] = ["0", "1", "2"].map(of_slot);
    ask(port, &format!("{}&end={}", of(&first[0]), first[0]));
    // Another worker's session.
    ask(port, &format!("{}&end={}", of(&second[0]), first[1]));
    eventually("the end", seconds(10), || {
        let before = unknown();
        ask(port, &of(&first[0]));
        (unknown() > before).then_some(())
    });
    assert_eq!(ask(port, &of(&first[1])), "0", "nobody else ends it");
    kill(Pid::from_raw(daemon.workers()[1]), Signal::SIGKILL).unwrap();
    eventually("it is known", seconds(20), || (daemon.slot(1, "state") != "online").then_some(()));
    assert_ne!(ask(port, &of(&second[0])), "1");
    assert_eq!(ask(port, &of(&third[0])), "2");
    let output = roundsman().args(["reload"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let before = unknown();
    ask(port, &of(&third[0]));
    assert_eq!(unknown(), before + 1, "gone with the worker");
    make(port, 9);
}

#[test]
fn a_session_that_nobody_reports_is_waited_for_and_then_anybodys() {
    let (daemon, port, _dir) = start("relay", "300ms", "{}");
    for n in 1..3 {
        let begin = Instant::now();
        ask(port, &of("never"));
        assert!(begin.elapsed() >= millis(290), "{:?}", begin.elapsed());
        assert_eq!(intake(&daemon)["no_key"]["unknown-session"], n);
    }
}

/// Its connections are taken back: those with a session wait for it, the others do not.
#[test]
fn a_stalled_worker_keeps_its_sessions_and_nobody_else() {
    for (wait, comes_back) in [("30s", true), ("3s", false)] {
        let (daemon, port, _dir) =
            launch(roundsman(), "direct", &["--hash-wait", "15s", "--queue-timeout", wait], "{}");
        let made = make(port, 6);
        let of_slot =
            |slot: &str| made.iter().filter(|made| made.1 == slot).map(|made| made.0.clone()).collect::<Vec<_>>();
        let (own, other) = (of_slot("0"), of_slot("1"));
        let victim = daemon.workers()[0];
        freeze(victim);
        let mut without: Vec<_> = (0..9).map(|_| send(port, "/")).collect();
        let mut waits: Vec<_> = own.iter().chain(&own).map(|session| send(port, &of(session))).collect();
        let slots: Vec<_> = without.iter_mut().map(|client| body(client).unwrap()).collect();
        assert!(!slots.contains(&"0".to_owned()), "{slots:?}");
        assert_eq!(ask(port, &of(&other[0])), "1");
        let held = || (daemon.ls()["services"][0]["held"] == waits.len()).then_some(());
        eventually("those with a session wait", seconds(10), held);
        waits.push(send(port, &of(&own[0])));
        if comes_back {
            kill(Pid::from_raw(victim), Signal::SIGCONT).unwrap();
        }
        for client in &mut waits {
            assert_eq!(body(client).unwrap() == "0", comes_back);
        }
        assert_eq!(daemon.ls()["services"][0]["shed"], 0);
    }
}

#[test]
fn a_workers_garbage_harms_neither_the_master_nor_other_sessions() {
    let (daemon, port, _dir) = start(
        "direct",
        "15s",
        "begin = () => {
           const all = [7, null, {}, [], '', 'x'.repeat(100000), '\\u0000', true]
           let n = 0
           const more = () => {
             for (const data of all) { process.send({ type: 'sticky:connection', data }); process.send({ type: 'sticky:disconnection', data }) }
             for (let at = 0; at < 12; at++) for (const type of ['sticky:connection', 'sticky:disconnection']) process.send({ type, data: `session-${at}` })
             for (let at = 0; at < 5000; at++) process.send({ type: 'sticky:connection', data: `garbage-${n++}` })
             n < 150000 ? setImmediate(more) : process.send('all sent')
           }
           more()
         }",
    );
    let made: Vec<_> = make(port, 12).into_iter().filter(|(_, slot)| slot != "0").collect();
    // Before that all are known: nobody else can report them.
    made.iter().for_each(|(session, slot)| assert_eq!(ask(port, &of(session)), *slot));
    while ask(port, "/?begin=1") != "0" {}
    let sent = || {
        let command = roundsman().args(["messages", "-n", "1"]).env("ROUNDSMAN_CONTROL", daemon.control()).output();
        String::from_utf8_lossy(&command.unwrap().stdout).contains("all sent").then_some(())
    };
    eventually("all is sent", seconds(60), sent);
    for (session, slot) in &made {
        assert_eq!(ask(port, &of(session)), *slot);
    }
    assert_eq!(ask(port, &of("garbage-149999")), "0", "its last are known");
    ask(port, &of("garbage-1"));
    assert_eq!(intake(&daemon)["no_key"]["unknown-session"], 1, "its first are forgotten");
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 80 << 20, "{rss}");
    assert!(get(port).is_ok());
}

/// Without the option the reports are shown as all messages are, and the log says once what they are good for.
#[test]
fn without_the_option_the_log_names_it() {
    let app = crate::support::App::start("node", "app.js", &SOURCE.replace("HOSTILE", "{}"), &[]).online(2);
    for n in 0..3 {
        ask(app.port, &format!("/?make=session-{n}"));
    }
    app.daemon.wait_for("--hash-on socket.io");
    eventually("it is shown", seconds(10), || app.ask(&["messages"]).1.contains("session-2").then_some(()));
    assert_eq!(app.daemon.log().matches("--hash-on socket.io").count(), 1);
}
