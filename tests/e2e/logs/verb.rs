//! Log files and `roundsman logs`.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Daemon, Killed, c_server, eventually, free_port, get, install_dir, millis, roundsman, seconds, write_file,
};

/// Writes a line for each that it finds in a file, to stdout or (with `!` in front) stderr.
const PARROT: &str = "
import os, sys, time
path, at = sys.argv[1], 0
while True:
    with open(path, 'rb') as f:
        f.seek(at); data = f.read(); at += len(data)
    for line in data.splitlines(True):
        out = sys.stderr if line.startswith(b'!') else sys.stdout
        out.buffer.write(line); out.buffer.flush()
    time.sleep(0.01)
";

/// A daemon with a parrot in each of `slots` slots, named svc.
fn parrot(dir: &Path, slots: usize, more: &[&str]) -> Daemon {
    let script = write_file(dir, "parrot.py", PARROT);
    write_file(dir, "words", "");
    let count = slots.to_string();
    let mut all = vec!["--no-listen", "-i", &count, "--name", "svc", "--min-uptime", "100ms"];
    all.extend(more);
    let words = dir.join("words");
    let command = ["--", "python3", "-S", script.to_str().unwrap(), words.to_str().unwrap()];
    all.extend(command);
    let mut command = roundsman();
    command.current_dir(dir);
    let daemon = Daemon::launch(command, &all, 0);
    daemon.wait_for_count("worker online", slots);
    daemon
}

fn speak(dir: &Path, words: &[u8]) {
    let mut file = std::fs::OpenOptions::new().append(true).open(dir.join("words")).unwrap();
    file.write_all(words).unwrap();
}

#[track_caller]
fn holds(path: &Path, wanted: &[u8]) {
    eventually(&format!("{} holds {:?}", path.display(), String::from_utf8_lossy(wanted)), seconds(10), || {
        (std::fs::read(path).ok()? == wanted).then_some(())
    });
}

