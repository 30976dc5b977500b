//! Networks in files, read again by a reload.

use std::path::Path;
use std::process::Command;

use super::{NODE, ask, from, is_reset, refused};
use crate::support::{Daemon, free_port, install_dir, roundsman, write_file};

fn run(daemon: &Daemon, verb: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
    let output = command.args(verb).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// By flags, and by a file that names the other one relative to itself.
fn daemons(dir: &Path) -> [Daemon; 2] {
    let (first, second) = (free_port(), free_port());
    let deny = format!("@{}", dir.join("deny.txt").display());
    let listen = format!("127.0.0.1:{first}");
    let words = [
        "-l",
        &listen,
        "--via",
        "direct",
        "-i",
        "1",
        "--deny",
        &deny,
        "--drain-timeout",
        "0s",
        "--",
        "node",
        "-e",
        NODE,
    ];
    let flags = Daemon::launch(roundsman(), &words, first);
    write_file(
        dir,
        "web.toml",
        &format!(
            "[service.web]\nlisten = \"127.0.0.1:{second}\"\ninstances = 1\nvia = \"relay\"\ndeny = [\"127.0.0.4\", \
             \"@deny.txt\"]\ndrain-timeout = \"0s\"\ncommand = [\"node\", \"-e\", {NODE:?}]\n"
        ),
    );
    let file = Daemon::launch(roundsman(), &["-c", dir.join("web.toml").to_str().unwrap()], second);
    [flags, file]
}

#[test]
fn a_reload_reads_them_again_and_a_mistake_changes_nothing() {
    let dir = install_dir();
    write_file(dir.path(), "deny.txt", "# blocked\n\n127.0.0.2 # one\n");
    for daemon in daemons(dir.path()) {
        write_file(dir.path(), "deny.txt", "127.0.0.2\n");
        daemon.wait_online(1);
        let port = daemon.port;
        is_reset("127.0.0.2", ask(from("127.0.0.2", port), b""));
        let kept = ask(from("127.0.0.3", port), b"").unwrap();
        // A mistake is named with its place.
        write_file(dir.path(), "deny.txt", "127.0.0.3\n127.0.0.1/8\n");
        let (fine, said) = run(&daemon, &["reload"]);
        assert!(!fine && said.contains("deny.txt:2: '127.0.0.1/8' has bits behind its prefix"), "{said}");
        ask(from("127.0.0.3", port), b"").unwrap();
        is_reset("127.0.0.2", ask(from("127.0.0.2", port), b""));
        // For those that come from now on.
        write_file(dir.path(), "deny.txt", "127.0.0.3\n");
        let (fine, said) = run(&daemon, &["reload"]);
        assert!(fine, "{said}");
        is_reset("127.0.0.3", ask(from("127.0.0.3", port), b""));
        ask(from("127.0.0.2", port), b"").unwrap();
        drop(kept);
        assert_eq!(refused(&daemon, "denied"), 3);
        let state = daemon.ls();
        let (_, shown) = run(&daemon, &["ls", state["services"][0]["name"].as_str().unwrap()]);
        assert!(shown.contains("3 denied"), "{shown}");
    }
}
