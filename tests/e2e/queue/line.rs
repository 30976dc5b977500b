//! The line: its order, its limits, and those who leave it.
//! Mostly waits: tests/run runs it beside others.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::{LONG, answered, ask, body, held, keep, occupied, occupy, start, start_also, wait_held};
use crate::support::{App, eventually, free_port, get, is_closed, millis, read_all, reset, seconds};

fn shed(app: &App, reason: &str) -> u64 {
    app.daemon.ls()["services"][0]["shed_by"][reason].as_u64().unwrap()
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
fn one_line_for_all_listeners() {
    for via in ["direct", "relay"] {
        let other = free_port();
        let listen = format!("127.0.0.1:{other}");
        let also = if via == "direct" { other.to_string() } else { String::new() };
        let app = start_also(&also, &["-i", "1", "--worker-conns", "1", "--via", via, "-l", &listen]);
        let first = occupy(app.port);
        eventually("it is taken", seconds(10), || (app.daemon.total("connections") == 1).then_some(()));
        let mut waiting = Vec::new();
        for (n, port) in [other, app.port, app.port, other, other, app.port].into_iter().enumerate() {
            waiting.push(ask(port, 0));
            wait_held(&app, n as u64 + 1);
        }
        reset(first);
        for (n, client) in waiting.into_iter().enumerate() {
            let body = body(client);
            assert_eq!(body.rsplit(' ').next(), Some(n.to_string().as_str()), "{via}: client {n}: {body}");
        }
    }
}

#[test]
fn an_idle_keep_alive_connection_has_a_place_until_it_is_closed() {
    for via in ["direct", "relay"] {
        let app = start(&["-i", "1", "--worker-conns", "2", "--via", via]);
        // One that had its answer, and one that has not asked yet.
        let (idle, silent) = (keep(app.port), TcpStream::connect(("127.0.0.1", app.port)).unwrap());
        eventually("both have their places", seconds(10), || (app.daemon.total("connections") == 2).then_some(()));
        let next = [ask(app.port, 0), ask(app.port, LONG)];
        wait_held(&app, 2);
        drop(idle);
        let [first, second] = next;
        assert!(answered(first), "{via}");
        wait_held(&app, 0);
        drop((silent, second));
    }
}

/// A page of the admin server.
fn page(admin: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    String::from_utf8(read_all(&mut stream).unwrap()).unwrap()
}

#[test]
fn how_many_waited_and_how_long_is_shown_everywhere() {
    let admin = format!("127.0.0.1:{}", free_port());
    let (app, first) = occupied(&["--admin", &admin]);
    let begin = Instant::now();
    let waiting: Vec<_> = (0..3).map(|_| ask(app.port, 0)).collect();
    wait_held(&app, 3);
    let joined = Instant::now();
    assert!(page(&admin, "/metrics").contains("roundsman_wait_seconds_count{service=\"app\"} 0\n"));
    eventually("they wait for 600 ms", seconds(5), || (joined.elapsed() >= millis(600)).then_some(()));
    reset(first);
    assert!(waiting.into_iter().all(answered));
    let (least, most) = (0.6 * 3.0, begin.elapsed().as_secs_f64() * 3.0);

    let waits = app.daemon.ls()["services"][0]["waits"].clone();
    let counts: Vec<u64> = waits["counts"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).collect();
    let sum = waits["sum_s"].as_f64().unwrap();
    // 512 ms and more are in the eleventh bucket and those after it.
    assert!(counts.len() == 18 && counts[10..].iter().sum::<u64>() == 3 && (least..most).contains(&sum), "{waits}");
    let (code, text) = app.ask(&["ls", "app"]);
    assert!(code == 0 && text.contains("3 clients waited: half less than "), "{text}");
    let text = page(&admin, "/metrics");
    let value = |what: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("roundsman_wait_seconds_{what} ")));
        line.unwrap_or_else(|| panic!("no {what} in {text}")).parse().unwrap()
    };
    assert_eq!(value("count{service=\"app\"}"), 3.0);
    assert!((least..most).contains(&value("sum{service=\"app\"}")));
    for (bound, count) in [("0.512", 0.0), ("+Inf", 3.0)] {
        let labels = [format!("service=\"app\",le=\"{bound}\""), format!("le=\"{bound}\",service=\"app\"")];
        let found = labels.iter().find(|labels| text.contains(*labels)).unwrap_or_else(|| panic!("{bound}: {text}"));
        assert_eq!(value(&format!("bucket{{{found}}}")), count);
    }
}

#[test]
fn one_too_many_is_reset_at_once_and_one_that_waits_too_long_later() {
    std::thread::scope(|scope| {
        for via in ["direct", "relay"] {
            scope.spawn(move || too_many_and_too_long(via));
        }
    });
}

fn too_many_and_too_long(via: &str) {
    let (app, first) = occupied(&["--via", via, "--max-queue", "2", "--queue-timeout", "2s"]);
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
