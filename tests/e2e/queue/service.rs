//! A service never has more connections than `--max-conns`; more clients wait in the backlog, and no place stays empty.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ask, keep, request, start};
use crate::support::{App, eventually, roundsman, seconds};

fn answer(mut stream: TcpStream) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
}

fn limit_reached(app: &App) -> bool {
    app.daemon.ls()["services"][0]["limit_reached"] == "max-conns"
}

#[track_caller]
fn wait_for_limit(app: &App, reached: bool) {
    eventually("the limit is shown", seconds(20), || (limit_reached(app) == reached).then_some(()));
}

/// Connections that the server has got.
fn total(app: &App) -> u64 {
    app.daemon.total("connections")
}

#[test]
fn a_client_beyond_the_limit_waits_in_the_backlog_until_one_ends() {
    for via in ["direct", "relay"] {
        let app = start(&["--via", via, "--max-conns", "4"]);
        let mut kept: Vec<_> = (0..4).map(|_| keep(app.port)).collect();
        let waiting: Vec<_> = (0..3).map(|_| ask(app.port, 0)).collect();
        wait_for_limit(&app, true);
        assert_eq!(total(&app), 4, "{via}");
        kept.iter_mut().for_each(request);
        assert_eq!(total(&app), 4, "{via}");
        drop(kept.pop());
        waiting.into_iter().for_each(answer);
        wait_for_limit(&app, false);
        assert_eq!(total(&app), 7, "{via}");
    }
}

#[test]
fn a_worker_that_is_killed_frees_its_places() {
    for via in ["direct", "relay"] {
        let app = start(&["--via", via, "--max-conns", "4"]);
        let _kept: Vec<_> = (0..4).map(|_| keep(app.port)).collect();
        let waiting = ask(app.port, 0);
        wait_for_limit(&app, true);
        kill(Pid::from_raw(app.daemon.workers()[0]), Signal::SIGKILL).unwrap();
        answer(waiting);
        wait_for_limit(&app, false);
    }
}

#[test]
fn connections_of_a_worker_that_is_replaced_count_until_they_end() {
    for via in ["direct", "relay"] {
        let app = start(&[
            "--via",
            via,
            "--max-conns",
            "2",
            "--drain-timeout",
            "60s",
            "--max-surge",
            "2",
            "--log-level",
            "debug",
        ]);
        let begin = |_| {
            let mut stream = TcpStream::connect(("127.0.0.1", app.port)).unwrap();
            stream.write_all(b"GET /0 HTTP/1.1\r\nHost: x\r\n").unwrap();
            stream
        };
        let begun: Vec<_> = (0..2).map(begin).collect();
        eventually("both are open", seconds(20), || (app.daemon.total("open") == 2).then_some(()));
        let mut reload = roundsman();
        let reload = reload.arg("reload").env("ROUNDSMAN_CONTROL", app.daemon.control()).stdout(Stdio::null());
        let mut reload = reload.spawn().unwrap();
        app.daemon.wait_for_count("the old worker gets no more connections", 2);
        let waiting = ask(app.port, 0);
        wait_for_limit(&app, true);
        assert_eq!(total(&app), 2, "{via}");
        for mut stream in begun {
            stream.write_all(b"Connection: close\r\n\r\n").unwrap();
            answer(stream);
        }
        answer(waiting);
        wait_for_limit(&app, false);
        assert_eq!(total(&app), 3, "{via}");
        assert!(reload.wait().unwrap().success(), "{via}");
    }
}
