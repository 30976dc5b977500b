//! `--max-age` and `--max-served`: workers are replaced in time, and nobody notices.
//! Mostly waits: tests/run runs it beside others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::reload::verb;
use crate::support::recycle::{Connections, served_meanwhile, wait_recycled};
use crate::support::{Daemon, eventually, free_port, get, install_dir, roundsman, seconds, servers, write_file};

const NODE: &str = "require('http').createServer((q, r) => r.end('slot ' + process.env.ROUNDSMAN_SLOT + '\\n'))
    .listen(Number(process.env.PORT), '127.0.0.1');";
/// A server that starts quickly.
const QUICK: &[&str] = &[env!("CARGO_BIN_EXE_roundsman"), "demo-server"];
/// One that listens a moment after its start.
const SLOW: &[&str] = &["sh", "-c", concat!("sleep 0.3; exec ", env!("CARGO_BIN_EXE_roundsman"), " demo-server")];

fn launch(options: &[&str], command: &[&str]) -> Daemon {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut all = vec!["-n", "web", "-l", &listen, "--min-uptime", "100ms", "--backoff", "20ms..50ms"];
    all.extend(options);
    all.push("--");
    all.extend(command);
    Daemon::launch(roundsman(), &all, port)
}

type Case = (&'static str, &'static str, Connections, u64);

/// Until so many workers have been recycled by what they served, nobody may notice.
fn nothing_is_lost(command: &[&str], clients: u8, (via, policy, connections, count): Case) {
    let case = format!("{via} {policy} {connections:?}");
    let options = ["-i", "4", "--via", via, "--policy", policy, "--max-served", "150", "--max-surge", "2"];
    let daemon = launch(&options, command);
    daemon.wait_online(4);
    let served = served_meanwhile(daemon.port, clients, connections, || wait_recycled(&daemon, count));
    assert!(served > 100, "{case}: {served}");
    assert_eq!(daemon.total("restarts"), 0, "{case}");
    let recycled = |slot: &serde_json::Value| slot["reason"] == "recycled: --max-served 150";
    assert!(daemon.slots().iter().any(recycled), "{case}");
}

#[test]
fn fifty_clients_lose_nothing_while_workers_are_recycled_by_what_they_served() {
    for case in [
        ("direct", "rr", Connections::KeepAlive(5), 12),
        ("relay", "ip-hash", Connections::Short, 8),
        ("direct", "least-conn", Connections::Short, 8),
    ] {
        nothing_is_lost(QUICK, 50, case);
    }
}

#[test]
#[ignore = "takes a minute; tests/run --all"]
fn fifty_clients_lose_nothing_by_any_delivery_and_policy() {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.js", NODE);
    for via in ["direct", "relay"] {
        for policy in ["rr", "least-conn", "ip-hash"] {
            for connections in [Connections::Short, Connections::KeepAlive(5)] {
                nothing_is_lost(&["node", script.to_str().unwrap()], 50, (via, policy, connections, 12));
            }
        }
    }
}

#[test]
#[ignore = "takes a minute; tests/run --all"]
fn fifty_clients_lose_nothing_while_gunicorn_is_recycled() {
    let dir = install_dir();
    let text = "def app(env, start):\n    start('200 OK', [('Content-Length', '3')])\n    return [b'ok\\n']\n";
    write_file(dir.path(), "app.py", text);
    let (gunicorn, at) = (servers().join("venv/bin/gunicorn"), dir.path().display());
    let gunicorn = gunicorn.display();
    for class in ["-k sync", "-k gthread --threads 4"] {
        for via in ["direct", "relay"] {
            let line = format!("exec {gunicorn} --chdir {at} -b 127.0.0.1:$PORT --log-level warning {class} app:app");
            nothing_is_lost(&["sh", "-c", &line], 50, (via, "rr", Connections::Short, 8));
        }
    }
}

