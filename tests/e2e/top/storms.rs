//! Mostly waits: what terminals, servers and daemons can do to it, and what it costs the daemon.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{client, daemon, has, top};
use crate::support::{Daemon, Random, Screen, eventually, install_dir, roundsman, seconds};

#[test]
fn a_storm_of_sizes_and_keys_leaves_it_well() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 20);
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("q quit");
    let mut random = Random(7);
    for _ in 0..100 {
        screen.resize((3 + random.below(200) as u16, 2 + random.below(70) as u16));
        // What changes nothing at the daemon.
        let keys =
            ["j", "k", "G", "g", "s", "?", " ", "l", "\u{1b}", "/x", "\u{c}", "\u{1b}[6~", "\u{1b}[15~", "\u{1b}[M !!"];
        screen.press(keys[random.below(keys.len() as u64) as usize]);
    }
    screen.resize((80, 24));
    // Out of whatever the keys have led into: logs, help, a filter.
    for _ in 0..3 {
        screen.press("\u{1b}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    screen.press("g");
    screen.wait_until("the table", |text| text.contains("q quit") && has(text, "web"));
    screen.press("q");
    assert!(screen.finish().success());
    screen.is_as_before();
}

#[test]
fn a_key_that_comes_together_with_a_change_of_the_size_is_read() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("q quit");
    for round in 0..60 {
        for (key, shown) in [("?", "any key: back"), (" ", "q quit")] {
            screen.signal(Signal::SIGWINCH);
            // Whether both are found at once depends on the moment.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(round % 50 * 4) {}
            screen.press(key);
            let read = || screen.text().contains(shown).then_some(());
            eventually(&format!("{shown:?} in round {round}"), seconds(10), read);
        }
    }
    screen.press("q");
    assert!(screen.finish().success());
}

#[test]
fn what_servers_write_is_never_obeyed_by_the_terminal() {
    let script =
        "print('\\x1b]0;hacked\\x07\\x1b[2J\\x1b[31mred\\x9b1m \\u202egnp.exe 日本 ' + 'x' * 10000, flush=True)
import time; time.sleep(1000)";
    let words = ["-n", "job", "--no-listen", "-i", "1", "--min-uptime", "10ms", "--", "python3", "-c", script];
    let mut command = roundsman();
    command.env("PYTHONIOENCODING", "utf-8");
    let daemon = Daemon::launch(command, &words, 0);
    daemon.wait_online(1);
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("q quit");
    screen.press("l");
    let text = screen.wait_until("its line", |text| text.contains("red") && text.contains("following"));
    assert!(text.contains("日本") && !text.contains('\u{202e}'), "{text}");
    let bytes = screen.bytes();
    for word in ["\u{1b}]0;", "\u{9b}", "\u{7}", "\u{1b}[31mred"] {
        assert!(!bytes.contains(word), "{word:?}: {bytes:?}");
    }
    screen.press("qq");
    assert!(screen.finish().success());
}

#[test]
fn a_killed_daemon_is_said_to_be_gone() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut screen = top(&daemon, (100, 24));
    screen.wait_for("web/1");
    screen.press("l");
    screen.wait_for("following");
    daemon.signal(Signal::SIGKILL);
    screen.wait_for("ended: ");
    screen.press("q");
    let text = screen.wait_for("does not answer since");
    assert!(has(&text, "web/1"), "{text}");
    screen.press("q");
    assert!(screen.finish().success());
    screen.is_as_before();
}

#[test]
fn without_a_kind_of_terminal_it_says_what_to_use() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let mut screen = Screen::start(client(&daemon, &["top"]).env_remove("TERM"), (80, 24));
    assert_eq!(screen.finish().code(), Some(2));
    screen.wait_for("TERM is not set");
    assert!(!screen.bytes().contains('\u{1b}'));
}

/// Connections that the daemon accepts, and all its calls, while something runs for some seconds.
fn calls(daemon: &Daemon) -> (f64, f64) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let pid = daemon.pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qqq", "-p", &pid, "-o"]).arg(file.path()).stderr(Stdio::null());
    let mut strace = strace.spawn().unwrap();
    let traced = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    };
    eventually("attached", seconds(10), || {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| traced(task.unwrap())).then_some(())
    });
    let begin = Instant::now();
    std::thread::sleep(seconds(4));
    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    let time = begin.elapsed().as_secs_f64();
    let accepted = text.lines().filter(|line| line.contains("accept") && !line.contains("EAGAIN")).count();
    println!("{accepted} connections, {} calls in {time:.1} s", text.lines().count());
    (accepted as f64 / time, text.lines().count() as f64 / time)
}

#[test]
fn an_open_screen_asks_once_a_second() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let (_, alone) = calls(&daemon);
    let mut screen = top(&daemon, (80, 24));
    screen.wait_for("q quit");
    screen.wait_for("web/1");
    let (accepted, with) = calls(&daemon);
    // A second question may be in the first second.
    assert!((0.2..=1.5).contains(&accepted), "{accepted:.1} questions a second");
    assert!(with - alone <= 150.0, "{with:.0} calls a second, {alone:.0} without it");
    screen.press("q");
    screen.finish();
}
