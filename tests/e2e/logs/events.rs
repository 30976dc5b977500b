//! `roundsman logs` on terminals and pipes: the daemon's events, stderr, times. And the daemon's own log on a terminal.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Daemon, eventually, install_dir, on_terminal, roundsman, seconds, start_on_terminal, write_file};

/// Says something on both streams; ends with 3 when there is a file `end`.
const SERVER: &str = "
echo 'to stdout'; echo 'to stderr' >&2
while [ ! -e end ]; do sleep 0.02; done
rm end; echo 'the last word' >&2; exit 3
";

fn service(dir: &Path) -> Daemon {
    write_file(dir, "server.sh", SERVER);
    let mut command = roundsman();
    command.current_dir(dir);
    let all = ["--no-listen", "-i", "1", "--name", "svc", "--min-uptime", "100ms", "--backoff", "10ms..20ms", "--"];
    let daemon = Daemon::launch(command, &[&all[..], &["sh", "server.sh"]].concat(), 0);
    daemon.wait_for("worker online");
    daemon
}

fn logs(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = roundsman();
    command.arg("logs").args(words).env("ROUNDSMAN_CONTROL", daemon.control()).env_remove("NO_COLOR");
    command
}

fn piped(daemon: &Daemon, words: &[&str]) -> Vec<String> {
    let output = logs(daemon, words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn events_of_a_service_are_among_its_lines_in_the_order_in_which_they_came() {
    let dir = install_dir();
    let daemon = service(dir.path());
    write_file(dir.path(), "end", "");
    daemon.wait_for_count("worker online", 2);
    assert!(roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap().status.success());
    let lines = eventually("the reload", seconds(10), || {
        Some(piped(&daemon, &["svc"])).filter(|lines| lines.iter().any(|line| line.starts_with("svc * reloaded took=")))
    });
    let at = |wanted: &str| {
        lines.iter().position(|line| line.starts_with(wanted)).unwrap_or_else(|| panic!("{wanted}: {lines:#?}"))
    };
    let order = [
        at("svc * starting "),
        at("svc/0 * server started pid="),
        at("svc/0 | to stdout"),
        at("svc/0 * worker online "),
        at("svc/0 | the last word"),
        at("svc/0 * server exited pid="),
        at("svc * reloading"),
    ];
    assert!(order.is_sorted(), "{order:?} {lines:#?}");
    assert!(lines[order[5]].contains(" status=\"exit code 3\" restart_in="), "{lines:#?}");
    // One slot; without events; for programs.
    assert!(piped(&daemon, &["svc/0"]).iter().all(|line| line.starts_with("svc/0 ")));
    assert!(piped(&daemon, &["--no-events"]).iter().all(|line| line.starts_with("svc/0 | ")));
    let streams: Vec<_> = piped(&daemon, &["--json"])
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["stream"].as_str().unwrap().to_owned())
        .collect();
    for stream in ["stdout", "stderr", "event"] {
        assert!(streams.iter().any(|one| one == stream), "{stream}: {streams:?}");
    }
    // Who asks as ever gets what servers wrote.
    let mut stream = UnixStream::connect(daemon.control()).unwrap();
    stream.write_all(b"{\"cmd\":\"logs\",\"lines\":100}\n").unwrap();
    let lines: Vec<_> = BufReader::new(stream).lines().map(Result::unwrap).collect();
    assert!(lines.len() > 4 && lines.iter().all(|line| !line.contains("\"event\"")), "{lines:#?}");
}

#[test]
fn events_are_followed_and_the_log_level_does_not_hide_them() {
    let dir = install_dir();
    let daemon = {
        write_file(dir.path(), "server.sh", SERVER);
        let mut command = roundsman();
        command.current_dir(dir.path());
        let all = ["--no-listen", "-i", "1", "--name", "svc", "--log-level", "error", "--min-uptime", "100ms", "--"];
        Daemon::launch(command, &[&all[..], &["sh", "server.sh"]].concat(), 0)
    };
    eventually("it is online", seconds(10), || {
        daemon.control().exists().then(|| daemon.slot(0, "state")).filter(|state| state == "online")
    });
    let mut command = logs(&daemon, &["-f"]);
    let mut follower = crate::support::Killed::spawn(command.stdout(std::process::Stdio::piped()));
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("svc/0 * worker online")));
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    assert!(lines.any(|line| line.contains("server exited") && line.contains("killed by SIGKILL")));
}

