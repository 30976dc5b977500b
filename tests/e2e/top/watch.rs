//! Mostly waits: `ls --watch`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{client, daemon, line};
use crate::support::{Daemon, Screen, install_dir, roundsman};

#[test]
fn a_terminal_shows_the_latest_table_and_stays_as_it_is() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 40);
    let mut screen = Screen::start(&client(&daemon, &["ls", "--watch", "0.2"]), (80, 24));
    let text = screen.wait_until("a table", |text| line(text, "web").get(2).is_some_and(|word| word == "online"));
    assert!(text.starts_with("every 200ms: roundsman ls") && text.contains("more lines"), "{text}");
    assert!(!screen.is_raw() && !screen.is_full());
    assert!(client(&daemon, &["drain", "web/0"]).status().unwrap().success());
    screen.wait_until("the change", |text| line(text, "web").get(2).is_some_and(|word| word == "drained"));
    screen.resize((60, 60));
    screen.wait_until("a larger one", |text| !text.contains("more lines") && text.lines().count() > 40);
    screen.press("\u{3}");
    assert_eq!(screen.finish().signal(), Some(Signal::SIGINT as i32));
    screen.is_as_before();
    let mut one = Screen::start(&client(&daemon, &["ls", "--watch", "web"]), (80, 24));
    one.wait_for("every 2s: roundsman ls web");
    one.signal(Signal::SIGTERM);
    one.finish();
}

#[test]
fn a_pipe_gets_one_after_the_other_and_programs_a_line_each() {
    let dir = install_dir();
    let mut daemon = daemon(dir.path(), 1);
    let run = |words: &[&str]| {
        let child = client(&daemon, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        crate::support::Killed(child)
    };
    let mut json = run(&["ls", "--json", "--watch", "0.1"]);
    let lines = BufReader::new(json.0.stdout.take().unwrap()).lines();
    for line in lines.take(3) {
        let state: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(state["services"][0]["name"], "web");
    }
    // Nobody reads: it ends.
    assert!(
        crate::support::eventually("its end", crate::support::seconds(10), || json.0.try_wait().unwrap()).success()
    );
    let mut tables = run(&["ls", "--watch=0.1"]);
    let lines = BufReader::new(tables.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take(3 * 6).collect();
    assert!(lines.iter().filter(|line| line.starts_with("SERVICE")).count() >= 3, "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains('\u{1b}')));
    // A daemon that is gone is said, and waited for.
    let mut waits = run(&["ls", "--json", "--watch", "0.1"]);
    let mut lines = BufReader::new(waits.0.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let control = daemon.control().to_owned();
    daemon.stop();
    let mut errors = BufReader::new(waits.0.stderr.take().unwrap()).lines();
    assert!(errors.next().unwrap().unwrap().contains("no roundsman daemon is running"));
    let words = ["-n", "next", "--no-listen", "-i", "1", "--control", control.to_str().unwrap(), "--", "sleep", "1000"];
    let _next = Daemon::launch(roundsman(), &words, 0);
    assert!(lines.map_while(Result::ok).any(|line| line.contains("\"next\"")));
    let _ = waits.0.kill();
}

#[test]
fn a_pace_that_makes_no_sense_is_refused() {
    for words in
        [&["ls", "--watch", "0"][..], &["ls", "--watch", "-1"], &["ls", "--watch=1e9"], &["ls", "--watch", "x", "y"]]
    {
        let output = roundsman().args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}
