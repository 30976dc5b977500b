//! Replacing workers while clients go on: reload, restart, scale.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use nix::sys::signal::Signal;

use crate::support::{
    Daemon, eventually, free_port, get, install_dir, is_closed, millis, refused, roundsman, seconds, unsaid, write_file,
};

/// An app without any signal handling, which says which release it is.
pub fn app(dir: &Path, release: &str, more: &str) {
    let text = format!(
        "{more}
         require('http').createServer((q, r) => {{ const answer = () => r.end('release {release} slot ' + process.env.ROUNDSMAN_SLOT + ' pid ' + process.pid);
           if (q.url === '/slow') setTimeout(answer, 700); else answer(); }})
         .listen(Number(process.env.PORT || process.argv[2]), '127.0.0.1');"
    );
    write_file(dir, "app.js", &text);
}

pub fn daemon(dir: &Path, instances: &str, via: &str, more: &[&str]) -> Daemon {
    let port = free_port();
    let (listen, script) = (format!("127.0.0.1:{port}"), dir.join("app.js"));
    let mut all =
        vec!["-l", &listen, "-i", instances, "--via", via, "--min-uptime", "100ms", "--backoff", "20ms..50ms"];
    all.extend(more);
    all.extend(["--", "node", script.to_str().unwrap()]);
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(instances.parse().unwrap());
    daemon
}

pub fn verb(daemon: &Daemon, words: &[&str]) -> Output {
    roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap()
}

/// Clients that go on while `act` runs; all must be served.
pub fn under_load(port: u16, clients: usize, act: impl FnOnce()) -> usize {
    let (over, served, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    match get(port) {
                        Ok(body) if body.starts_with("release") => drop(served.fetch_add(1, SeqCst)),
                        other => failed.lock().unwrap().push(format!("{other:?}")),
                    }
                }
            });
        }
        act();
        over.store(true, SeqCst);
    });
    let failed = failed.into_inner().unwrap();
    let served = served.into_inner();
    assert!(failed.is_empty() && served > 0, "{} failed, {served} served: {:?}", failed.len(), failed.first());
    served
}

#[test]
fn a_reload_under_load_loses_nothing_and_replaces_everybody() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "2", via, &[]);
        let before = daemon.workers();
        let served = under_load(daemon.port, 50, || {
            for round in 0..4 {
                app(dir.path(), if round < 3 { "one" } else { "two" }, "");
                let output = verb(&daemon, &["reload"]);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success(), "{via}: {text}{}", String::from_utf8_lossy(&output.stderr));
                assert!(
                    text.contains("slot 0: pid") && text.contains("(2 of 2)") && text.contains("reloaded 2 slots"),
                    "{text}"
                );
            }
        });
        assert!(served > 200, "{served}");
        assert!(get(daemon.port).unwrap().starts_with("release two"));
        assert!(daemon.workers().iter().all(|pid| !before.contains(pid)));
        eventually("open is back to 0", seconds(5), || (daemon.total("open") == 0).then_some(()));
    }
}

#[test]
fn requests_under_way_are_finished_by_the_old_worker() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "1", via, &[]);
        let mut slow = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        eventually("it is received", seconds(10), || (daemon.total("open") == 1).then_some(()));
        app(dir.path(), "two", "");
        assert!(verb(&daemon, &["reload"]).status.success());
        let mut text = String::new();
        slow.read_to_string(&mut text).unwrap();
        assert!(text.contains("release one"), "{via}: {text}");
        assert!(get(daemon.port).unwrap().starts_with("release two"), "{via}");
    }
}

#[test]
fn a_keep_alive_connection_is_closed_when_the_drain_time_is_up() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "1", via, &["--drain-timeout", "500ms", "--node-ipc", "off"]);
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).unwrap();
        stream.set_read_timeout(Some(seconds(10))).unwrap();
        let ask = |mut stream: &TcpStream| -> std::io::Result<usize> {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
            stream.read(&mut [0; 2048])
        };
        assert!(ask(&stream).unwrap() > 0);
        let begin = std::time::Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(verb(&daemon, &["reload"]).status.success()));
            // It goes on working until then.
            std::thread::sleep(millis(300));
            assert!(ask(&stream).unwrap() > 0, "{via}");
        });
        assert!(begin.elapsed() >= millis(500), "{via}");
        assert!(is_closed(&mut stream), "{via}: still open");
        assert!(get(daemon.port).is_ok());
    }
}

