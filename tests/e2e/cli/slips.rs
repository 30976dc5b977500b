//! Words of other programs, words in another order, and words too many or too few: answered with what to type.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds, unprivileged_copy, write_file};

/// Runs where no daemon is: (exit code, stdout and stderr).
fn run(words: &[&str]) -> (i32, String) {
    let dir = install_dir();
    let output = roundsman().args(words).current_dir(dir.path()).env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

#[track_caller]
fn says(words: &[&str], code: i32, wanted: &str) {
    let (got, text) = run(words);
    assert!(got == code && text.contains(wanted), "{words:?} does not say {wanted:?}: {got} {text}");
    assert!(!text.contains("\n\n\nUsage"), "{words:?}: {text}");
}

#[test]
fn verbs_of_pm2_are_answered_with_what_to_type() {
    for (verb, wanted) in [
        ("jlist", "roundsman ls --json"),
        ("env", "check -c FILE"),
        ("flush", "--rotate-size"),
        ("delete", "roundsman quit NAME"),
        ("shutdown", "roundsman quit ends the daemon"),
        ("save", "roundsman -c roundsman.toml"),
        ("startup", "roundsman unit NAME"),
        ("deploy", "not available"),
        ("reloadLogs", "USR1"),
        ("disable", "roundsman stop NAME"),
    ] {
        says(&[verb], 2, wanted);
        says(&[verb, "api"], 2, wanted);
        assert!(!run(&[verb]).1.contains("did you mean"), "{verb}");
    }
    says(&["relaod"], 2, "did you mean: roundsman reload");
    for (words, wanted) in [
        ("start app.js -i max", "to run a server: roundsman -i max -- node app.js"),
        (
            "start -i 2 app.js --name api -- --port 80",
            "to run a server: roundsman -i 2 --name api -- node app.js --port 80",
        ),
        ("start ./server -i 2", "to run a server: roundsman -i 2 -- ./server"),
        ("start -i", "unexpected argument '-i'"),
    ] {
        says(&words.split(' ').collect::<Vec<_>>(), 2, wanted);
    }
}

#[test]
fn options_after_a_script_and_files_of_pm2_are_understood() {
    for (words, wanted) in [
        ("app.js -i max", "roundsman -i max -- node app.js"),
        ("app.js --name api -i 2 -- --port 80", "roundsman --name api -i 2 -- node app.js --port 80"),
        ("-d app.js -n api", "roundsman -d -n api -- node app.js"),
        // What is not ours is the script's.
        ("app.js --port 80", "roundsman -- node app.js --port 80"),
        ("node app.js -i 2", "roundsman -- node app.js -i 2"),
        ("ecosystem.config.js", "roundsman import ecosystem.config.js > roundsman.toml"),
        ("start ecosystem.config.cjs", "roundsman import ecosystem.config.cjs > roundsman.toml"),
        ("unit processes.json", "roundsman import processes.json > roundsman.toml"),
    ] {
        says(&words.split(' ').collect::<Vec<_>>(), 2, wanted);
    }
    let dir = install_dir();
    write_file(dir.path(), "ecosystem.config.js", "module.exports = { apps: [] }");
    for words in [&["-c"][..], &["check", "-c"], &["-d", "-c"], &["unit", "-c"]] {
        let output = roundsman().args(words).arg("ecosystem.config.js").current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(78) && text.contains("roundsman import ecosystem.config.js"), "{text}");
        assert!(text.lines().count() < 3, "{text}");
    }
}

#[test]
fn options_of_a_verb_are_not_taken_for_those_of_other_programs() {
    for verb in ["demo", "reload", "kill", "list"] {
        says(&["-d", verb], 2, &format!("roundsman -d -- node app.js; {verb} takes no -d"));
    }
    says(&["restart", "api", "--detach"], 2, "restart takes no --detach");
    for words in [&["events", "-t"][..], &["logs", "-D"], &["quit", "--port"]] {
        says(words, 2, "unexpected argument");
    }
}

#[test]
fn policies_of_nginx_and_haproxy_are_answered_with_ours() {
    for (policy, wanted) in [
        ("least_conn", "did you mean least-conn?"),
        ("leastconn", "did you mean least-conn?"),
        ("ip_hash", "did you mean ip-hash?"),
        ("source", "did you mean ip-hash?"),
        ("roundrobin", "did you mean rr?"),
    ] {
        says(&["-l", "1", "-u", "a:1", "-p", policy], 2, wanted);
    }
}

