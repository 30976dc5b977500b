//! Commands end with the truth, in bounded time, also where a server never listens.
//! Mostly waits: tests/run runs it beside others.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Daemon, eventually, free_port, get, install_dir, roundsman, seconds, write_file};

/// A verb that must return within 40 s; its exit code and all that it printed.
pub fn bounded(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let mut command = Command::new("timeout");
    command.args(["40", env!("CARGO_BIN_EXE_roundsman")]).args(words).env("ROUNDSMAN_CONTROL", daemon.control());
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = output.status.code().unwrap();
    assert_ne!(code, 124, "{words:?} does not return: {text}\n{}", daemon.log());
    (code, text)
}

/// What `ls` shows as the reason of each slot.
pub fn reasons(daemon: &Daemon) -> Vec<String> {
    daemon.slots().iter().map(|slot| slot["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A server on a port of its own choice, as programs have one by default: an argument.
pub fn fixed(dir: &Path) -> String {
    let text = "import socket, sys\n\
                s = socket.socket()\n\
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
                s.bind(('127.0.0.1', int(sys.argv[1])))\n\
                s.listen(16)\n\
                while True:\n    \
                c, _ = s.accept()\n    \
                c.recv(1000)\n    \
                c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok')\n    \
                c.close()\n";
    write_file(dir, "fixed.py", text).to_str().unwrap().to_owned()
}

#[test]
fn what_was_not_replaced_or_is_not_online_is_an_error() {
    let daemon = Daemon::launch(roundsman(), &["-i", "2", "--listen-timeout", "1s", "--", "sleep", "1000"], 0);
    daemon.wait_for_count("server started", 2);
    let old = daemon.workers();
    let (code, text) = bounded(&daemon, &["reload"]);
    assert!(code == 1 && text.contains("slot 0: the new worker is not ready after 1 s"), "{text}");
    let before = daemon.workers();
    assert!(before.len() == 2 && !before.contains(&old[0]), "{old:?} {before:?}");
    let (code, text) = bounded(&daemon, &["restart"]);
    assert!(code == 1 && text.contains("not all are online after 1 s: slots 0, 1 are launching ("), "{text}");
    assert!(daemon.workers().len() == 2 && !daemon.workers().iter().any(|pid| before.contains(pid)));
    let (code, text) = bounded(&daemon, &["scale", "3"]);
    assert!(code == 1 && text.contains("scaled to 3 slots, not all are online after 1 s: slots 0, 1, 2"), "{text}");
    drop(daemon);
    // One that waits hears of a stop that comes between, also of the daemon's.
    let mut daemon = Daemon::launch(roundsman(), &["-i", "1", "--", "sleep", "1000"], 0);
    daemon.wait_for("server started");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| bounded(&daemon, &["restart"]));
        daemon.wait_for("restarting");
        daemon.signal(Signal::SIGTERM);
        let (code, text) = waits.join().unwrap();
        assert!(code == 1 && text.contains("stopped before all workers were online"), "{text}");
    });
    assert_eq!(daemon.finish(seconds(20)).code(), 0);
    let daemon = Daemon::launch(roundsman(), &["-i", "3", "--", "sleep", "1000"], 0);
    daemon.wait_for_count("server started", 3);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| bounded(&daemon, &["restart"]));
        daemon.wait_for("restarting");
        let (code, text) = bounded(&daemon, &["stop"]);
        assert!(code == 0 && text.contains("stopped 3 slots"), "{text}");
        let (code, text) = waits.join().unwrap();
        assert!(code == 1 && text.contains("stopped before all workers were online"), "{text}");
    });
}

