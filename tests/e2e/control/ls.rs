//! `ls`: on terminals of several widths and through a pipe, with and without colours, for one service and for many slots.
//! Mostly waits: tests/run runs it beside others.

use std::process::Command;

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::support::{Daemon, eventually, free_port, install_dir, millis, on_terminal, roundsman, seconds, write_file};

/// web: two slots with a port; many: 64 without.
fn several(dir: &std::path::Path) -> Daemon {
    let port = free_port();
    let text = format!(
        "[service.web]\nlisten = \"127.0.0.1:{port}\"\ninstances = 2\ncommand = [{:?}, \"demo-server\"]\nout = \"{}/out-{{slot}}.log\"\n\
         stop-signal = \"QUIT\"\nmax-memory = \"512MiB\"\ndrain-timeout = \"3s\"\n\
         [service.many]\nno-listen = true\ninstances = 64\nmin-uptime = \"10ms\"\ncommand = [\"sleep\", \"1000\"]\n",
        env!("CARGO_BIN_EXE_roundsman"),
        dir.display()
    );
    let file = write_file(dir, "a.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    eventually("all are online", seconds(60), || {
        let state = daemon.ls();
        let online = |at: usize| {
            state["services"][at]["slots"]
                .as_array()
                .map_or(0, |slots| slots.iter().filter(|slot| slot["state"] == "online").count())
        };
        (online(0) == 2 && online(1) == 64).then_some(())
    });
    daemon
}

fn ls(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = roundsman();
    command.arg("ls").args(words).env("ROUNDSMAN_CONTROL", daemon.control()).env_remove("NO_COLOR");
    command
}

fn piped(daemon: &Daemon, words: &[&str]) -> String {
    String::from_utf8(ls(daemon, words).output().unwrap().stdout).unwrap()
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn a_table_fits_its_terminal_and_has_colours_only_where_they_are_wanted() {
    let dir = install_dir();
    let daemon = several(dir.path());
    for words in [&[][..], &["web"], &["many"]] {
        for width in [40, 80, 200] {
            for no_color in [false, true] {
                let mut command = ls(&daemon, words);
                if no_color {
                    command.env("NO_COLOR", "1");
                }
                let text = on_terminal(&mut command, width);
                assert_eq!(text.contains('\u{1b}'), !no_color, "{words:?} {width}: {text:?}");
                assert_eq!(text.contains("\u{1b}[32monline\u{1b}[0m"), !no_color, "{words:?} {width}: {text:?}");
                let text = plain(&text);
                assert!(text.lines().all(|line| line.width() <= width.into()), "{words:?} {width}: {text}");
                let slots = text.lines().filter(|line| line.contains(" online ")).count();
                assert_eq!(slots, [66, 2, 64][words.first().map_or(0, |&name| if name == "web" { 1 } else { 2 })]);
            }
        }
        // A pipe gets every column, however narrow the terminal was.
        let text = piped(&daemon, words);
        let titles = if words.is_empty() { "OPEN  PEND" } else { "RESCUED" };
        assert!(!text.contains('\u{1b}') && text.contains(titles), "{text}");
    }
    let text = piped(&daemon, &[]);
    let first = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!((first("SERVICE"), first("web"), first("many"), text.lines().count()), (1, 1, 1, 67), "{text}");
}

#[test]
fn one_service_is_shown_with_where_it_runs_and_what_bounds_it() {
    let dir = install_dir();
    let daemon = several(dir.path());
    let text = piped(&daemon, &["web"]);
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.trim_start()[name.len()..].trim().to_owned()
    };
    let cwd = std::env::current_dir().unwrap();
    assert_eq!(value("directory"), cwd.to_str().unwrap());
    assert!(value("command").ends_with("demo-server"));
    assert_eq!(value("stdout"), format!("{}/out-{{slot}}.log", dir.path().display()));
    assert!(value("stderr").contains("roundsman logs"));
    assert_eq!(value("memory"), "at most 512.0M a worker");
    assert!(value("timeouts").contains("drain 3s"));
    assert_eq!(value("signals"), format!("SIGQUIT stops a server; SIGHUP to {} reloads", daemon.pid()));
    assert_eq!(value("listens on"), format!("127.0.0.1:{} (2 workers)", daemon.port));
    let state = daemon.ls();
    let web = &state["services"][0];
    assert_eq!(web["limits"]["drain_timeout_ms"], 3000);
    assert_eq!(web["limits"]["max_memory_bytes"], 512 << 20);
    assert_eq!((web["stop_signal"].as_str(), web["cwd"].as_str()), (Some("SIGQUIT"), cwd.to_str()));
}