#[test]
fn flags_of_other_programs_are_answered_with_ours() {
    says(&["--port", "8080", "--", "node", "app.js"], 2, "did you mean -l 8080 (--listen)?");
    says(&["--port=8080", "--", "node", "app.js"], 2, "did you mean -l 8080 (--listen)?");
    says(&["--workers", "4", "--", "true"], 2, "did you mean --instances 4?");
    says(&["--max_memory_restart", "1G", "--", "true"], 2, "did you mean --max-memory 1G?");
    says(&["-f", "haproxy.cfg"], 2, "-c FILE");
    says(&["-t"], 2, "roundsman check -c FILE");
    says(&["--config-file", "a.toml"], 2, "did you mean --config a.toml?");
    for flag in ["--daemonize", "-D", "--background"] {
        says(&[flag, "--", "true"], 2, "did you mean -d (--detach)?");
    }
    says(&["app.js"], 2, "to run it as the server: roundsman -- node app.js");
    says(&["node", "app.js", "--port", "80"], 2, "to run it as the server: roundsman -- node app.js --port 80");
    says(&["-l", "1", "-u", "a:1", "--ssl"], 2, "not available in this version");
    says(&["-l", "1", "-u", "a:1", "--acl"], 2, "use `allow` and `deny` with networks");
    says(&["-l", "1", "-u", "a:1", "--limit-conn"], 2, "use `source-conns` and `source-rate`");
    for flag in ["--maxconn", "--worker-connections", "--worker_connections"] {
        says(&["-l", "1", "-u", "a:1", flag], 2, "use `worker-conns` for each worker (more clients wait in line)");
    }
    says(&["--max-requests", "9", "--", "true"], 2, "use `max-served`; it counts connections");
    says(&["--rate-limit", "9", "--", "true"], 2, "use `accept-rate`");
    says(&["-l", "1", "-u", "a:1", "--weight"], 2, "-u 10.0.0.5:6379,weight=3");
    says(&["ls", "-w"], 2, "roundsman ls --watch, or roundsman top");
    says(&["dashboard"], 2, "use: roundsman top");
    says(&["-i", "2", "app.js"], 2, "roundsman -i 2 -- node app.js");
    says(&["-i", "2", "-n", "a b", "app.js", "--x"], 2, "roundsman -i 2 -n 'a b' -- node app.js --x");
    says(&["--", "uvicorn app:app"], 127, "remove the quotes: -- uvicorn app:app");
    says(&["--", "A=1 B=2 uvicorn app:app"], 127, "remove the quotes: --env A=1 --env B=2 -- uvicorn app:app");
    says(&["--", "NODE_ENV=production", "node", "a.js"], 127, "before the command: --env NODE_ENV=production -- …");
    says(&["-i", "9999", "--", "true"], 2, "'max' (or 0, as PM2 has it)");
    says(&["check", "-i", "0", "--", "true"], 0, "instances = 0  # flag; ");
    says(&["send", "cnt"], 2, "a message is needed: roundsman send cnt '{\"a\":1}'");
    says(&["send", "{broken"], 2, "is not JSON");
    says(&["scale", "api"], 2, "'api' is not a number");
}

#[test]
fn keys_of_other_programs_are_named_as_missing_or_as_ours() {
    let dir = install_dir();
    let check = |text: &str| {
        write_file(dir.path(), "a.toml", text);
        let output = roundsman().args(["check", "-c", "a.toml"]).current_dir(dir.path()).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for key in ["health_check", "ssl"] {
        let text = check(&format!("[service.a]\nupstream = \"a:1\"\nlisten = 1\n{key} = 1\n"));
        assert!(text.contains(&format!("unknown key `{key}`: not available in this version")), "{key}: {text}");
    }
    for (key, wanted) in [
        ("maxconn", "use `worker-conns` for each worker (more clients wait in line), or `max-conns` for the service"),
        ("worker_connections", "use `worker-conns`"),
        ("whitelist", "use `allow` and `deny` with networks"),
        ("client_header_timeout", "did you mean `first-byte-timeout`?"),
        ("max_requests", "use `max-served`; it counts connections"),
        ("max_requests_jitter", "did you mean `recycle-jitter`?"),
        ("max-worker-lifetime", "did you mean `max-age`?"),
        ("access_log", "did you mean `access-log`?"),
        ("tcplog", "did you mean `access-log`?"),
        ("bind", "did you mean `listen`?"),
        ("backend", "did you mean `upstream`?"),
        ("balance", "did you mean `policy`?"),
        ("timeout_connect", "did you mean `connect-timeout`?"),
        ("timeout", "`connect-timeout`, `idle-timeout`"),
        ("stats", "admin = 9900"),
        ("mode", "HTTP included"),
        ("kill_signal", "did you mean `stop-signal`?"),
    ] {
        let text = check(&format!("[service.a]\nupstream = \"a:1\"\nlisten = 1\n{key} = 1\n"));
        assert!(text.contains(wanted), "{key}: {text}");
    }
    let text = check(&"Dear reader,\nthis { is = no configuration\n".repeat(30));
    assert!(text.matches("error: ").count() == 11 && text.contains("more mistakes from here on"), "{text}");
    // Paths are shown as short as they can be.
    write_file(dir.path(), "b.toml", "[service.a]\ncommand = [\"true\"]\nout = \"./log/./a.log\"\n");
    let output = roundsman().args(["check", "-c", "b.toml"]).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("/log/a.log\"") && !text.contains("/./"), "{text}");
}