#[test]
fn a_reload_replaces_workers_that_never_listened() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        let idle = "import os, time\nopen('up' + os.environ['ROUNDSMAN_SLOT'], 'w')\ntime.sleep(1000)\n";
        write_file(dir.path(), "app.py", idle);
        let (port, script) = (free_port(), dir.path().join("app.py"));
        let listen = format!("127.0.0.1:{port}");
        let all = ["-l", &listen, "-i", "2", "--via", via, "--min-uptime", "100ms", "--", "python3"];
        let all = [&all[..], &[script.to_str().unwrap()]].concat();
        let mut command = roundsman();
        command.current_dir(dir.path());
        let daemon = Daemon::launch(command, &all, port);
        eventually("both have read their program", seconds(20), || {
            ["up0", "up1"].iter().all(|name| dir.path().join(name).exists()).then_some(())
        });
        let text = std::fs::read_to_string(fixed(dir.path()))
            .unwrap()
            .replace("sys.argv[1]", "__import__('os').environ['PORT']");
        write_file(dir.path(), "app.py", &text);
        let (code, text) = bounded(&daemon, &["reload"]);
        assert!(code == 0 && text.contains("reloaded 2 slots"), "{via}: {text}");
        assert_eq!(get(port).unwrap(), "ok", "{via}");
        assert_eq!(daemon.total("restarts"), 0, "{via}");
        // The next one fails again: what works stays.
        let before = daemon.workers();
        write_file(dir.path(), "app.py", "import sys\nsys.exit(3)\n");
        let (code, text) = bounded(&daemon, &["reload"]);
        assert!(code == 1 && text.contains("the workers before it stay"), "{via}: {text}");
        assert!(daemon.workers() == before && get(port).is_ok(), "{via}");
    }
}

#[test]
fn a_worker_that_crashes_in_a_reload_that_it_has_no_predecessor_in_fails_it() {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.py", "import time\ntime.sleep(1000)\n");
    let all = ["-i", "2", "--backoff", "10ms..20ms", "--on-errored", "stay", "--", "python3", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &all, 0);
    daemon.wait_for_count("server started", 2);
    write_file(dir.path(), "app.py", "raise SystemExit(5)\n");
    let (code, text) = bounded(&daemon, &["reload"]);
    assert!(code == 1 && text.contains("slot 0: the new worker failed: server: exit code 5"), "{text}");
    // Where all are given up a restart says so at once.
    let (code, text) = bounded(&daemon, &["restart"]);
    assert!(code == 1 && text.contains("slots 0, 1 are errored (server: exit code 5)"), "{text}");
}

#[test]
fn a_reload_of_the_file_can_take_the_port_away() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        write_file(dir.path(), "idle.py", "import time\ntime.sleep(1000)\n");
        let port = free_port();
        let service = |more: &str| {
            let text =
                "[service.q]\ncommand = [\"python3\", \"idle.py\"]\ninstances = 2\nmin-uptime = \"100ms\"\n".to_owned();
            write_file(dir.path(), "q.toml", &(text + more));
        };
        service(&format!("listen = [\"127.0.0.1:{port}\"]\nvia = \"{via}\"\n"));
        let mut command = roundsman();
        command.current_dir(dir.path());
        let daemon = Daemon::launch(command, &["-c", "q.toml"], port);
        daemon.wait_for_count("server started", 2);
        let before = daemon.workers();
        service("no-listen = true\n");
        let (code, text) = bounded(&daemon, &["reload"]);
        assert!(code == 0 && text.contains("q: serves no port from now on"), "{via}: {text}");
        let after = daemon.workers();
        assert!(after.len() == 2 && !after.iter().any(|pid| before.contains(pid)), "{via}: {before:?} {after:?}");
        let state = daemon.ls()["services"][0].clone();
        assert!(state["via"] == "none" && state["listen"].as_array().unwrap().is_empty(), "{via}: {state}");
        assert_eq!(bounded(&daemon, &["health"]).0, 0, "{via}");
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "{via}: the port is free again");
    }
}

#[test]
fn a_service_that_is_renamed_is_told_that_the_old_one_has_its_port() {
    let dir = install_dir();
    let (port, script) = (free_port(), fixed(dir.path()));
    let service = |name: &str| {
        let (command, listen) =
            (format!("command = [\"python3\", {script:?}, \"{port}\"]"), format!("127.0.0.1:{port}"));
        write_file(dir.path(), "r.toml", &format!("[service.{name}]\n{command}\nlisten = {listen:?}\ninstances = 1\n"))
    };
    let file = service("old");
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    daemon.wait_online(1);
    service("new");
    let (code, text) = bounded(&daemon, &["reload"]);
    assert!(code == 1 && text.contains("new: service old still listens on"), "{text}");
    assert_eq!(get(port).unwrap(), "ok", "nothing changed");
    // As it says.
    write_file(
        dir.path(),
        "r.toml",
        "[service.other]\ncommand = [\"sleep\", \"1000\"]\nno-listen = true\ninstances = 1\n",
    );
    assert_eq!(bounded(&daemon, &["reload"]).0, 0);
    service("new");
    let (code, text) = bounded(&daemon, &["reload"]);
    assert_eq!((code, get(port).unwrap().as_str()), (0, "ok"), "{text}");
}

