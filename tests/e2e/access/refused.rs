//! Options that make no sense, and places that cannot be written to.

use super::{Logged, SERVER};
use crate::support::{free_port, install_dir, roundsman, write_file};

/// Exit code and message of a daemon with these words.
fn run(words: &[&str]) -> (Option<i32>, String) {
    let port = free_port().to_string();
    let all = [&["-l", &port, "-u", "127.0.0.1:1"], words].concat();
    let output = roundsman().args(all).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let dir = install_dir();
    let (log, under_file) = (dir.path().join("a.log"), write_file(dir.path(), "file", "").join("a.log"));
    let [log, under_file, directory] = [&log, &under_file, dir.path()].map(|path| path.to_str().unwrap());
    for (words, code, why) in [
        (&["--access-log", log, "--access-format", "xml"][..], 2, "[possible values: text, json]"),
        (&["--access-log", log, "--access-sample", "0%"], 2, "0.1% to 100%"),
        (&["--access-log", log, "--access-sample", "101%"], 2, "0.1% to 100%"),
        (&["--access-log", log, "--access-sample", "1"], 2, "0.1% to 100%"),
        (&["--access-log", ""], 2, "a file is needed, or - for stdout"),
        (&["--access-format", "json"], 2, "--access-format needs --access-log"),
        (&["--access-sample", "1%"], 2, "--access-sample needs --access-log"),
        (&["--access-log", directory], 71, "a directory"),
        (&["--access-log", under_file], 71, "Not a directory"),
        (&["--access-log", "/sys/a.log"], 71, "cannot write to /sys/a.log: "),
    ] {
        let (status, text) = run(words);
        assert!(status == Some(code) && text.contains(why), "{words:?}: {status:?} {text}");
        assert!(!dir.path().join("a.log").exists(), "{words:?}");
    }
    for (line, why) in [
        ("access-format = \"json\"", "`access-format` needs `access-log`"),
        ("access-log = \"a.log\"\naccess-sample = \"0%\"", "0.1% to 100%"),
        ("access-log = \"a.log\"\naccess-format = \"xml\"", "access-format"),
    ] {
        let text = format!("[service.a]\nlisten = {}\nupstream = \"127.0.0.1:1\"\n{line}\n", free_port());
        let file = write_file(dir.path(), "a.toml", &text);
        for verb in [&["check"][..], &[]] {
            let output = roundsman().args(verb).args(["-c", file.to_str().unwrap()]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(78) && text.contains(why), "{line}: {text}");
        }
    }
}

#[test]
fn a_reload_with_a_log_that_cannot_be_written_changes_nothing() {
    let dir = install_dir();
    let script = write_file(dir.path(), "server.py", SERVER);
    let port = free_port();
    let config = |log: &str| {
        let text = format!(
            "[service.web]\nlisten = \"127.0.0.1:{port}\"\ninstances = 1\nvia = \"direct\"\ncommand = [\"python3\", {script:?}]\n\
             access-log = {log:?}\naccess-format = \"json\"\n"
        );
        write_file(dir.path(), "a.toml", &text)
    };
    let log = dir.path().join("access.log");
    let file = config(log.to_str().unwrap());
    let daemon = crate::support::Daemon::launch(roundsman(), &["-c", file.to_str().unwrap()], port);
    daemon.wait_for("worker online");
    config(dir.path().to_str().unwrap());
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("a directory"), "{text}");
    let logged = Logged { daemon, port, dir };
    drop(logged.connect());
    assert_eq!(logged.lines(1)[0]["generation"], 1);
}