#[test]
fn on_a_terminal_stderr_is_told_apart_and_times_are_local() {
    let dir = install_dir();
    let daemon = service(dir.path());
    let shown = |words: &[&str], no_color: bool| {
        let mut command = logs(&daemon, words);
        command.env("TZ", "XXX-05:30");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        on_terminal(&mut command, 80)
    };
    let text = eventually("both lines", seconds(10), || {
        Some(shown(&[], false)).filter(|text| text.contains("to stderr") && text.contains("to stdout"))
    });
    assert!(text.contains("\u{1b}[31msvc/0 !\u{1b}[0m to stderr"), "{text:?}");
    assert!(
        text.contains("svc/0 | to stdout") && text.contains("\u{1b}[36msvc/0 *\u{1b}[0m worker online"),
        "{text:?}"
    );
    let text = shown(&[], true);
    assert!(text.contains("svc/0 ! to stderr") && text.contains("svc/0 | to stdout"), "{text:?}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(piped(&daemon, &["--no-events"]).iter().all(|line| line.starts_with("svc/0 | ")));
    // Local on a terminal, UTC through a pipe; the same moment.
    let line = |text: String| text.lines().find(|line| line.ends_with("to stdout")).unwrap().to_owned();
    let local = line(shown(&["-t"], true));
    let (date, time) =
        local.strip_prefix("svc/0 | ").unwrap().strip_suffix(" to stdout").unwrap().split_once(' ').unwrap();
    let utc = line(piped(&daemon, &["--timestamps"]).join("\n"));
    let utc = humantime::parse_rfc3339(utc.split(' ').nth(2).unwrap()).unwrap();
    let local = humantime::parse_rfc3339(&format!("{date}T{time}Z")).unwrap();
    assert_eq!(local.duration_since(utc).unwrap(), seconds(5 * 3600 + 30 * 60));
}

/// The daemon's log: (first line, everything) on a terminal.
fn own_log(no_color: bool) -> (String, String) {
    let dir = install_dir();
    let mut command = roundsman();
    command.args(["--no-listen", "-i", "1", "--name", "svc", "--", "sleep", "1000"]);
    command.env("ROUNDSMAN_CONTROL", dir.path().join("c.sock")).env("TZ", "XXX+03").env_remove("NO_COLOR");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let (mut child, master) = start_on_terminal(&mut command, 80);
    let mut text = String::new();
    for line in BufReader::new(master).lines().map_while(Result::ok) {
        text += &format!("{line}\n");
        if line.contains("worker online") {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        }
    }
    assert!(child.wait().unwrap().success(), "{text}");
    (text.lines().next().unwrap_or_default().to_owned(), text)
}

#[test]
fn the_daemons_own_log_has_local_times_on_a_terminal() {
    let (first, text) = own_log(false);
    assert!(text.contains('\u{1b}'), "{text:?}");
    let first = anstream::adapter::strip_str(&first).to_string();
    let (time, rest) = first.split_once(' ').unwrap();
    assert!(rest.trim_start().starts_with("INFO starting service=svc"), "{first:?}");
    assert!(time.len() == 12 && time.as_bytes()[2] == b':' && time.as_bytes()[8] == b'.', "{time}");
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now() - seconds(3 * 3600)).to_string();
    let minutes = |time: &str| time[..2].parse::<i64>().unwrap() * 60 + time[3..5].parse::<i64>().unwrap();
    let apart = (minutes(time) - minutes(&now[11..])).rem_euclid(24 * 60);
    assert!(apart == 0 || apart >= 24 * 60 - 2, "{time} and {now}");
    let (_, text) = own_log(true);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // Not on a terminal: RFC 3339, UTC.
    let dir = install_dir();
    let daemon = service(dir.path());
    let log = daemon.log();
    let time = log.lines().find(|line| line.contains("starting")).unwrap().split(' ').next().unwrap().to_owned();
    assert!(humantime::parse_rfc3339(&time).unwrap().elapsed().unwrap() < seconds(60), "{time}");
}

/// A daemon on a terminal whose server ends with the same trace again and again: what its terminal shows.
fn crashes(output: &[&str]) -> String {
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "app.py",
        "print('up', flush=True)\ndef work():\n    raise RuntimeError('broken')\nwork()\n",
    );
    let mut command = roundsman();
    command
        .args(["--no-listen", "-i", "1", "--name", "svc", "--max-restarts", "4", "--backoff", "1ms..2ms"])
        .args(output);
    command.args(["--", "python3", "-S", script.to_str().unwrap()]);
    command.env("ROUNDSMAN_CONTROL", dir.path().join("c.sock"));
    on_terminal(&mut command, 120)
}

#[test]
fn a_stack_trace_that_repeats_is_shown_once_on_a_terminal_and_each_crash_is_one_line() {
    let text = crashes(&[]);
    let exits = text.lines().filter(|line| line.contains("exit code 1")).count();
    assert!(exits >= 3, "{text}");
    assert_eq!(text.matches("Traceback").count(), 1, "{text}");
    assert_eq!(text.matches("svc/0 | … the same 6 lines as before").count(), exits - 1, "{text}");
    assert!(text.contains(&format!("as before ({exits} times)")), "{text}");
    assert_eq!(text.matches("svc/0 | up").count(), exits, "{text}");
    // As they come, where the lines are not for people.
    let raw = crashes(&["--output", "raw"]);
    assert_eq!(raw.matches("Traceback").count(), exits, "{raw}");
}
