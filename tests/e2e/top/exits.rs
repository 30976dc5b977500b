//! Mostly waits: the terminal is as before however it ends.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::Signal;

use super::{daemon, top};
use crate::support::{Screen, eventually, install_dir, seconds};

#[test]
fn keys_and_signals_leave_the_terminal_as_it_was() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    for key in ["q", "\u{3}"] {
        let mut screen = top(&daemon, (80, 24));
        screen.wait_for("web/1");
        assert!(screen.is_full() && screen.is_raw());
        screen.press(key);
        assert_eq!(screen.finish().code(), Some(0), "{key:?}");
        screen.is_as_before();
    }
    // With a question, a filter, logs or help on the screen.
    for (keys, signal) in [
        ("", Signal::SIGTERM),
        ("R", Signal::SIGHUP),
        ("/we", Signal::SIGINT),
        ("l", Signal::SIGQUIT),
        ("?", Signal::SIGTERM),
    ] {
        let mut screen = top(&daemon, (80, 24));
        screen.wait_for("web/1");
        screen.press(keys);
        assert!(screen.is_full() && screen.is_raw());
        screen.signal(signal);
        assert_eq!(screen.finish().signal(), Some(signal as i32));
        screen.is_as_before();
    }
}

#[test]
fn a_shell_can_stop_it_and_let_it_go_on() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env("ROUNDSMAN_CONTROL", daemon.control()).env("PS1", "shell> ");
    let mut screen = Screen::start(&shell, (80, 24));
    screen.wait_for("shell>");
    screen.press(&format!("{} top\r", env!("CARGO_BIN_EXE_roundsman")));
    screen.wait_for("web/1");
    for _ in 0..2 {
        assert!(screen.is_full());
        screen.press("\u{1a}");
        screen.wait_for("Stopped");
        assert!(!screen.is_full());
        screen.press("fg\r");
        screen.wait_for("web/1");
        eventually("its screen", seconds(5), || screen.is_full().then_some(()));
    }
    screen.press("q");
    screen.wait_for("shell>");
    assert!(!screen.is_full());
    screen.press("exit\r");
    screen.finish();
}

#[test]
fn it_ends_with_its_terminal() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("web/1");
    screen.hang_up();
    // By the signal, or because nothing can be written or read there: what comes first.
    let status = screen.finish();
    assert!(status.signal() == Some(Signal::SIGHUP as i32) || status.code() == Some(71), "{status:?}");
}

/// Run by the next test in a process of its own, on a terminal.
#[test]
#[ignore = "panics"]
fn panics_on_a_terminal() {
    if std::env::var_os("PANIC_ON_A_TERMINAL").is_none() {
        return;
    }
    let guard = roundsman::cli::top::terminal::Guard::enter().unwrap();
    // As where a panic ends the process: nothing is dropped.
    std::mem::forget(guard);
    std::thread::sleep(std::time::Duration::from_millis(300));
    panic!("on purpose");
}

#[test]
fn a_panic_leaves_the_terminal_as_it_was() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "top::exits::panics_on_a_terminal", "--ignored", "--nocapture"]);
    // The message alone: a backtrace would scroll it away.
    command.env("PANIC_ON_A_TERMINAL", "1").env("RUST_BACKTRACE", "0");
    let mut screen = Screen::start(&command, (80, 24));
    eventually("a screen of its own", seconds(20), || (screen.is_full() && screen.is_raw()).then_some(()));
    assert!(!screen.finish().success());
    screen.is_as_before();
    assert!(screen.wait_for("on purpose").contains("panics_on_a_terminal"));
}
