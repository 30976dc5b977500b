//! `roundsman -d` returns when the service is online, or with the daemon's error and exit code. `quit`, `unit`, and `ls` from
//! any session.
//! Mostly waits: tests/run runs it beside others.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{
    eventually, free_port, get, install_dir, on_terminal, refused, roundsman, seconds, unprivileged_copy, write_file,
};

const SERVER: &str = env!("CARGO_BIN_EXE_roundsman");
const USER: u32 = 1234;

/// A user with directories of their own; daemons are ended when it is dropped.
struct Place {
    dir: tempfile::TempDir,
    /// Another user, with a copy of the program.
    user: Option<(u32, PathBuf)>,
}

impl Place {
    fn new() -> Self {
        Self { dir: install_dir(), user: None }
    }

    fn of_user() -> Self {
        let dir = install_dir();
        let program = unprivileged_copy(dir.path());
        for name in ["home", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            chown(dir.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        Self { dir, user: Some((USER, program)) }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = roundsman();
        if let Some((uid, program)) = &self.user {
            command = Command::new(program);
            command.uid(*uid).gid(*uid).env("HOME", self.path().join("home")).env_remove("XDG_STATE_HOME");
            command.stdin(std::process::Stdio::null());
        } else {
            command.env("XDG_STATE_HOME", self.path().join("state"));
        }
        command.args(words).current_dir(self.path()).env("XDG_RUNTIME_DIR", self.path().join("run"));
        command.env_remove("RUNTIME_DIRECTORY").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Exit code, stdout, stderr.
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.command(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    fn succeeds(&self, words: &[&str]) -> String {
        let (code, out, err) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {out}{err}");
        out
    }

    fn log(&self, name: &str) -> String {
        let state = if self.user.is_some() { "home/.local/state" } else { "state" };
        std::fs::read_to_string(self.path().join(state).join("roundsman").join(format!("{name}.log")))
            .unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.command(&["quit", "all"]).output();
    }
}

/// Words that run two servers behind a port.
fn web(place: &Place, listen: &str) -> Vec<String> {
    let server = place.user.as_ref().map_or(SERVER.to_owned(), |(_, program)| program.display().to_string());
    let words = ["-l", listen, "-i", "2", "-n", "web", "--", &server, "demo-server"];
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn joined<'a>(first: &[&'a str], rest: &'a [String]) -> Vec<&'a str> {
    first.iter().copied().chain(rest.iter().map(String::as_str)).collect()
}

#[test]
fn it_returns_when_the_service_is_online_or_with_the_error_and_exit_code_of_the_daemon() {
    for place in [Place::new(), Place::of_user()] {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let words = web(&place, &listen);
        let out = place.succeeds(&joined(&["-d"], &words));
        assert!(get(port).is_ok(), "online when it returns: {out}");
        let state: Value = serde_json::from_str(&place.succeeds(&["ls", "--json"])).unwrap();
        let pid = state["pid"].as_u64().unwrap();
        assert!(out.starts_with(&format!("web online in the background (pid {pid}); log: ")), "{out}");
        let log = place.log("web");
        assert!(log.contains("worker online") && out.contains("/roundsman/web.log"), "{out}{log}");
        // A session of its own, without a terminal.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"), "{stat}");
        // Its port is taken, and its name.
        let (code, out, err) = place.run(&joined(&["-d"], &words));
        assert!(code == 71 && err.contains("address already in use"), "{code} {out}{err}");
        let (code, out, err) = place.run(&["-d", "-n", "web", "--no-listen", "--", "sleep", "600"]);
        assert!(code == 2 && err.contains("the name \"web\" is taken by pid"), "{code} {out}{err}");
        assert!(place.succeeds(&["quit"]).contains(&format!("web: the daemon has ended (pid {pid})")));
        assert!(refused(port));
        assert_eq!(place.run(&["ls"]).0, 69);
    }
}

#[test]
fn each_way_to_fail_has_the_exit_code_and_the_message_that_it_has_in_the_foreground() {
    let place = Place::new();
    write_file(place.path(), "bad.toml", "[service.web]\nlisten = 0.5\n");
    write_file(place.path(), "plain", "no program");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let crash = "echo oops >&2; exit 3";
    let cases: [(&[&str], i32, &str); 9] = [
        (&["-l", &taken, "-i", "1", "--", "true"], 71, "address already in use"),
        (&["--", "./nothing"], 127, "nothing"),
        (&["--", "./plain"], 126, "plain"),
        (&["-c", "bad.toml"], 78, "bad.toml has 1 error"),
        (&["--no-such-option"], 2, "--no-such-option"),
        (&["-l", "127.0.0.1:0", "--max-restarts", "1", "--backoff", "1ms..2ms", "--", "sh", "-c", crash], 3, "oops"),
        (
            &["-l", "127.0.0.1:0", "--max-restarts", "1", "--backoff", "1ms..2ms", "--", "sh", "-c", "kill -9 $$"],
            137,
            "given up",
        ),
        (
            &["-l", "127.0.0.1:0", "-i", "1", "-n", "late", "--listen-timeout", "300ms", "--", "sleep", "600"],
            1,
            "not online within 0.3 s",
        ),
        (&["--no-listen", "-i", "1", "--on-exit", "ok", "--", "true"], 0, "finished"),
    ];
    for (words, code, wanted) in cases {
        let words: Vec<&str> = ["-d"].iter().chain(words).copied().collect();
        let (got, out, err) = place.run(&words);
        assert!(got == code && err.contains(wanted), "{words:?}: {got} {out}{err}");
        if wanted == "oops" {
            assert!(err.contains("given up: no slot is left"), "{err}");
        }
    }
    // The one that is late goes on.
    let out = place.succeeds(&["quit", "late"]);
    assert!(out.contains("late: the daemon has ended"), "{out}");
    assert_eq!(place.run(&["-d", "ls"]).0, 2);
}

#[test]
fn its_log_is_bounded_while_it_runs_and_opened_again_on_request() {
    let place = Place::new();
    let loud = "while :; do echo out-0123456789-0123456789-0123456789; echo err >&2; done";
    let words = ["-d", "-n", "loud", "--no-listen", "-i", "1", "--min-uptime", "1ms", "--rotate-size", "64KiB"];
    place.succeeds(&[&words[..], &["--rotate-keep", "2", "--", "sh", "-c", loud]].concat());
    let logs = || {
        let mut logs: Vec<_> = std::fs::read_dir(place.path().join("state/roundsman"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter_map(|entry| Some((entry.file_name().into_string().unwrap(), entry.metadata().ok()?.len())))
            .collect();
        logs.sort();
        logs
    };
    let names = |logs: Vec<(String, u64)>| logs.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let all = ["loud.log", "loud.log.1", "loud.log.2"];
    eventually("two are kept", seconds(30), || (names(logs()) == all).then_some(()));
    // Many times over. A piece that is written at once may be 64 KiB itself.
    let inode = || std::fs::metadata(place.path().join("state/roundsman/loud.log")).map(|meta| meta.ino());
    for _ in 0..20 {
        let before = inode().ok();
        eventually("it is renamed again", seconds(30), || inode().ok().filter(|&now| Some(now) != before));
        assert!(logs().iter().all(|(_, size)| *size <= 256 << 10), "{:?}", logs());
    }
    eventually("no more are kept", seconds(10), || (names(logs()) == all).then_some(()));
    place.succeeds(&["quit"]);
    // What was moved away by others.
    let words = ["-d", "-n", "calm", "--no-listen", "-i", "1", "--min-uptime", "1ms", "--", "sleep", "600"];
    let out = place.succeeds(&words);
    let pid: i32 = out.split("(pid ").nth(1).unwrap().split(')').next().unwrap().parse().unwrap();
    let log = place.path().join("state/roundsman/calm.log");
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1).unwrap();
    eventually("a new file", seconds(10), || log.exists().then_some(()));
    place.succeeds(&["quit"]);
    // Its last lines are written as it ends.
    eventually("the new one has the end", seconds(10), || {
        place.log("calm").contains("stopped service=calm").then_some(())
    });
    let old = std::fs::read_to_string(log.with_extension("old")).unwrap();
    assert!(old.contains("starting service=calm") && !old.contains("stopped"), "{old}");
}

#[test]
fn on_a_terminal_it_lets_go_of_it() {
    let place = Place::new();
    let port = free_port();
    let words = web(&place, &format!("127.0.0.1:{port}"));
    // Joined with another letter; and this returns when nobody has the terminal any more.
    let joined: Vec<&str> = std::iter::once("-dl").chain(words.iter().skip(1).map(String::as_str)).collect();
    let text = on_terminal(&mut place.command(&joined), 200);
    assert!(text.contains("web online in the background"), "{text}");
    assert!(get(port).is_ok());
    for verb in [&["list"][..], &["status"], &["describe", "web"], &["ls", "web"]] {
        assert!(place.succeeds(verb).contains("web"), "{verb:?}");
    }
    place.succeeds(&["kill", "web"]);
}

#[test]
fn of_several_services_none_is_ended_alone() {
    let place = Place::new();
    let service = |name: &str| {
        format!(
            "[service.{name}]\nno-listen = true\ninstances = 1\nmin-uptime = \"1ms\"\ncommand = [\"sleep\", \"600\"]\n"
        )
    };
    write_file(place.path(), "two.toml", &format!("{}{}", service("a"), service("b")));
    let out = place.succeeds(&["-d", "-c", "two.toml"]);
    assert!(out.starts_with("a, b online"), "{out}");
    let (code, _, err) = place.run(&["quit", "a"]);
    assert!(code == 1 && err.contains("a is one of several services of two") && err.contains("quit two"), "{err}");
    place.succeeds(&["health"]);
    // With another daemon, verbs want to know which.
    let (_, _, err) = place.run(&["-d", "-n", "two", "--no-listen", "--", "sleep", "600"]);
    assert!(err.contains("taken by pid") && err.contains("`roundsman reload two`") && err.contains("--name"), "{err}");
    place.succeeds(&["-d", "-n", "c", "--no-listen", "-i", "1", "--min-uptime", "1ms", "--", "sleep", "600"]);
    for (verb, wanted) in [("quit", "say which: c, a, b; or all\n"), ("logs", "say which: c, a, b\n")] {
        let (code, _, err) = place.run(&[verb]);
        assert!(code == 2 && err.ends_with(wanted), "{verb}: {err}");
    }
    place.succeeds(&["quit", "two", "c"]);
    assert_eq!(place.run(&["quit"]).0, 69);
}

#[test]
fn what_the_daemon_warns_of_at_its_start_is_shown() {
    let place = Place::new();
    let words = ["-d", "-n", "job", "--no-listen", "-i", "1", "--min-uptime", "1ms", "--", "sleep", "600"];
    for format in ["text", "json"] {
        let mut command = place.command(&words);
        command.env("ROUNDSMAN_POLCY", "rr").env("ROUNDSMAN_LOG_FORMAT", format);
        let output = command.output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && err.contains("unknown variable ROUNDSMAN_POLCY"), "{err}");
        assert_eq!(err.lines().count(), 1, "no more of its log: {err}");
        place.succeeds(&["quit"]);
    }
}

#[test]
fn ls_finds_daemons_of_other_sessions_and_a_chosen_place_is_looked_at_alone() {
    let mut place = Place::of_user();
    // No user of another test.
    let uid = 40_000 + std::process::id() % 20_000;
    if let Some((user, _)) = &mut place.user {
        *user = uid;
    }
    chown(place.path().join("home"), Some(uid), Some(uid)).unwrap();
    let session = PathBuf::from(format!("/run/user/{uid}"));
    std::fs::create_dir_all(&session).unwrap();
    chown(&session, Some(uid), Some(uid)).unwrap();
    std::fs::set_permissions(&session, PermissionsExt::from_mode(0o700)).unwrap();
    let at = |command: &mut Command, session: Option<&Path>| {
        match session {
            Some(session) => command.env("XDG_RUNTIME_DIR", session),
            None => command.env_remove("XDG_RUNTIME_DIR"),
        };
        let output = command.env_remove("TMPDIR").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    };
    let job = ["-d", "--no-listen", "-i", "1", "--min-uptime", "1ms", "-n"];
    let named = |name| [&job[..], &[name, "--", "sleep", "600"]].concat();
    let (code, said) = at(&mut place.command(&named("inside")), Some(&session));
    assert_eq!(code, 0, "{said}");
    let (code, said) = at(&mut place.command(&named("cron")), None);
    assert_eq!(code, 0, "{said}");
    // A name is one name, whichever the session.
    let (code, said) = at(&mut place.command(&named("inside")), None);
    assert!(code == 2 && said.contains("is taken by pid"), "{said}");
    for place_of in [Some(session.as_path()), None] {
        let (_, said) = at(&mut place.command(&["ls"]), place_of);
        assert!(said.contains("inside") && said.contains("cron"), "{said}");
    }
    let (code, said) = at(&mut place.command(&["ls"]), Some(&place.path().join("run")));
    assert!(code == 69 && said.contains("no roundsman daemon"), "{said}");
    let (code, said) = at(&mut place.command(&["quit", "all"]), None);
    assert_eq!(code, 0, "{said}");
    std::fs::remove_dir_all(&session).unwrap();
    let _ = std::fs::remove_dir_all(format!("/tmp/roundsman-{uid}"));
}

/// What systemd says of a unit, apart from what is not installed here.
fn verify(dir: &Path, name: &str, text: &str, user: bool) -> Vec<String> {
    let unit = write_file(dir, &format!("{name}.service"), text);
    let mut tool = Command::new("systemd-analyze");
    if user {
        tool.arg("--user").env("XDG_RUNTIME_DIR", dir);
    }
    let output = tool.arg("verify").arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let own = said.lines().filter(|line| line.contains(name) && !line.contains("man roundsman"));
    own.map(str::to_owned).collect()
}

#[test]
fn a_unit_runs_what_the_daemon_runs_or_a_file() {
    let place = Place::new();
    let port = free_port();
    let words = web(&place, &format!("127.0.0.1:{port}"));
    let odd = ["-d", "--env", "ODD=a b%c$d\"e\\f", "--stop-timeout", "21s"];
    let mut command = place.command(&joined(&odd, &words));
    assert!(command.env("ROUNDSMAN_MAX_SURGE", "2").output().unwrap().status.success());
    let cwd = format!("WorkingDirectory={}\n", std::fs::canonicalize(place.path()).unwrap().display());
    for user in [false, true] {
        let flag: &[&str] = if user { &["--user"] } else { &[] };
        let text = place.succeeds(&[&["unit", "web"], flag].concat());
        assert_eq!(verify(place.path(), "roundsman-web", &text, user), Vec::<String>::new(), "{text}");
        let wanted: [&str; 9] = [
            &format!(
                "ExecStart={SERVER} --env \"ODD=a b%%c$$d\\\"e\\\\f\" --stop-timeout 21s -l 127.0.0.1:{port} -i 2 -n web --"
            ),
            &format!("ExecReload={SERVER} reload web\n"),
            "Environment=ROUNDSMAN_MAX_SURGE=2\n",
            "\nTimeoutStopSec=28\n",
            &cwd,
            "Type=notify\n",
            if user { "WantedBy=default.target\n" } else { "WantedBy=multi-user.target\n" },
            if user {
                "systemctl --user enable --now roundsman-web\n"
            } else {
                "sudo systemctl enable --now roundsman-web\n"
            },
            if user {
                "tee ~/.config/systemd/user/roundsman-web.service"
            } else {
                "tee /etc/systemd/system/roundsman-web.service"
            },
        ];
        for wanted in wanted {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(text.contains("Environment=PATH=") || text.contains("Environment=\"PATH="), "{text}");
        assert!(!text.contains(" -d "), "{text}");
    }
    // It was looked at.
    let broken = place.succeeds(&["unit"]).replace("ExecStart=", "ExecStart=relative/");
    assert_ne!(verify(place.path(), "roundsman-broken", &broken, false), Vec::<String>::new());
    place.succeeds(&["quit"]);
    write_file(place.path(), "shop.toml", "[service.web]\nlisten = 8080\ncommand = [\"node\", \"app.js\"]\n");
    let text = place.succeeds(&["unit", "-c", "shop.toml"]);
    assert_eq!(verify(place.path(), "roundsman-web", &text, false), Vec::<String>::new(), "{text}");
    assert!(text.contains(&format!(" -c {}/shop.toml\n", place.path().display())), "{text}");
    assert_eq!(place.run(&["unit"]).0, 69);
    assert_eq!(place.run(&["unit", "-c", "none.toml"]).0, 78);
    eventually("its end", seconds(5), || refused(port).then_some(()));
}
