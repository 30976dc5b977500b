//! What people are told, word by word: snapshots beside this file (cargo insta, or INSTA_UPDATE=always, renews them).
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use crate::support::{install_dir, roundsman, write_file};

/// Runs in a directory: exit code, stdout and stderr as one text without what differs from run to run.
fn said(dir: &Path, words: &[&str]) -> String {
    let mut command = roundsman();
    command
        .args(words)
        .current_dir(dir)
        .env("XDG_RUNTIME_DIR", dir)
        .env_remove("RUNTIME_DIRECTORY")
        .env("COLUMNS", "80");
    let output = command.output().unwrap();
    let text = format!(
        "$ roundsman {}\n{}{}exit code {}\n",
        words.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().unwrap()
    );
    text.replace(dir.to_str().unwrap(), "DIR")
}

#[test]
fn mistakes_in_a_file() {
    let dir = install_dir();
    let files = [
        (
            "keys",
            "log-levl = \"info\"\npolicy = \"rr\"\nservise = 1\nlisten = 80\n[service.web]\ncommand = \"node app.js\"\n\
             max_restarts = 3\nport = 80\nname = \"x\"\nlog-level = \"debug\"\nwait-ready = \"yes\"\nfoobarbaz = 1\n",
        ),
        (
            "values",
            "log-format = \"xml\"\n[service.web]\ncommand = [\"true\", 1, true]\nlisten = [\"127.0.0.1:99999\", 80, {}]\n\
             instances = \"lots\"\ndrain-timeout = 10\npolicy = \"leastconn\"\nmax-memory = \"12\"\nstop-signal = \"STOPIT\"\n\
             rotate-size = \"5 apples\"\nenv = { A = [1] }\nuser = 1979-05-27\nmax-restarts = 0x10\n",
        ),
        (
            "meaning",
            "[service.a]\ncommand = [\"no-such-program\"]\n[service.b]\nlisten = [1, 2, 1]\nupstream = \"a:1\"\n\
             [service.c]\n[service.d]\nupstream = \"a:1\"\n[service.e]\nlisten = 7\nupstream = \"a:1\"\n[service.f]\n\
             listen = 7\nupstream = \"a:1\"\n[service.g]\ncommand = [\"true\"]\nuser = \"no-such-user\"\n[service.h]\n\
             command = [\"true\"]\ncwd = \"nowhere\"\n[service.i]\ncommand = [\"true\"]\nenv-file = \"nowhere.env\"\n\
             [service.\"j k\"]\ncommand = [\"true\"]\n[service.l]\ncommand = [\"true\"]\nno-listen = true\nlisten = 9\n",
        ),
        (
            "words",
            "[service.a]\ncommand = [\"no--such\"]\n[service.b]\ncommand = [\"app--1.js\"]\n[service.c]\n\
             command = [\"A=--1 node --app.js\"]\n[service.d]\ncommand = [\"A=--1\"]\n[service.e]\nvia = \"direct\"\n\
             listen = 1\nupstream = \"a:1\"\n[service.f]\ncommand = [\"true\"]\nvia = \"relay\"\nlisten = \"2=3000\"\n\
             [service.g]\nlisten = 3\nupstream = \"127.0.0.1:3\"\n[service.h]\ncommand = [\"true\"]\nvia = \"relay\"\n\
             listen = 4\nnode-ipc = \"cluster\"\n[service.i]\ncommand = [\"/etc/passwd\"]\n",
        ),
        ("syntax", "[service.web\ncommand = [\"true\"]\npolicy = \"rr\nlisten = = 3\n[service.web]\n"),
        ("twice", "[service.web]\ncommand = [\"true\"]\n[service.web]\npolicy = \"rr\"\n"),
        ("shape", "service = 3\n"),
        ("empty", ""),
    ];
    for (name, text) in files {
        write_file(dir.path(), "a.toml", text);
        insta::assert_snapshot!(format!("mistakes_{name}"), said(dir.path(), &["check", "-c", "a.toml"]));
    }
    std::fs::write(dir.path().join("binary.toml"), b"a = \"\xff\"").unwrap();
    let unreadable =
        [&["-c", "nowhere.toml"][..], &["-c", "."], &["-c", "binary.toml"]].map(|words| said(dir.path(), words));
    insta::assert_snapshot!("mistakes_unreadable", unreadable.join("\n"));
    write_file(
        dir.path(),
        "two.toml",
        "[service.a]\nlisten = 1\nupstream = \"a:1\"\n[service.b]\nlisten = 2\nupstream = \"a:1\"\n",
    );
    let flags =
        [&["-c", "two.toml", "-l", "80"][..], &["-c", "two.toml", "--", "true"], &["two.toml"], &["start", "two.toml"]];
    insta::assert_snapshot!("mistakes_flags_beside_a_file", flags.map(|words| said(dir.path(), words)).join("\n"));
}