#[test]
fn unknown_variables_are_warned_of_and_those_of_kubernetes_are_not() {
    let dir = install_dir();
    let set = |command: &mut std::process::Command| {
        command.env("ROUNDSMAN_WORKERS", "3").env("ROUNDSMAN_POLCY", "rr").env("ROUNDSMAN_SLOT", "1");
        command.env("ROUNDSMAN_PORT", "tcp://10.0.0.1:80").env("ROUNDSMAN_SERVICE_HOST", "10.0.0.1");
        command.env("ROUNDSMAN_PORT_80_TCP_PORT", "80").current_dir(dir.path());
    };
    let mut check = roundsman();
    set(&mut check);
    let output = check.args(["check", "--", "true"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("unknown variable ROUNDSMAN_WORKERS; did you mean ROUNDSMAN_INSTANCES?"), "{text}");
    assert!(text.contains("unknown variable ROUNDSMAN_POLCY; did you mean ROUNDSMAN_POLICY?"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    let mut command = roundsman();
    set(&mut command);
    let listen = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::launch(command, &["-l", &listen, "-i", "1", "-u", "127.0.0.1:1"], 0);
    daemon.wait_for("WARN unknown variable ROUNDSMAN_WORKERS; did you mean ROUNDSMAN_INSTANCES?");
}

/// A daemon with two services, `a` and `b`, in a runtime directory of its own.
struct Two {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Two {
    fn start(names: [&str; 2]) -> Self {
        let dir = install_dir();
        write_file(dir.path(), "app.js", "setInterval(() => {}, 1000)");
        let service = |name: &str| {
            format!(
                "[service.{name}]\ncommand = [\"node\", \"app.js\"]\ncwd = \".\"\nno-listen = true\ninstances = 1\nmin-uptime = \"1ms\"\n"
            )
        };
        let file = write_file(dir.path(), "two.toml", &names.map(service).concat());
        let mut command = std::process::Command::new("env");
        // The harness sets a control path; names are about the directory.
        command.args(["-u", "ROUNDSMAN_CONTROL", env!("CARGO_BIN_EXE_roundsman")]).env("XDG_RUNTIME_DIR", dir.path());
        let daemon = Daemon::launch(command, &["-c", file.to_str().unwrap()], 0);
        daemon.wait_for_count("worker online", 2);
        Self { daemon, dir }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("roundsman/two.sock")
    }

    #[track_caller]
    fn ask(&self, words: &[&str], code: i32) -> String {
        let output = roundsman().args(words).env("XDG_RUNTIME_DIR", self.dir.path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}\n{}", self.daemon.log());
        text
    }

    /// The processes of a service, once they are so many and online.
    #[track_caller]
    fn pids(&self, service: &str, count: usize) -> Vec<i64> {
        eventually(&format!("{count} of {service} online"), seconds(20), || {
            let state: serde_json::Value = serde_json::from_str(&self.ask(&["ls", service, "--json"], 0)).ok()?;
            let slots = state["services"][0]["slots"].as_array()?.clone();
            let online = slots.len() == count && slots.iter().all(|slot| slot["state"] == "online");
            let pid = |slot: &serde_json::Value| slot["server_pid"].as_i64().or(slot["pid"].as_i64()).unwrap();
            online.then(|| slots.iter().map(pid).collect())
        })
    }
}

#[test]
fn several_services_all_of_them_and_scale_in_both_orders() {
    let two = Two::start(["a", "b"]);
    let before = [two.pids("a", 1), two.pids("b", 1)];
    two.ask(&["restart", "a", "b"], 0);
    let after = [two.pids("a", 1), two.pids("b", 1)];
    assert!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    two.ask(&["restart", "all"], 0);
    let last = [two.pids("a", 1), two.pids("b", 1)];
    assert!(after[0] != last[0] && after[1] != last[1], "{after:?} {last:?}");
    // Options before the verb; by a socket, too.
    let socket = two.socket();
    let socket = socket.to_str().unwrap();
    two.ask(&["--control", socket, "restart", "all"], 0);
    assert_ne!(two.pids("b", 1), last[1]);
    let text = two.ask(&["--control", socket, "ls"], 0);
    assert_eq!(two.ask(&[&format!("--control={socket}"), "status"], 0).lines().count(), text.lines().count());
    // What is not there is not healthy; by a socket, too.
    two.ask(&["--control", socket, "health", "a", "b"], 0);
    assert!(two.ask(&["--control", socket, "health", "a", "nobody"], 1).contains("there is no service \"nobody\""));
    // Nothing is done when one of the names is wrong.
    let before = two.pids("a", 1);
    assert!(two.ask(&["restart", "a", "nobody"], 2).contains("there is no service \"nobody\""));
    assert_eq!(two.pids("a", 1), before);
    two.ask(&["scale", "a", "2"], 0);
    two.pids("a", 2);
    two.ask(&["scale", "+1", "a"], 0);
    two.pids("a", 3);
    two.ask(&["scale", "a", "-2"], 0);
    two.pids("a", 1);
    two.ask(&["health", "a", "b"], 0);
    assert!(two.ask(&["scale", "a", "0"], 1).contains("to stop all workers: roundsman stop"));
    assert!(two.ask(&["stop", "a/0"], 2).contains("a/0 is a slot; this is for the whole service: a"));
    // A slot that is not there.
    assert!(two.ask(&["logs", "a/9"], 1).contains("a has no slot 9; its only one is 0"));
    assert!(two.ask(&["send", "a/9", "1"], 1).contains("a has no slot 9"));
    two.ask(&["logs", "a/0"], 0);
}

#[test]
fn answers_of_several_daemons_are_labelled() {
    let two = Two::start(["a", "b"]);
    let mut command = std::process::Command::new("env");
    command.args(["-u", "ROUNDSMAN_CONTROL", env!("CARGO_BIN_EXE_roundsman")]);
    command.env("XDG_RUNTIME_DIR", two.dir.path());
    let other = Daemon::launch(command, &["-n", "c", "--no-listen", "-i", "1", "--", "sleep", "1000"], 0);
    other.wait_for("worker online");
    let text = two.ask(&["restart", "all"], 0);
    assert!(text.contains("two: ") && text.contains("c: "), "{text}");
    assert!(text.lines().all(|line| line.starts_with("two: ") || line.starts_with("c: ")), "{text}");
    let text = two.ask(&["restart", "a", "c"], 0);
    assert!(text.contains("a: restarted 1 slot") && text.contains("c: restarted 1 slot"), "{text}");
    assert!(!text.contains("a: a: "), "{text}");
    assert_eq!(two.ask(&["restart", "c"], 0), "restarted 1 slot\n");
}

#[test]
fn a_service_that_is_called_all_is_meant_alone() {
    let two = Two::start(["all", "b"]);
    let before = [two.pids("all", 1), two.pids("b", 1)];
    let socket = two.socket();
    two.ask(&["restart", "all"], 0);
    two.ask(&["restart", "all", "--control", socket.to_str().unwrap()], 0);
    let after = [two.pids("all", 1), two.pids("b", 1)];
    assert!(before[0] != after[0] && before[1] == after[1], "{before:?} {after:?}");
}

/// Another user's daemon is there; it is the right to speak to it that is not.
#[test]
fn another_users_socket_is_a_matter_of_permission() {
    let two = Two::start(["a", "b"]);
    let dir = install_dir();
    let copy = unprivileged_copy(dir.path());
    let ask = |control: Option<&Path>, words: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", copy.to_str().unwrap()]).args(words);
        command.env("XDG_RUNTIME_DIR", two.dir.path()).env_remove("ROUNDSMAN_CONTROL");
        control.map(|path| command.env("ROUNDSMAN_CONTROL", path));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let socket = two.socket();
    for control in [None, Some(socket.as_path())] {
        for words in [&["ls"][..], &["reload"], &["stop", "a"], &["logs", "a"], &["health"]] {
            let (code, text) = ask(control, words);
            let wanted = "permission denied for the control socket";
            assert!(code == Some(77) && text.contains(wanted), "{control:?} {words:?}: {code:?} {text}");
            assert!(text.contains("it belongs to root; try sudo"), "{text}");
            assert!(!text.contains("no roundsman daemon"), "{text}");
        }
    }
}