fn logs(daemon: &Daemon, words: &[&str]) -> Vec<u8> {
    let output = roundsman()
        .args(["logs", "--no-events"])
        .args(words)
        .env("ROUNDSMAN_CONTROL", daemon.control())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn files_get_whole_lines_and_are_opened_anew_on_usr1() {
    let dir = install_dir();
    let daemon = parrot(dir.path(), 1, &["--out", "new/out.log", "--error", "new/err-{slot}.log"]);
    let (out, err) = (dir.path().join("new/out.log"), dir.path().join("new/err-0.log"));
    speak(dir.path(), b"one\n!two\nnul \0 and \xff\n");
    holds(&out, b"one\nnul \0 and \xff\n");
    holds(&err, b"!two\n");
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    assert_eq!(mode(&out) & 0o777, 0o640);
    // As logrotate does it.
    std::fs::rename(&out, dir.path().join("old.log")).unwrap();
    speak(dir.path(), b"three\n");
    holds(&dir.path().join("old.log"), b"one\nnul \0 and \xff\nthree\n");
    daemon.signal(Signal::SIGUSR1);
    holds(&out, b"");
    speak(dir.path(), b"four\n");
    holds(&out, b"four\n");
    assert!(!daemon.log().contains("!two"), "what goes to a file does not come to us: {}", daemon.log());
}

#[test]
fn a_file_is_rotated_before_it_grows_too_large_and_lines_stay_whole() {
    let dir = install_dir();
    let _daemon = parrot(
        dir.path(),
        2,
        &["--out", "out.log", "--error", "out.log", "--rotate-size", "4KiB", "--rotate-keep", "3"],
    );
    let file = |n: usize| dir.path().join(if n == 0 { "out.log".to_owned() } else { format!("out.log.{n}") });
    let mut last = 0;
    eventually("three old files", seconds(20), || {
        let lines: String = (last..last + 20)
            .map(|n| format!("{}line {n} {}\n", if n % 2 == 0 { "!" } else { "" }, "x".repeat(40)))
            .collect();
        speak(dir.path(), lines.as_bytes());
        last += 20;
        // No faster than the parrots read.
        std::thread::sleep(millis(30));
        file(3).is_file().then_some(())
    });
    assert!(!file(4).exists());
    for n in 0..4 {
        let text = std::fs::read_to_string(file(n)).unwrap();
        assert!(text.len() <= 4096, "{}", text.len());
        assert!(
            text.lines().all(|line| line.trim_start_matches('!').starts_with("line ") && line.ends_with("xxx")),
            "{text}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_written_ends_the_start_and_later_only_loses_lines() {
    let dir = install_dir();
    let output = roundsman().args(["--no-listen", "--out", "/proc/nowhere/out.log", "--", "true"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(71) && text.contains("cannot write to /proc/nowhere/out.log"), "{text}");
    let out = "/dev/full";
    let daemon = parrot(dir.path(), 1, &["--out", out]);
    speak(dir.path(), b"one\n");
    daemon.wait_for("cannot write to /dev/full: No space left");
    assert_eq!(daemon.slot(0, "state"), "online");
    assert_eq!(logs(&daemon, &[]), b"svc/0 | one\n");
}

#[test]
fn timestamps_come_on_request() {
    let dir = install_dir();
    let daemon = parrot(dir.path(), 1, &["--out", "out.log", "--timestamps"]);
    speak(dir.path(), b"one\n");
    let text = eventually("a line", seconds(10), || {
        std::fs::read_to_string(dir.path().join("out.log")).ok().filter(|text| text.ends_with("one\n"))
    });
    let (time, rest) = text.split_once(' ').unwrap();
    assert_eq!(rest, "one\n");
    let age = humantime::parse_rfc3339(time).unwrap().elapsed().unwrap();
    assert!(age < seconds(20), "{time}");
    drop(daemon);
}

#[test]
fn logs_show_the_last_lines_of_a_service_a_slot_or_all() {
    let dir = install_dir();
    let daemon = parrot(dir.path(), 2, &[]);
    speak(dir.path(), b"one\n!two\nnul \0 and \xff\n");
    eventually("all lines", seconds(10), || {
        (logs(&daemon, &["-n", "100"]).iter().filter(|&&byte| byte == b'\n').count() == 6).then_some(())
    });
    let one = logs(&daemon, &["svc/1"]);
    let mut lines: Vec<_> = one.split(|&byte| byte == b'\n').collect();
    lines.sort();
    assert_eq!(lines, [&b""[..], b"svc/1 | !two", b"svc/1 | nul \0 and \xff", b"svc/1 | one"]);
    let first: Vec<Value> = logs(&daemon, &["svc/0", "--json"])
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(first.len(), 3);
    // Two pipes: what came by one may be read before what came by the other.
    let two = first.iter().find(|line| line["line"] == "!two").unwrap();
    assert_eq!(two["stream"], "stderr");
    let bytes = first.iter().find_map(|line| line["bytes"].as_array()).unwrap();
    assert_eq!(bytes.last().unwrap(), 0xff);
    assert_eq!((first[0]["service"].as_str(), first[0]["slot"].as_u64()), (Some("svc"), Some(0)));
    assert!(humantime::parse_rfc3339(first[0]["time"].as_str().unwrap()).is_ok());
    assert_eq!(logs(&daemon, &["-n", "0"]), b"");
    let wrong = roundsman().args(["logs", "other"]).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(1) && text.contains("there is no service \"other\"; here are svc"), "{text}");
}

#[test]
fn logs_follow_what_comes_and_end_with_the_daemon() {
    let dir = install_dir();
    let mut daemon = parrot(dir.path(), 1, &[]);
    speak(dir.path(), b"before\n");
    eventually("a line", seconds(10), || (!logs(&daemon, &[]).is_empty()).then_some(()));
    let mut command = roundsman();
    command
        .args(["logs", "-f", "svc", "--no-events"])
        .env("ROUNDSMAN_CONTROL", daemon.control())
        .stdout(Stdio::piped());
    let mut reader = Killed::spawn(&mut command);
    let mut lines = BufReader::new(reader.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().unwrap(), "svc/0 | before");
    for n in 0..20 {
        speak(dir.path(), format!("line {n}\n").as_bytes());
        assert_eq!(lines.next().unwrap(), format!("svc/0 | line {n}"));
    }
    assert_eq!(daemon.stop().code(), 0);
    assert_eq!(lines.next(), None);
    assert!(eventually("its end", seconds(5), || reader.0.try_wait().unwrap()).success());
}

#[test]
fn one_that_follows_and_does_not_read_is_told_what_it_missed_and_costs_nobody_anything() {
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "flood.py",
        "
import os, sys, time
print('first', flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
line = b'x' * 99 + b'\\n'
for n in range(3000): sys.stdout.buffer.write(line * 100)
sys.stdout.buffer.write(b'the end\\n'); sys.stdout.flush()
time.sleep(100)
",
    );
    let go = dir.path().join("go");
    let all = [
        "--no-listen",
        "-i",
        "1",
        "--name",
        "svc",
        "--out",
        "/dev/null",
        "--",
        "python3",
        "-S",
        script.to_str().unwrap(),
        go.to_str().unwrap(),
    ];
    let daemon = Daemon::launch(roundsman(), &all, 0);
    let mut deaf = eventually("the control socket", seconds(10), || UnixStream::connect(daemon.control()).ok());
    deaf.set_read_timeout(Some(seconds(10))).unwrap();
    deaf.write_all(b"{\"cmd\":\"logs\",\"lines\":10,\"follow\":true}\n").unwrap();
    let mut reader = BufReader::new(deaf);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    assert!(first.contains("\"first\""), "{first}");
    // It follows; from here on it does not read.
    std::fs::write(&go, "").unwrap();
    eventually("the flood is over", seconds(30), || {
        let last = logs(&daemon, &["-n", "1"]);
        (last == b"svc/0 | the end\n").then_some(())
    });
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 60 << 20, "{rss}");
    let (mut lines, mut dropped) = (0, 0);
    for line in reader.lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        dropped += line["dropped"].as_u64().unwrap_or(0);
        lines += u64::from(line["line"].is_string());
        if line["line"] == "the end" {
            break;
        }
    }
    assert!(dropped > 0 && lines > 1000, "{lines} and {dropped}");
    assert_eq!(lines + dropped, 300_001, "each was shown or counted");
}

#[test]
fn a_service_that_floods_drops_its_own_lines_and_no_others() {
    let dir = install_dir();
    let flood = write_file(
        dir.path(),
        "flood.py",
        "
import sys, time
for n in range(100000): print('flood', n, 'x' * 60)
open(sys.argv[1], 'w').write('done')
time.sleep(100)
",
    );
    let done = dir.path().join("done");
    let text = format!(
        "output = \"prefix\"\n[service.loud]\nno-listen = true\ninstances = 1\ncommand = [\"python3\", \"-S\", {flood:?}, {done:?}]\n\
         [service.quiet]\nno-listen = true\ninstances = 1\ncommand = [\"sh\", \"-c\", \"echo first; sleep 100\"]\n"
    );
    let file = write_file(dir.path(), "a.toml", &text);
    let mut command = roundsman();
    command.args(["-c", file.to_str().unwrap(), "--control", dir.path().join("c.sock").to_str().unwrap()]);
    let mut child = Killed::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    eventually("the flood is over", seconds(20), || done.is_file().then_some(()));
    let rss = roundsman::sys::process::rss_bytes(child.0.id());
    assert!(rss < 40 << 20, "{rss}");
    let out = child.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            seen.push(line);
        }
        seen
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id() as i32), Signal::SIGTERM).unwrap();
    let mut log = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let seen = reader.join().unwrap();
    assert!(seen.iter().any(|line| line == "quiet/0 | first"), "{} lines", seen.len());
    assert!(seen.iter().any(|line| line.starts_with("loud/0 | flood 99999 ")));
    let told: Vec<_> = log.lines().filter(|line| line.contains("output of servers dropped")).collect();
    assert!(!told.is_empty() && told.iter().all(|line| line.contains("loud") && !line.contains("quiet")), "{log}");
}