#[test]
fn a_release_that_fails_leaves_the_old_one_serving() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "2", via, &["--listen-timeout", "2s"]);
        let before = daemon.workers();
        let fails = |what: &str, text: &str| {
            app(dir.path(), "bad", text);
            let output = verb(&daemon, &["reload"]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{via}: {error}");
            assert!(error.contains(what) && error.contains("stay"), "{via}: {error}");
        };
        under_load(daemon.port, 5, || {
            fails("exit code 3", "process.exit(3);");
            fails("not ready within 2 s", "setInterval(() => 1, 1000); return;");
        });
        // One that dies when it already serves takes along what it had received, and nothing else.
        fails("exit code 5", "setTimeout(() => process.exit(5), 60);");
        assert_eq!(daemon.workers(), before, "{via}: {}", daemon.log());
        assert!(daemon.slots().iter().all(|slot| slot["state"] == "online"));
        app(dir.path(), "two", "");
        assert!(verb(&daemon, &["reload"]).status.success());
        assert!(get(daemon.port).unwrap().starts_with("release two"));
    }
}

#[test]
fn hup_reloads_and_a_second_reload_is_told() {
    let dir = install_dir();
    app(dir.path(), "one", "");
    let mut daemon = daemon(dir.path(), "2", "direct", &[]);
    app(dir.path(), "two", "");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for("reloading");
    let output = verb(&daemon, &["reload"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("a reload is under way"), "{error}");
    daemon.wait_for("reloaded");
    assert!(get(daemon.port).unwrap().starts_with("release two"));
    // A stop in the middle of one is a stop.
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_count("reloading", 2);
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{}", end.log);
    unsaid(&end.log, &["did not end"]);
}

#[test]
fn scale_up_and_down_by_verb_and_by_signal() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "1", via, &[]);
        under_load(daemon.port, 5, || {
            for (to, count) in [("3", 3), ("-1", 2), ("+2", 4), ("1", 1)] {
                let output = verb(&daemon, &["scale", to]);
                assert!(output.status.success(), "{via}: {}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(daemon.slots().len(), count, "{via}");
            }
            daemon.signal(Signal::SIGTTIN);
            daemon.wait_online(2);
            daemon.signal(Signal::SIGTTOU);
            eventually("one slot", seconds(10), || (daemon.slots().len() == 1).then_some(()));
        });
        for bad in ["0", "-1", "2000"] {
            let output = verb(&daemon, &["scale", bad]);
            assert!(output.status.code() == Some(1), "{bad}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(verb(&daemon, &["scale", "many"]).status.code(), Some(2));
    }
}

#[test]
fn restart_stops_all_first_and_clients_wait() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let daemon = daemon(dir.path(), "2", via, &[]);
        app(dir.path(), "two", "");
        under_load(daemon.port, 10, || {
            let output = verb(&daemon, &["restart"]);
            assert!(output.status.success(), "{via}: {}", String::from_utf8_lossy(&output.stderr));
        });
        assert!(get(daemon.port).unwrap().starts_with("release two"));
    }
}

#[test]
fn the_command_is_looked_up_anew_at_each_start() {
    let dir = install_dir();
    for release in ["a", "b"] {
        let place = dir.path().join(release);
        std::fs::create_dir(&place).unwrap();
        app(&place, release, "");
    }
    let current = dir.path().join("current");
    std::os::unix::fs::symlink(dir.path().join("a"), &current).unwrap();
    let daemon = daemon(&current, "1", "direct", &[]);
    assert!(get(daemon.port).unwrap().starts_with("release a"));
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(dir.path().join("b"), &current).unwrap();
    assert!(verb(&daemon, &["reload"]).status.success());
    assert!(get(daemon.port).unwrap().starts_with("release b"));
    // The same where the link is the working directory.
    drop(daemon);
    let port = free_port();
    let mut command = Command::new("sh");
    let line = format!("cd {} && exec {} \"$@\"", current.display(), env!("CARGO_BIN_EXE_roundsman"));
    command.args(["-c", &line, "sh"]);
    let daemon =
        Daemon::launch(command, &["-i", "1", "--min-uptime", "100ms", "--", "node", "app.js", &port.to_string()], port);
    daemon.wait_online(1);
    assert!(get(port).unwrap().starts_with("release b"));
    std::fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink(dir.path().join("a"), &current).unwrap();
    assert!(verb(&daemon, &["reload"]).status.success());
    assert!(get(port).unwrap().starts_with("release a"));
}

