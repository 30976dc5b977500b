//! The line: its order, its limits, and those who leave it.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::{ask, held, start, wait_held};
use crate::support::{App, eventually, get, is_closed, millis, reset, seconds};

const LONG: u32 = 600_000;

fn shed(app: &App, reason: &str) -> u64 {
    app.daemon.ls()["services"][0]["shed_by"][reason].as_u64().unwrap()
}

fn answered(mut stream: TcpStream) -> bool {
    let mut text = String::new();
    stream.read_to_string(&mut text).is_ok() && text.contains("200 OK")
}

/// One worker with room for one, and somebody in it until the returned connection is closed.
fn occupied(options: &[&str]) -> (App, TcpStream) {
    let mut all = vec!["-i", "1", "--worker-conns", "1"];
    all.extend(options);
    let app = start(&all);
    let first = ask(app.port, LONG);
    eventually("it is taken", seconds(10), || (app.daemon.total("connections") == 1).then_some(()));
    (app, first)
}

#[test]
fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    for via in ["direct", "relay"] {
        let (app, first) = occupied(&["--via", via]);
        let mut waiting = Vec::new();
        for n in 0..5 {
            waiting.push(ask(app.port, if n == 4 { 0 } else { LONG }));
            wait_held(&app, n + 1);
        }
        let service = app.daemon.ls()["services"][0].clone();
        assert!(service["longest_wait_ms"].as_u64().unwrap() < 60_000, "{service}");
        // Each that ends makes room for exactly one: the next one.
        reset(first);
        let last = waiting.pop().unwrap();
        for (n, client) in waiting.into_iter().enumerate() {
            wait_held(&app, 4 - n as u64);
            assert_eq!(app.daemon.total("connections"), 2 + n as u64, "{via}");
            reset(client);
        }
        assert!(answered(last), "{via}");
        assert_eq!((held(&app), app.daemon.total("connections")), (0, 6), "{via}");
    }
}

#[test]
fn an_idle_keep_alive_connection_has_a_place_until_it_is_closed() {
    let app = start(&["-i", "1", "--worker-conns", "1"]);
    let idle = TcpStream::connect(("127.0.0.1", app.port)).unwrap();
    eventually("it has its place", seconds(10), || (app.daemon.total("connections") == 1).then_some(()));
    let next = ask(app.port, 0);
    wait_held(&app, 1);
    drop(idle);
    assert!(answered(next));
}

#[test]
fn one_too_many_is_reset_at_once_and_one_that_waits_too_long_later() {
    let (app, first) = occupied(&["--max-queue", "2", "--queue-timeout", "2s"]);
    let begin = Instant::now();
    let waiting = [ask(app.port, 0), ask(app.port, 0)];
    wait_held(&app, 2);
    assert!(is_closed(&mut ask(app.port, 0)), "the third");
    assert_eq!((held(&app), shed(&app, "queue-full")), (2, 1));
    app.daemon.wait_for("--max-queue clients were waiting already");
    for mut client in waiting {
        assert!(is_closed(&mut client));
    }
    assert!(begin.elapsed() >= seconds(2));
    eventually("both are counted", seconds(5), || (shed(&app, "queue-timeout") == 2).then_some(()));
    reset(first);
    assert!(get(app.port).is_ok());
}

#[test]
fn a_client_that_leaves_is_dropped_and_one_that_ended_its_side_is_served() {
    for (aborts, left) in [(false, 2), (true, 3)] {
        let (app, first) = occupied(if aborts { &["--abort-on-close"] } else { &[] });
        let (resets, silent, half, stays) = (
            ask(app.port, 0),
            TcpStream::connect(("127.0.0.1", app.port)).unwrap(),
            ask(app.port, 0),
            ask(app.port, 0),
        );
        wait_held(&app, 4);
        reset(resets);
        drop(silent);
        half.shutdown(Shutdown::Write).unwrap();
        wait_held(&app, 4 - left);
        assert_eq!(shed(&app, "client-left"), left);
        reset(first);
        assert_eq!(answered(half), !aborts);
        assert!(answered(stays));
        assert_eq!(app.daemon.total("connections"), 5 - left);
    }
}

