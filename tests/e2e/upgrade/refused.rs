//! Upgrades that cannot be: nothing changes, and the command says why.
//! Mostly waits: tests/run runs it beside others.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

use super::{Site, descriptors, upgrade, upgraded};
use crate::support::{eventually, get, seconds, write_file};

/// A program in C.
pub(super) fn program(site: &Site, name: &str, source: &str) -> PathBuf {
    let source = write_file(site.dir.path(), &format!("{name}.c"), source);
    let built = site.dir.path().join(name);
    assert!(Command::new("cc").arg("-o").arg(&built).arg(&source).status().unwrap().success());
    built
}

#[test]
fn a_file_that_cannot_go_on_changes_nothing() {
    let site = Site::start("direct", 1, &[]);
    let dir = site.dir.path();
    let text = write_file(dir, "text", "no program");
    let crashes = program(&site, "crashes", "#include <stdlib.h>\nint main(void) { abort(); }");
    let (server, before) = (get(site.port).unwrap(), descriptors(&site.daemon));
    let cases = [
        (dir.join("nothing"), "no such file"),
        (dir.to_owned(), "not a regular file"),
        (text, "cannot run"),
        ("/bin/true".into(), "not a roundsman"),
        ("/bin/false".into(), "exit code 1"),
        ("/bin/echo".into(), "not a roundsman"),
        (crashes, "SIGABRT"),
    ];
    for (file, why) in cases {
        let (code, text) = upgrade(&site.daemon, Some(&file));
        assert!(code == 1 && text.to_lowercase().contains(&why.to_lowercase()), "{}: {code} {text}", file.display());
    }
    assert_eq!(get(site.port).unwrap(), server);
    eventually("as many descriptors as before", seconds(20), || (descriptors(&site.daemon) == before).then_some(()));
    upgraded(&site.daemon);
}

/// It says that it can, and then runs the program before, as one does that fails while it takes over.
const GIVES_BACK: &str = r#"#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "try-record")) { puts("roundsman 9.9.9 can go on"); return 0; }
    int record, back;
    if (sscanf(getenv("ROUNDSMAN_RECORD"), "%d %d", &record, &back) != 2) return 1;
    char number[20];
    sprintf(number, "%d", record);
    setenv("ROUNDSMAN_RECORD", number, 1);
    fexecve(back, argv, environ);
    return 1;
}
"#;

#[test]
fn a_program_that_fails_while_it_takes_over_gives_back() {
    for via in ["direct", "relay"] {
        let site = Site::start(via, 2, &["--access-log", "access.log"]);
        let kept = site.connect();
        let gives_back = program(&site, "gives-back", GIVES_BACK);
        let servers = site.daemon.workers();
        let (code, text) = upgrade(&site.daemon, Some(&gives_back));
        assert_eq!((code, site.daemon.workers()), (1, servers), "{text}");
        assert!(text.contains("not upgraded"), "{text}");
        get(site.port).unwrap();
        upgraded(&site.daemon);
        get(site.port).unwrap();
        drop(kept);
        // Both programs had the one that was kept.
        let log = site.dir.path().join("access.log");
        let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        eventually("three lines", seconds(20), || (lines() >= 3).then_some(()));
        assert_eq!(lines(), 3);
    }
}

/// Takes its time to say no.
const SLOW: &str = "#include <unistd.h>\nint main(void) { while (access(\"go\", F_OK)) usleep(1000); return 3; }";

#[test]
fn one_at_a_time_and_not_while_the_daemon_stops() {
    let mut site = Site::start("direct", 1, &[]);
    let slow = program(&site, "slow", SLOW);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| upgrade(&site.daemon, Some(&slow)));
        site.daemon.wait_for("trying the program");
        let (code, text) = upgrade(&site.daemon, None);
        assert!(code == 1 && text.contains("an upgrade is under way"), "{text}");
        write_file(site.dir.path(), "go", "");
        let (code, text) = first.join().unwrap();
        assert!(code == 1 && text.contains("exit code 3"), "{text}");
    });
    upgraded(&site.daemon);
    std::fs::remove_file(site.dir.path().join("go")).unwrap();
    let other = program(&site, "other", SLOW);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| upgrade(&site.daemon, Some(&other)));
        site.daemon.wait_for("other");
        site.daemon.signal(Signal::SIGTERM);
        assert_ne!(waiting.join().unwrap().0, 0);
    });
    assert_eq!(site.daemon.finish(seconds(20)).code(), 0);
}

#[test]
fn not_without_descriptors() {
    let site = Site::start("direct", 1, &[]);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = |limit: u64| {
        let pid = site.daemon.pid().to_string();
        let limit = format!("--nofile={limit}:");
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    limit(descriptors(&site.daemon) as u64 + 2);
    let (code, text) = upgrade(&site.daemon, None);
    assert!(code == 1 && text.to_lowercase().contains("too many open files"), "{code} {text}");
    // Enough for the trial, and not for duplicates of all.
    limit(descriptors(&site.daemon) as u64 + 24);
    let (code, text) = upgrade(&site.daemon, None);
    assert!(code == 1 && text.contains("more with every client that waits"), "{code} {text}");
    limit(hard);
    get(site.port).unwrap();
    upgraded(&site.daemon);
    get(site.port).unwrap();
}

#[test]
#[ignore = "long"]
fn a_program_that_says_nothing_is_killed() {
    let site = Site::start("direct", 1, &[]);
    let hangs = program(&site, "hangs", "#include <unistd.h>\nint main(void) { for (;;) pause(); }");
    let (code, text) = upgrade(&site.daemon, Some(&hangs));
    assert!(code == 1 && text.contains("SIGKILL"), "{text}");
    get(site.port).unwrap();
    upgraded(&site.daemon);
}