#[test]
fn a_port_that_no_listen_serves_ends_the_wait_and_names_what_to_type() {
    for via in ["direct", "relay"] {
        let dir = install_dir();
        let (port, own) = (free_port(), free_port().to_string());
        let (listen, script) = (format!("127.0.0.1:{port}"), fixed(dir.path()));
        let start = |on_errored: &str| {
            let all =
                ["-l", &listen, "-i", "2", "--via", via, "--on-errored", on_errored, "--", "python3", &script, &own];
            Daemon::launch(roundsman(), &all, port)
        };
        let mut daemon = start("exit");
        let end = daemon.finish(seconds(20));
        let advice = match via {
            "direct" => format!("or use -l {port}={own}"),
            _ => "let it read PORT, or put {port} into the command".to_owned(),
        };
        assert!(end.code() == 1 && end.log.contains(&advice), "{via}: {} {}", end.code(), end.log);
        assert!(end.log.contains(&format!("address already in use: its servers all listen on :{own}")), "{}", end.log);
        let daemon = start("stay");
        eventually("both slots are given up", seconds(20), || {
            daemon.slots().iter().all(|slot| slot["state"] == "errored").then_some(())
        });
        assert!(reasons(&daemon).iter().all(|reason| reason.contains(&advice)), "{via}: {:?}", reasons(&daemon));
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "{via}: refused");
    }
    // What the advice says works.
    let dir = install_dir();
    let (port, own) = (free_port(), free_port().to_string());
    let (listen, script) = (format!("{port}={own}"), fixed(dir.path()));
    let daemon = Daemon::launch(roundsman(), &["-l", &listen, "-i", "2", "--", "python3", &script, &own], port);
    daemon.wait_online(2);
    assert_eq!(get(port).unwrap(), "ok");
}

#[test]
fn clients_of_a_service_that_is_given_up_are_reset_and_then_refused() {
    let dir = install_dir();
    let (port, flag) = (free_port(), write_file(dir.path(), "flag", ""));
    let script = fixed(dir.path());
    let guard = format!("[ -e {} ] || exit 3; exec python3 {script} {port}", flag.display());
    let listen = format!("127.0.0.1:{port}");
    let all = ["-l", &listen, "-i", "1", "--max-restarts", "1", "--backoff", "5s..5s", "--on-errored", "stay"];
    let daemon = Daemon::launch(roundsman(), &[&all[..], &["--", "sh", "-c", &guard]].concat(), port);
    daemon.wait_online(1);
    assert_eq!(get(port).unwrap(), "ok");
    std::fs::remove_file(&flag).unwrap();
    let pid = nix::unistd::Pid::from_raw(daemon.workers()[0]);
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    daemon.wait_for("restart_in=");
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // A client waits for 30 s by default, as long as somebody may come.
    client.set_read_timeout(Some(seconds(20))).unwrap();
    let error = client.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{}", daemon.log());
    eventually("refused", seconds(5), || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
    // And it comes back when somebody mends it.
    write_file(dir.path(), "flag", "");
    let (code, text) = bounded(&daemon, &["restart"]);
    assert!(code == 0 && get(port).unwrap() == "ok", "{text}");
}

#[test]
fn a_reload_during_a_restart_has_the_last_word() {
    let dir = install_dir();
    let port = free_port();
    let script = fixed(dir.path());
    let late = write_file(dir.path(), "late.sh", "sleep 1; exec python3 \"$@\"\n");
    let listen = format!("127.0.0.1:{port}");
    let options = ["-l", &listen, "-i", "1", "--via", "direct", "--", "sh", late.to_str().unwrap(), &script];
    let daemon = Daemon::launch(roundsman(), &[&options[..], &[&port.to_string()]].concat(), port);
    daemon.wait_online(1);
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| bounded(&daemon, &["restart"]));
        daemon.wait_for("restarting");
        let (code, text) = bounded(&daemon, &["reload"]);
        assert!(code == 0 && text.contains("reloaded 1 slot"), "{text}");
        let (code, text) = restart.join().unwrap();
        assert!(code == 0 && text.contains("restarted 1 slot"), "{text}");
    });
}