#[test]
fn a_server_that_all_slots_share_is_shown() {
    let (port, own) = (free_port(), free_port());
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{own}"));
    let server = format!(
        "import http.server; http.server.HTTPServer(('127.0.0.1', {own}), http.server.BaseHTTPRequestHandler).serve_forever()"
    );
    let all = ["-l", &listen, "-u", &upstream, "-i", "1", "--name", "one", "--", "python3", "-c", &server];
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(1);
    let state = daemon.ls();
    let server = &state["services"][0]["server"];
    assert_eq!(server["state"], "online");
    let pid = server["pid"].as_u64().unwrap();
    assert!(server["rss_bytes"].as_u64().unwrap() > 100_000 && server["cpu"].is_number(), "{server}");
    let text = piped(&daemon, &["one"]);
    assert!(text.contains(&format!("shared by all slots: online, pid {pid}, up ")), "{text}");
}

#[test]
fn the_use_of_cpu_is_current_and_a_look_right_after_another_shows_it_too() {
    let dir = install_dir();
    let script = write_file(dir.path(), "busy.sh", "while [ ! -e stop ]; do :; done; exec sleep 1000");
    let text = format!(
        "[service.busy]\nno-listen = true\ninstances = 1\nmin-uptime = \"10ms\"\ncwd = {:?}\ncommand = [\"sh\", {script:?}]\n\
         [service.idle]\nno-listen = true\ninstances = 1\nmin-uptime = \"10ms\"\ncommand = [\"sleep\", \"1000\"]\n",
        dir.path()
    );
    let file = write_file(dir.path(), "a.toml", &text);
    let daemon = Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], 0);
    let cpu = |at: usize| daemon.ls()["services"][at]["slots"][0]["cpu"].as_f64();
    // The first look: over its life.
    eventually("it is busy", seconds(30), || cpu(0).filter(|&cpu| cpu > 10.0));
    for _ in 0..5 {
        let (busy, idle) = (cpu(0).unwrap(), cpu(1).unwrap());
        assert!(busy > 5.0 && idle < busy, "{busy} {idle}");
    }
    let table = piped(&daemon, &[]);
    assert!(table.lines().any(|line| line.starts_with("busy") && line.contains('%')), "{table}");
    // From now on it sleeps: its life still says otherwise.
    write_file(dir.path(), "stop", "");
    eventually("it is idle", seconds(30), || {
        std::thread::sleep(millis(550));
        cpu(0).filter(|&cpu| cpu < 1.0)
    });
    assert_eq!(daemon.ls()["services"][0]["slots"][0]["cpu"].as_f64().map(|cpu| cpu < 1.0), Some(true));
}

#[test]
fn several_daemons_share_one_table() {
    let dir = install_dir();
    let launch = |name: &str| {
        let mut command = Command::new("env");
        command.args(["-u", "ROUNDSMAN_CONTROL", env!("CARGO_BIN_EXE_roundsman")]).env("XDG_RUNTIME_DIR", dir.path());
        let daemon = Daemon::launch(command, &["--no-listen", "-i", "2", "--name", name, "--", "sleep", "1000"], 0);
        daemon.wait_for_count("worker online", 2);
        daemon
    };
    let _daemons = ["a", "b"].map(launch);
    let output = roundsman().arg("ls").env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let first: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(first, ["SERVICE", "a", "1", "b", "1"], "{text}");
    let json = roundsman().args(["ls", "--json"]).env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let names: Vec<_> = String::from_utf8(json.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["services"][0]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a", "b"]);
}