#[test]
fn slips_on_the_command_line() {
    let dir = install_dir();
    write_file(dir.path(), "app.js", "");
    let slips = [
        &["app.js"][..],
        &["node", "app.js", "--port", "80"],
        &["start", "app.js"],
        &["restart", "./server"],
        &["relaod"],
        &["--polcy", "rr", "--", "true"],
        &["-p", "3000", "--", "true"],
        &["-l", "80", "-i", "2"],
        &["-l", "1", "--", "app.js"],
        &["-l", "1", "--", "./app.js"],
        &["-l", "1", "--", "no-such-program"],
        &["-u", "3000"],
        &["-u", "http://a:80/", "-l", "1"],
        &["--env", "A", "--", "true"],
        &["scale"],
        &["scale", "many"],
        &["ls"],
        &["logs", "web/x"],
        &["health"],
        &["reload", "nobody"],
        &["import", "nowhere.js"],
        &["import", "app.js"],
        &["import", "app.txt"],
        &["completions", "basic"],
    ];
    insta::assert_snapshot!("slips", slips.map(|words| said(dir.path(), words)).join("\n"));
}

#[test]
fn help() {
    let dir = install_dir();
    insta::assert_snapshot!("help_short", said(dir.path(), &["-h"]));
    for verb in ["ls", "logs", "health", "reload", "scale", "import", "check"] {
        let text = said(dir.path(), &[verb, "--help"]);
        assert!(text.contains("Usage: roundsman") && text.ends_with("exit code 0\n"), "{text}");
    }
}

#[test]
fn completions_and_manual_pages() {
    let dir = install_dir();
    for (shell, words) in [("bash", "_roundsman"), ("zsh", "#compdef roundsman"), ("fish", "complete -c roundsman")] {
        let script = said(dir.path(), &["completions", shell]);
        assert!(script.contains(words) && script.contains("stall-timeout"), "{script}");
    }
    let page = said(dir.path(), &["man"]);
    assert!(page.contains(".TH roundsman 1") && page.contains("stall\\-timeout"), "{page}");
    assert!(said(dir.path(), &["man", "pages"]).ends_with("exit code 0\n"));
    for page in ["roundsman.1", "roundsman-reload.1", "roundsman-logs.1"] {
        assert!(dir.path().join("pages").join(page).is_file(), "{page}");
    }
}

/// Numbers, paths and widths differ from run to run; the words do not.
fn worded(text: &str, dir: &Path) -> String {
    let text = text.replace(dir.to_str().unwrap(), "DIR");
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            ' ' if out.ends_with(' ') => {}
            c => out.push(c),
        }
    }
    let out = out.replace("#s #ms", "#ms").replace("#.#M", "#M");
    // A stack trace is Node's own affair.
    let lines: Vec<_> = out.lines().map(str::trim_end).filter(|line| !line.contains("| at ")).collect();
    lines.join("\n")
}

#[test]
fn verbs_and_the_log_of_a_life() {
    let dir = install_dir();
    let port = crate::support::free_port();
    write_file(dir.path(), "app.js", "require('http').createServer((_, r) => r.end('ok')).listen(process.env.PORT)");
    let mut command = roundsman();
    command.current_dir(dir.path());
    let listen = format!("127.0.0.1:{port}");
    let all = ["-l", &listen, "-i", "1", "--min-uptime", "200ms", "--", "node", "app.js"];
    let mut daemon = crate::support::Daemon::launch(command, &all, port);
    daemon.wait_online(1);
    let mut said = String::new();
    for words in [
        &["ls"][..],
        &["ls", "app"],
        &["ls", "other"],
        &["health"],
        &["scale", "2"],
        &["scale", "-1"],
        &["scale", "0"],
        &["reload"],
        &["restart"],
        &["stop"],
        &["health"],
        &["ls"],
        &["reload"],
        &["start"],
        &["start", "other"],
    ] {
        let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let code = ["ok", "failed", "misused"].get(output.status.code().unwrap() as usize).unwrap();
        said += &format!("$ roundsman {}\n{out}{err}{code}\n\n", words.join(" "));
    }
    insta::assert_snapshot!("verbs", worded(&said, dir.path()));
    // A reload whose successor fails: the reason and its last lines.
    write_file(dir.path(), "app.js", "throw new Error('a broken release')");
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    insta::assert_snapshot!("reload_failed", worded(&String::from_utf8_lossy(&output.stderr), dir.path()));
    let pid = daemon.workers()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    daemon.wait_for_count("restart_in=", 2);
    let end = daemon.stop();
    let without_time = |line: &str| line.split_once("Z ").map_or(line.to_owned(), |(_, rest)| rest.trim().to_owned());
    let ours: Vec<_> = end.log.lines().filter(|line| line.contains("Z ")).map(without_time).collect();
    // How often the broken release was tried again before the stop is a matter of time.
    let mut seen = Vec::new();
    for line in worded(&ours.join("\n"), dir.path()).lines() {
        if !seen.contains(&line.to_owned()) {
            seen.push(line.to_owned());
        }
    }
    insta::assert_snapshot!("log", seen.join("\n"));
}