#[test]
fn a_worker_is_recycled_when_it_is_old_and_one_slot_after_the_other() {
    let daemon = launch(&["-i", "3", "--max-age", "900ms", "--recycle-jitter", "60%"], QUICK);
    daemon.wait_online(3);
    served_meanwhile(daemon.port, 5, Connections::KeepAlive(3), || wait_recycled(&daemon, 4));
    let log = daemon.log();
    assert!(log.contains("recycling worker") && log.contains("reason=\"--max-age 900ms\""), "{log}");
    assert_eq!(daemon.total("restarts"), 0);
}

#[test]
fn a_successor_that_fails_or_is_killed_leaves_the_worker_and_is_tried_again() {
    let daemon = launch(&["-i", "1", "--max-served", "3", "--recycle-jitter", "0%"], SLOW);
    daemon.wait_online(1);
    let first = daemon.slot(0, "pid").as_i64().unwrap();
    let launching = |seen: &[i64]| {
        eventually("a successor starts", seconds(20), || {
            let pid = daemon.slot(0, "pid").as_i64()?;
            (!seen.contains(&pid) && daemon.slot(0, "state") == "launching").then_some(pid)
        })
    };
    (0..3).for_each(|_| drop(get(daemon.port).unwrap()));
    let mut seen = vec![first];
    for _ in 0..2 {
        seen.push(launching(&seen));
        kill(Pid::from_raw(seen[seen.len() - 1] as i32), Signal::SIGKILL).unwrap();
        // The old one serves.
        get(daemon.port).unwrap();
    }
    daemon.wait_for("worker not recycled: the successor ended: killed by SIGKILL; it stays");
    assert_eq!(daemon.log().matches("worker not recycled").count(), 1);
    wait_recycled(&daemon, 1);
    assert_ne!(daemon.slot(0, "pid"), first);
}

#[test]
fn verbs_and_a_stop_come_through_while_a_worker_is_recycled() {
    let mut daemon = launch(&["-i", "2", "--max-served", "4", "--recycle-jitter", "0%"], SLOW);
    daemon.wait_online(2);
    let recycling = |count: usize| {
        served_meanwhile(daemon.port, 4, Connections::Short, || daemon.wait_for_count("recycling worker", count));
    };
    for (at, words) in
        [&["reload"][..], &["restart"], &["reload", "web/0"], &["scale", "3"], &["scale", "2"]].iter().enumerate()
    {
        recycling(at + 1);
        let output = verb(&daemon, words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        daemon.wait_online(daemon.slots().len());
    }
    recycling(daemon.log().matches("recycling worker").count() + 1);
    let finished = daemon.stop();
    assert_eq!(finished.code(), 0, "{}", finished.log);
}

#[test]
fn senseless_options_are_refused_and_those_of_others_are_answered() {
    for (options, code, says) in [
        (
            vec!["--max-age", "1h", "-l", "127.0.0.1:0", "-u", "127.0.0.1:9"],
            2,
            "--max-age replaces a server while its successor serves; with --upstream no slot has",
        ),
        (
            vec!["--max-served", "5", "-l", "127.0.0.1:0", "-u", "127.0.0.1:9", "--", "true"],
            2,
            "--max-served replaces a server",
        ),
        (vec!["--max-served", "5", "--no-listen", "--", "true"], 2, "--max-served cannot be combined with --no-listen"),
        (
            vec!["--max-served", "5", "--policy", "none", "--", "true"],
            2,
            "with --policy none workers take them themselves: use --max-age",
        ),
        (vec!["--max-age", "0s", "--", "true"], 2, "longer than 0; leave it out for no limit"),
        (vec!["--max-served", "0", "--", "true"], 2, "a whole number is needed: 1 or more"),
        (vec!["--recycle-jitter", "10", "--", "true"], 2, "0% to 100% is needed"),
        (vec!["--recycle-jitter", "101%", "--", "true"], 2, "0% to 100% is needed"),
        (vec!["--max-requests", "100", "--", "true"], 2, "use `max-served`; it counts connections"),
        (vec!["--max_requests_jitter", "100", "--", "true"], 2, "did you mean --recycle-jitter"),
        (vec!["--max-worker-lifetime", "100", "--", "true"], 2, "did you mean --max-age"),
    ] {
        let output = roundsman().args(&options).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && text.contains(says), "{options:?}: {text}");
    }
}
