//! `after`: services that start when others are ready, and stop before them.
//! Mostly waits: tests/run runs it beside others.

use std::path::Path;

use crate::support::{Daemon, free_port, get, install_dir, roundsman, seconds, write_file};

const SERVER: &str = env!("CARGO_BIN_EXE_roundsman");

fn start(dir: &Path, text: &str) -> Daemon {
    write_file(dir, "app.toml", text);
    let mut command = roundsman();
    command.current_dir(dir);
    Daemon::launch(command, &["-c", "app.toml"], 0)
}

fn ask(daemon: &Daemon, words: &[&str]) -> (i32, String) {
    let output = roundsman().args(words).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// A field of the first slot of a service.
fn of(daemon: &Daemon, name: &str, field: &str) -> serde_json::Value {
    let state = daemon.ls();
    let services = state["services"].as_array().unwrap();
    services.iter().find(|service| service["name"] == name).unwrap()["slots"][0][field].clone()
}

#[test]
fn services_start_when_others_are_ready_and_stop_before_them() {
    let dir = install_dir();
    let (db, web) = (free_port(), free_port());
    // The last of the file is the first to start, and the last to stop.
    let text = format!(
        "[service.web]\nlisten = \"127.0.0.1:{web}\"\ninstances = 2\ncommand = [{SERVER:?}, \"demo-server\"]\nafter = [\"db\", \"job\"]
[service.job]\nno-listen = true\non-exit = \"ok\"\ninstances = 1\nafter = [\"db\"]
command = [\"sh\", \"-c\", \"while [ ! -e done ]; do sleep 0.02; done\"]
[service.db]\nlisten = \"127.0.0.1:{db}\"\ninstances = 1
command = [\"sh\", \"-c\", \"while [ ! -e go ]; do sleep 0.02; done; exec {SERVER} demo-server\"]\n"
    );
    let mut daemon = start(dir.path(), &text);
    daemon.wait_for("server started service=db");
    assert_eq!((of(&daemon, "web", "reason"), of(&daemon, "web", "pid")), ("waits for db, job".into(), ().into()));
    assert_eq!(of(&daemon, "job", "state"), "waiting");
    assert_eq!(ask(&daemon, &["health"]).0, 1);
    write_file(dir.path(), "go", "");
    daemon.wait_for("server started service=job");
    // The job is online soon, and not done.
    assert!(get(db).is_ok());
    daemon.wait_for("worker online service=job");
    assert!(!daemon.log().contains("server started service=web"), "{}", daemon.log());
    write_file(dir.path(), "done", "");
    daemon.wait_for_count("worker online service=web", 2);
    assert!(get(web).is_ok());
    assert_eq!(daemon.stop().code(), 0);
    let log = daemon.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text}: {log}"));
    let order = [
        "worker online service=db",
        "server started service=job",
        "server finished service=job",
        "server started service=web",
        "draining service=web",
        "draining service=db",
    ];
    assert!(order.map(at).is_sorted(), "{log}");
}

#[test]
fn a_service_does_not_start_while_another_is_not_ready_unless_it_is_told_to() {
    let dir = install_dir();
    let text = format!(
        "[service.db]\nlisten = \"127.0.0.1:{}\"\ninstances = 1\nlisten-timeout = \"100ms\"\ncommand = [\"sleep\", \"600\"]
[service.web]\nno-listen = true\ninstances = 1\nmin-uptime = \"50ms\"\nafter = [\"db\"]\ncommand = [\"sleep\", \"600\"]\n",
        free_port()
    );
    let mut daemon = start(dir.path(), &text);
    daemon.wait_for("still waiting");
    assert_eq!(of(&daemon, "web", "reason"), "waits for db");
    let (code, said) = ask(&daemon, &["start", "web"]);
    assert!(code == 0 && said.contains("started"), "{said}");
    assert_eq!(of(&daemon, "web", "state"), "online");
    // A stop does not wait for what never came.
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn what_is_given_up_takes_those_after_it_along() {
    let dir = install_dir();
    let text = format!(
        "[service.db]\nlisten = \"127.0.0.1:{}\"\ninstances = 1\nmax-restarts = 1\nbackoff = \"1ms..2ms\"\ncommand = [\"sh\", \"-c\", \"exit 7\"]
[service.web]\nno-listen = true\nafter = [\"mid\"]\ncommand = [\"sleep\", \"600\"]
[service.mid]\nno-listen = true\nafter = [\"db\"]\ncommand = [\"sleep\", \"600\"]\n",
        free_port()
    );
    let mut daemon = start(dir.path(), &text);
    let end = daemon.finish(seconds(20));
    assert_eq!(end.code(), 7, "{}", end.log);
    assert!(end.log.contains("not started: db, which it comes after, was given up service=mid"), "{}", end.log);
    assert!(end.log.contains("not started: mid, which it comes after, was given up service=web"), "{}", end.log);
    assert!(
        !end.log.contains("server started service=mid") && end.log.contains("server started service=db"),
        "{}",
        end.log
    );
}

#[test]
fn unknown_names_and_circles_are_refused_at_their_place() {
    let dir = install_dir();
    let service = |name: &str, after: &str| {
        format!("[service.{name}]\nno-listen = true\ncommand = [\"true\"]\nafter = {after}\n")
    };
    let cases = [
        (vec![("web", "[\"bd\"]"), ("db", "[]")], "`after`: there is no service \"bd\" in the file; here are web, db"),
        (vec![("web", "[\"web\"]")], "`after` goes in a circle, so that none could start: web → web"),
        (
            vec![("a", "[\"c\"]"), ("b", "[\"a\"]"), ("c", "[\"b\"]"), ("d", "[\"a\"]")],
            "`after` goes in a circle, so that none could start: a → c → b → a",
        ),
    ];
    for (services, wanted) in cases {
        let text: String = services.iter().map(|(name, after)| service(name, after)).collect();
        write_file(dir.path(), "bad.toml", &text);
        let output = roundsman().args(["check", "-c", "bad.toml"]).current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(78) && said.contains(wanted) && said.contains("1 error"), "{said}");
        assert!(said.contains("bad.toml:4"), "{said}");
    }
    let output = roundsman().args(["--no-listen", "--after", "db", "--", "true"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--after names other services of a file"), "{said}");
}