/// The accept thread and the thread that hears the bell sleep until something happens.
#[test]
fn who_waits_costs_nothing() {
    let (app, first) = occupied(&["--via", "direct"]);
    let waiting = ask(app.port, 0);
    wait_held(&app, 1);
    let switches = || {
        let of = |task: std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            ["accept\n", "bell\n", "rescue\n"].contains(&name.as_str()).then(|| line.trim().parse::<u64>().unwrap())
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", app.daemon.pid())).unwrap();
        tasks.filter_map(|task| of(task.unwrap())).sum::<u64>()
    };
    let before = switches();
    std::thread::sleep(millis(2500));
    let woken = switches() - before;
    assert!(woken <= 8, "{woken} wake-ups in 2.5 s");
    reset(first);
    assert!(answered(waiting));
}

#[test]
fn a_reload_a_crash_and_a_stop_leave_nobody_hanging() {
    for via in ["direct", "relay"] {
        let (mut app, first) = occupied(&["--via", via, "--drain-timeout", "200ms", "--kill-timeout", "200ms"]);
        let waiting: Vec<_> = (0..20).map(|_| ask(app.port, 0)).collect();
        wait_held(&app, 20);
        app.reload();
        assert!(waiting.into_iter().all(answered), "{via}: the successor takes over");
        drop(first);
        // A worker that dies.
        let _second = ask(app.port, LONG);
        eventually("it is taken", seconds(10), || (app.daemon.total("connections") == 22).then_some(()));
        let waiting: Vec<_> = (0..20).map(|_| ask(app.port, 0)).collect();
        wait_held(&app, 20);
        let pid = app.daemon.slot(0, "pid").as_i64().unwrap() as i32;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert!(waiting.into_iter().all(answered), "{via}: after kill -9");
        // A stop.
        let _third = ask(app.port, LONG);
        eventually("it is taken", seconds(10), || (app.daemon.total("connections") == 43).then_some(()));
        let waiting: Vec<_> = (0..20).map(|_| ask(app.port, LONG)).collect();
        wait_held(&app, 20);
        app.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        for mut client in waiting {
            assert!(is_closed(&mut client), "{via}: at the stop");
        }
        assert_eq!(app.daemon.finish(seconds(20)).code(), 0);
    }
}

#[test]
fn it_is_refused_where_it_cannot_be_had() {
    let refused = |options: &[&str]| {
        let output =
            crate::support::roundsman().arg("check").args(options).args(["--", "sleep", "1"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let none = refused(&["-l", "8080", "-p", "none", "--worker-conns", "2"]);
    assert!(none.contains("--worker-conns cannot be kept with --policy none: workers accept by themselves"), "{none}");
    for options in [["--max-queue", "5"].as_slice(), &["--abort-on-close"]] {
        let text = refused(options);
        assert!(text.contains(&format!("{} needs --worker-conns", options[0])), "{text}");
    }
    assert!(refused(&["--no-listen", "--worker-conns", "2"]).contains("cannot be combined with --no-listen"));
    assert!(refused(&["--worker-conns", "0"]).contains("1 or more"));
}

/// nginx has processes of its own: one that dies is neither a worker of ours nor a child.
#[test]
fn what_a_process_of_a_server_had_open_makes_room_when_it_is_killed() {
    use nix::sys::signal::{Signal, kill};
    let (dir, port) = (crate::support::install_dir(), crate::support::free_port());
    let text = format!(
        "worker_processes 1; daemon off; error_log stderr; pid {0}/nginx.pid; events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}",
        dir.path().display()
    );
    let conf = crate::support::write_file(dir.path(), "nginx.conf", &text);
    let command = ["nginx", "-c", conf.to_str().unwrap()].map(str::to_owned);
    let daemon = crate::support::direct::start_with(port, "1", &["--worker-conns", "2"], &command);
    let idle: Vec<_> = (0..2).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    eventually("both are open", seconds(10), || (daemon.slot(0, "open") == 2).then_some(()));
    let next = ask(port, 0);
    eventually("one waits", seconds(10), || (daemon.ls()["services"][0]["held"] == 1).then_some(()));
    let master = daemon.slot(0, "pid").as_i64().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
    let child: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).unwrap();
    assert!(answered(next));
    drop(idle);
}