#[test]
fn a_verb_without_a_daemon_or_with_several_says_so() {
    let dir = install_dir();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
        command
            .args(words)
            .env_remove("ROUNDSMAN_CONTROL")
            .env("XDG_RUNTIME_DIR", dir.path())
            .env_remove("RUNTIME_DIRECTORY");
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = run(&["reload"]);
    assert!(code == 69 && text.contains("no roundsman daemon"), "{text}");
    let (code, text) = run(&["reload", "nobody"]);
    assert!(code == 69 && text.contains("no roundsman daemon"), "{text}");
    let sockets = ["one", "two"].map(|name| dir.path().join("roundsman").join(format!("{name}.sock")));
    let daemons: Vec<_> = sockets
        .iter()
        .map(|socket| {
            let port = free_port();
            let listen = format!("127.0.0.1:{port}");
            let name = socket.file_stem().unwrap().to_str().unwrap();
            let control = socket.to_str().unwrap();
            Daemon::launch(
                roundsman(),
                &["-l", &listen, "-i", "1", "-u", "127.0.0.1:9", "--name", name, "--control", control],
                port,
            )
        })
        .collect();
    daemons.iter().for_each(|daemon| daemon.wait_for("worker online"));
    let (code, text) = run(&["reload"]);
    assert!(code == 2 && text.contains("one") && text.contains("two"), "{text}");
    assert_eq!(run(&["reload", "one"]).0, 0);
}

#[test]
fn stop_refuses_clients_and_start_serves_again() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        app(dir.path(), "one", "");
        let mut daemon = daemon(dir.path(), "2", via, &[]);
        assert!(get(daemon.port).is_ok());
        let output = verb(&daemon, &["stop"]);
        assert!(output.status.success(), "{via}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(refused(daemon.port), "{via}");
        assert!(daemon.workers().is_empty(), "{via}");
        let table = verb(&daemon, &["ls"]);
        assert!(String::from_utf8_lossy(&table.stdout).contains("stopped"), "{via}");
        assert_eq!(daemon.slots().iter().filter(|slot| slot["state"] == "gone").count(), 2, "{via}");
        let output = verb(&daemon, &["reload"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("it was stopped; started 2 slots"), "{via}: {said}");
        assert!(get(daemon.port).is_ok() && verb(&daemon, &["stop"]).status.success(), "{via}");
        assert_eq!(verb(&daemon, &["scale", "3"]).status.code(), Some(1), "{via}");
        assert!(verb(&daemon, &["start"]).status.success());
        under_load(daemon.port, 5, || {
            // Some hundred requests.
            std::thread::sleep(millis(200))
        });
        assert_eq!(daemon.slots().len(), 2);
        // One that is stopped ends at once.
        assert!(verb(&daemon, &["stop"]).status.success());
        assert_eq!(daemon.stop().code(), 0, "{via}");
    }
}

#[test]
fn on_a_terminal_a_reload_shows_its_progress() {
    let dir = install_dir();
    app(dir.path(), "one", "");
    let daemon = daemon(dir.path(), "2", "direct", &[]);
    let line = format!("{} reload --control {}", env!("CARGO_BIN_EXE_roundsman"), daemon.control().display());
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let [first, second, last] = lines[..] else { panic!("{text:?}") };
    assert!(first.starts_with("slot ") && first.ends_with("(1 of 2)"), "{text:?}");
    assert!(second.starts_with("slot ") && second.ends_with("(2 of 2)"), "{text:?}");
    assert!(last.starts_with("reloaded 2 slots in "), "{text:?}");
}

#[test]
fn scaling_down_takes_along_a_server_whose_relay_worker_has_just_died() {
    let dir = install_dir();
    app(dir.path(), "one", "");
    let (port, script) = (free_port(), dir.path().join("app.js"));
    let listen = format!("127.0.0.1:{port}");
    let all =
        ["-l", &listen, "-i", "2", "--via", "relay", "--backoff", "5s..5s", "--", "node", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(2);
    let relay = nix::unistd::Pid::from_raw(daemon.workers()[1]);
    nix::sys::signal::kill(relay, Signal::SIGKILL).unwrap();
    daemon.wait_for("relay worker exited");
    let output = verb(&daemon, &["scale", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.slots().len(), 1);
}
