//! Mostly waits: what is on the screen, and that it follows what happens and the size of the terminal.

use nix::sys::signal::Signal;

use super::{client, daemon, line, top};
use crate::support::{Daemon, Screen, eventually, get, install_dir, roundsman, seconds};

#[test]
fn services_slots_and_upstreams_with_their_numbers_at_80_columns_wide_and_resized() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 30);
    let mut screen = top(&daemon, (80, 24));
    // The last line comes last.
    let text = screen.wait_for("q quit");
    assert!(screen.is_full() && screen.is_raw());
    for title in ["NAME", "STATE", "GEN", "OPEN", "PEND", "WAIT", "CONN/S", "P50", "P99", "CPU", "MEM", "RST"] {
        assert!(text.contains(title), "{title}\n{text}");
    }
    assert_eq!(line(&text, "web/1")[1..3], ["online", "1"]);
    assert_eq!(line(&text, "web")[1], "2/2");
    assert!(text.contains(&format!("@127.0.0.1:{}", daemon.port)), "{text}");
    assert!(text.contains("3 services, 33 of 33 slots online") && text.contains("q quit"), "{text}");
    // Clients show as a rate, and their waits.
    let waited = eventually("a rate and a wait", seconds(20), || {
        for _ in 0..10 {
            let _ = get(daemon.port);
        }
        let words = line(&screen.text(), "web");
        let has = |at: usize| words.get(at).is_some_and(|word| word != "0" && word != "-");
        (has(5) && has(7)).then(|| words[7].clone())
    });
    assert!(waited.ends_with("µs") || waited.ends_with("ms") || waited.ends_with('s'), "{waited}");
    // A crash, with its reason.
    let pid = daemon.ls()["services"][0]["slots"][0]["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    screen.wait_until("the next generation", |text| {
        let words = line(text, "web/0");
        words.get(1..3).is_some_and(|words| words == ["online", "2"]) && words.iter().any(|word| word == "1")
    });
    screen.press("j");
    screen.wait_for("last exit: ");
    // Larger, smaller, much too small, and back.
    screen.resize((200, 60));
    let text = screen.wait_until("all slots", |text| text.contains("job/29") && text.contains("WHY"));
    assert!(line(&text, "web/0").join(" ").contains("last exit: killed by SIGKILL"), "{text}");
    screen.resize((20, 5));
    screen.wait_until("a tiny table", |text| text.lines().count() <= 5 && text.contains("NAME"));
    screen.resize((80, 24));
    screen.wait_for("q quit");
    screen.press("G");
    screen.wait_for("job/29");
    screen.press("q");
    assert!(screen.finish().success());
    screen.is_as_before();
}

#[test]
fn colours_are_used_only_where_they_are_wanted() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    for wanted in [true, false] {
        let mut command = client(&daemon, &["top"]);
        if !wanted {
            command.env("NO_COLOR", "1");
        }
        let mut screen = Screen::start(&command, (100, 30));
        screen.wait_for("q quit");
        assert_eq!(screen.has_colours(), wanted, "{:?}", screen.bytes());
        screen.press("q");
        screen.finish();
    }
}

#[test]
fn where_it_cannot_be_drawn_it_says_what_to_use() {
    let dir = install_dir();
    let daemon = daemon(dir.path(), 1);
    let output = client(&daemon, &["top"]).env("TERM", "xterm").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("not a terminal") && error.contains("ls --watch") && error.contains("ls --json"), "{error}");
    let mut dumb = Screen::start(client(&daemon, &["monit"]).env("TERM", "dumb"), (80, 24));
    assert_eq!(dumb.finish().code(), Some(2));
    dumb.wait_for("TERM=dumb");
    assert!(!dumb.bytes().contains('\u{1b}'));
    let mut alone = Screen::start(roundsman().arg("top").env("XDG_RUNTIME_DIR", dir.path()), (80, 24));
    assert_eq!(alone.finish().code(), Some(69));
    alone.wait_for("no roundsman daemon is running");
    let mut wrong = Screen::start(&client(&daemon, &["top", "nothing"]), (80, 24));
    assert_eq!(wrong.finish().code(), Some(2));
    wrong.wait_for("no service \"nothing\"");
    wrong.is_as_before();
    let mut one = Screen::start(&client(&daemon, &["top", "proxy"]), (80, 24));
    assert!(one.wait_for("q quit").contains("proxy/0") && !one.text().contains("web"));
    one.press("\u{3}");
    assert!(one.finish().success());
}

#[test]
fn a_daemon_that_goes_away_is_waited_for() {
    let dir = install_dir();
    let start = || {
        let words = ["-n", "job", "--no-listen", "-i", "2", "--min-uptime", "10ms", "--", "sleep", "1000"];
        let mut command = roundsman();
        command.env("XDG_RUNTIME_DIR", dir.path());
        let daemon = Daemon::launch(command, &words, 0);
        daemon.wait_online(2);
        daemon
    };
    let mut first = start();
    let control = first.control().to_owned();
    let mut screen = Screen::start(&client(&first, &["top"]), (100, 24));
    screen.wait_for("job/1");
    first.stop();
    let text = screen.wait_for("does not answer since");
    assert!(text.contains("no daemon answers") && text.contains("job/1"), "{text}");
    // An order to nobody is an error in a line.
    screen.press("r");
    screen.wait_for("reload job: ");
    let words = ["-n", "job", "--no-listen", "-i", "3", "--min-uptime", "10ms", "--control"];
    let words = [&words[..], &[control.to_str().unwrap(), "--", "sleep", "1000"]].concat();
    let _second = Daemon::launch(roundsman(), &words, 0);
    screen.wait_until("the next daemon", |text| text.contains("job/2") && !text.contains("does not answer"));
    screen.press("q");
    assert!(screen.finish().success());
    screen.is_as_before();
}
