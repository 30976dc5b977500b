//! Jobs that end, counters that count what they say, and what is said of a name or a release that does not work.
//! Mostly waits: tests/run runs it beside others.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::truth::{bounded, fixed, reasons};
use crate::support::{App, Daemon, eventually, free_port, install_dir, roundsman, seconds, write_file};

#[test]
fn a_job_that_ends_with_0_is_done() {
    let dir = install_dir();
    let go = dir.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done; exit 0", go.display());
    let job = |name: &str, command: &str| {
        format!(
            "[service.{name}]\ncommand = [\"sh\", \"-c\", {command:?}]\nno-listen = true\ninstances = 1\non-exit = \"ok\"\n"
        )
    };
    write_file(dir.path(), "jobs.toml", &(job("once", "exit 0") + &job("later", &wait)));
    let mut command = roundsman();
    command.current_dir(dir.path());
    let mut daemon = Daemon::launch(command, &["-c", "jobs.toml"], 0);
    let state = |at: usize| daemon.ls()["services"][at]["slots"][0].clone();
    eventually("the first is done", seconds(20), || (state(0)["state"] == "gone").then_some(()));
    assert_eq!(state(0)["reason"], "finished: exit code 0");
    eventually("the second is online", seconds(20), || (state(1)["state"] == "online").then_some(()));
    let (code, text) = bounded(&daemon, &["health"]);
    assert!(code == 0 && text.contains("once: 0 of 1 online, 1 finished"), "{text}");
    assert!(bounded(&daemon, &["ls"]).1.contains("finished"));
    let text = bounded(&daemon, &["ls", "once"]).1;
    assert_eq!(text.matches("exit code 0").count(), 1, "{text}");
    // Asked for once more it runs once more.
    let (code, text) = bounded(&daemon, &["restart", "once"]);
    assert!(code == 0 && text.contains("restarted 1 slot"), "{text}");
    daemon.wait_for_count("server finished", 2);
    write_file(dir.path(), "go", "");
    let end = daemon.finish(seconds(20));
    assert!(end.code() == 0 && end.log.contains("finished service=once, later"), "{}", end.log);
}

#[test]
fn a_job_that_fails_is_tried_again_and_its_code_is_the_daemons() {
    let options = ["--no-listen", "-i", "1", "--on-exit", "ok", "--backoff", "1ms..2ms", "--"];
    let mut daemon = Daemon::launch(roundsman(), &[&options[..], &["sh", "-c", "exit 4"]].concat(), 0);
    let end = daemon.finish(seconds(20));
    assert!(end.code() == 4 && end.log.matches("server started").count() > 1, "{}", end.log);
    // Without the option one that ends with 0 is started again.
    let mut daemon = Daemon::launch(
        roundsman(),
        &["--no-listen", "-i", "1", "--backoff", "1ms..2ms", "--", "sh", "-c", "exit 0"],
        0,
    );
    let end = daemon.finish(seconds(20));
    assert!(end.code() == 1 && end.log.matches("server started").count() > 1, "{}", end.log);
    assert!(end.log.contains("reason=\"if it is a job that is done: --on-exit ok\""), "{}", end.log);
    // Without any option it is taken for a server.
    let options = ["-i", "1", "--backoff", "1ms..2ms", "--", "sh", "-c", "exit 0"];
    let end = Daemon::launch(roundsman(), &options, 0).finish(seconds(20));
    assert!(end.log.contains("if it is a job that is done: --no-listen --on-exit ok -i 1"), "{}", end.log);
}

/// Answers; the argument is its port.
const APP: &str =
    "require('http').createServer((_, r) => r.end('ok')).listen(Number(process.env.PORT_OF_APP), '127.0.0.1')";

#[test]
fn restarts_are_starts_after_a_crash_and_not_reloads() {
    let admin = format!("127.0.0.1:{}", free_port());
    let app = App::start("node", "app.js", APP, &["-i", "1", "--min-uptime", "100ms", "--admin", &admin]).online(1);
    let restarts = || {
        let mut stream = std::net::TcpStream::connect(&admin).unwrap();
        use std::io::Write;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let text = String::from_utf8(crate::support::read_all(&mut stream).unwrap()).unwrap();
        let line = text.lines().find(|line| line.starts_with("roundsman_restarts_total{")).unwrap_or_default();
        let metric = line.rsplit(' ').next().unwrap_or_default().to_owned();
        (app.daemon.total("restarts"), metric)
    };
    for words in [&["reload"][..], &["restart"], &["stop"], &["start"], &["reload"]] {
        let (code, text) = bounded(&app.daemon, words);
        assert_eq!((code, restarts()), (0, (0, "0".to_owned())), "{words:?}: {text}");
    }
    let pid = Pid::from_raw(app.daemon.workers()[0]);
    kill(pid, Signal::SIGKILL).unwrap();
    app.daemon.wait_for("restart_in=");
    app.daemon.wait_online(1);
    // Nor does a reload make the counter fall.
    assert_eq!(bounded(&app.daemon, &["reload"]).0, 0);
    assert_eq!(restarts(), (1, "1".to_owned()));
}