/// The C server accepts and answers on one port; what floods is another service of the same daemon.
#[test]
fn a_hundred_megabytes_of_lines_a_second_do_not_hold_up_connections() {
    let dir = install_dir();
    let port = free_port();
    let text = format!(
        "[service.loud]\nno-listen = true\ninstances = 1\nout = \"/dev/null\"\ncommand = [{:?}, \"flood\", \"110\"]\n\
         [service.web]\ninstances = 2\nlisten = \"127.0.0.1:{port}\"\ncommand = [\"node\", \"app.js\"]\n",
        c_server()
    );
    let app = "require('http').createServer((_, r) => r.end('ok')).listen(process.env.PORT, '127.0.0.1')";
    write_file(dir.path(), "app.js", app);
    let file = write_file(dir.path(), "a.toml", &text);
    let mut command = roundsman();
    command.current_dir(dir.path());
    let daemon = Daemon::launch(command, &["-c", file.to_str().unwrap()], port);
    daemon.wait_for("listening");
    let lines = |daemon: &Daemon| {
        let last = logs(daemon, &["loud", "-n", "1"]);
        let text = String::from_utf8_lossy(&last).into_owned();
        text.rsplit(' ').next().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    eventually("the flood has begun", seconds(10), || (lines(&daemon) > 0).then_some(()));
    let (begin, before) = (Instant::now(), lines(&daemon));
    let mut times: Vec<_> = (0..300)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(get(port).unwrap(), "ok");
            begin.elapsed()
        })
        .collect();
    // Each line has 100 bytes.
    let rate = (lines(&daemon) - before) as f64 * 100.0 / begin.elapsed().as_secs_f64() / 1e6;
    times.sort();
    let (median, p99) = (times[150], times[296]);
    println!("{rate:.0} MB/s of lines; a connection takes {median:?} in the median, {p99:?} at p99");
    assert!(p99 < millis(250), "{times:?}");
    // How fast it goes is recorded elsewhere: a machine may be slow.
    assert!(rate > 5.0, "{rate} MB/s");
    let rss = roundsman::sys::process::rss_bytes(daemon.pid());
    assert!(rss < 60 << 20, "{rss}");
}