#[test]
fn a_failed_reload_shows_the_place_in_the_program_first() {
    let app = App::start("node", "app.js", APP, &["-i", "1"]).online(1);
    write_file(app.dir.path(), "app.js", "// a release\nsyntax error here(\n");
    let (code, text) = bounded(&app.daemon, &["reload"]);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  | ")).collect();
    assert_eq!(code, 1, "{text}");
    assert!(lines[0].ends_with("app.js:2") && lines[1] == "syntax error here(", "{text}");
    assert!(lines.iter().any(|line| line.starts_with("SyntaxError")) && !text.contains("node:internal"), "{text}");
    // The slot is named once.
    assert!(text.contains("slot 0: the successor ended: exit code 1; the workers before it stay"), "{text}");
    let (_, table) = bounded(&app.daemon, &["ls"]);
    assert!(table.contains("slot 0: the successor ended") && !table.contains("slot 0: slot 0"), "{table}");
    assert!(reasons(&app.daemon)[0].starts_with("the successor ended"));
    // Missing modules: the error, and not where in Node it was thrown.
    write_file(app.dir.path(), "app.js", "require('./no-such-module')");
    let (_, text) = bounded(&app.daemon, &["reload"]);
    let first = text.lines().find_map(|line| line.strip_prefix("  | ")).unwrap_or_default();
    assert!(first.contains("Cannot find module './no-such-module'"), "{text}");
}

#[test]
fn a_failed_reload_of_python_shows_the_last_frame_and_the_error() {
    let dir = install_dir();
    let (port, script) = (free_port(), dir.path().join("app.py"));
    std::fs::copy(fixed(dir.path()), &script).unwrap();
    let own = port.to_string();
    let daemon = Daemon::launch(
        roundsman(),
        &["-i", "1", "--via", "direct", "--", "python3", script.to_str().unwrap(), &own],
        port,
    );
    daemon.wait_online(1);
    write_file(dir.path(), "app.py", "def main():\n    return {}['key']\nmain()\n");
    let (code, text) = bounded(&daemon, &["reload"]);
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  | ")).collect();
    assert!(code == 1 && lines[0].contains("app.py\", line 2, in main"), "{text}");
    assert_eq!(lines.last(), Some(&"KeyError: 'key'"), "{text}");
}

#[test]
fn a_second_start_of_what_is_stopped_says_how_to_start_it() {
    let dir = install_dir();
    let socket = dir.path().join("roundsman").join("app.sock");
    let options =
        ["--control", socket.to_str().unwrap(), "--name", "app", "--no-listen", "-i", "1", "--", "sleep", "1000"];
    let daemon = Daemon::launch(roundsman(), &options, 0);
    daemon.wait_for("worker online");
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
        command.args(words).env("XDG_RUNTIME_DIR", dir.path());
        command.env_remove("ROUNDSMAN_CONTROL").env_remove("RUNTIME_DIRECTORY");
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let again = ["-n", "app", "--no-listen", "-i", "1", "--", "sleep", "1000"];
    let (code, text) = run(&again);
    assert!(code == 2 && text.contains("is taken by pid") && text.contains("use --name"), "{text}");
    assert_eq!(run(&["stop", "app"]).0, 0);
    let (code, text) = run(&again);
    assert!(code == 2 && text.contains("and stopped; run `roundsman start app`"), "{text}");
    assert_eq!(run(&["start", "app"]).0, 0);
    drop(daemon);
}

#[test]
fn a_shared_server_that_was_told_to_end_has_not_finished() {
    let dir = install_dir();
    let (port, upstream) = (free_port(), free_port());
    let text = "import http.server, signal, sys\n\
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n\
                http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()\n";
    let script = write_file(dir.path(), "shared.py", text);
    let (listen, upstream) = (format!("127.0.0.1:{port}"), upstream.to_string());
    let to = format!("127.0.0.1:{upstream}");
    let options = ["-l", &listen, "-u", &to, "-i", "1", "--on-exit", "ok", "--"];
    let command = ["python3", script.to_str().unwrap(), &upstream];
    let daemon = Daemon::launch(roundsman(), &[&options[..], &command].concat(), port);
    daemon.wait_online(1);
    for (verb, what) in [("reload", "reloaded 1 slot"), ("stop", "stopped 1 slot"), ("start", "started 1 slot")] {
        let (code, text) = bounded(&daemon, &[verb]);
        assert!(code == 0 && text.contains(what), "{verb}: {text}");
        if verb != "start" {
            daemon.wait_for_count("server stopped", if verb == "reload" { 1 } else { 2 });
        }
    }
    daemon.wait_for_count("server started", 3);
}

#[test]
fn who_waits_for_a_job_hears_of_its_end_before_the_daemon_ends() {
    let dir = install_dir();
    let mark = dir.path().join("mark");
    let script = format!("if [ -e {0} ]; then exit 0; fi; : > {0}; sleep 1000", mark.display());
    // "slot 0: finished (1 of 1)", or its pid where it still ran when it was looked at.
    for (verb, words) in
        [("restart", &["restarted 1 slot"][..]), ("reload", &["slot 0: ", " (1 of 1)", "reloaded 1 slot"])]
    {
        let _ = std::fs::remove_file(&mark);
        let options = ["--no-listen", "-i", "1", "--on-exit", "ok", "--min-uptime", "0s", "--", "sh", "-c", &script];
        let mut daemon = Daemon::launch(roundsman(), &options, 0);
        daemon.wait_online(1);
        eventually("it runs", seconds(20), || mark.exists().then_some(()));
        let (code, text) = bounded(&daemon, &[verb]);
        assert!(code == 0 && words.iter().all(|word| text.contains(word)), "{verb}: {code} {text}");
        assert_eq!(daemon.finish(seconds(20)).code(), 0);
    }
    // One that fails is told, too.
    let _ = std::fs::remove_file(&mark);
    let script = script.replace("exit 0", "exit 7");
    let options = ["--no-listen", "-i", "1", "--max-restarts", "0", "--", "sh", "-c", &script];
    let mut daemon = Daemon::launch(roundsman(), &options, 0);
    daemon.wait_online(1);
    let (code, text) = bounded(&daemon, &["restart"]);
    assert!(code == 1 && text.contains("slot 0 is errored (server: exit code 7)"), "{code} {text}");
    assert_eq!(daemon.finish(seconds(20)).code(), 7);
}
