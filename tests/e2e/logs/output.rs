//! What servers write: passed on, named, bounded.
//! Mostly waits: tests/run runs it beside others.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::support::{Daemon, free_port, install_dir, roundsman, seconds, write_file};

const WRITER: &str = "
import sys, time
print('out line', flush=True); print('err line', file=sys.stderr, flush=True)
sys.stdout.write('a part'); sys.stdout.flush(); time.sleep(0.2); print(' and its end', flush=True)
sys.stdout.buffer.write(b'nul \\0 and \\xff bytes\\n'); sys.stdout.flush()
sys.stdout.write('without an end'); sys.stdout.flush()
sys.exit(3)
";

/// Runs a daemon until its server is given up: (stdout, stderr).
fn run(format: &[&str]) -> (Vec<u8>, String) {
    let dir = install_dir();
    let script = write_file(dir.path(), "writer.py", WRITER);
    let mut all = vec!["--no-listen", "-i", "1", "--max-restarts", "0", "--name", "svc"];
    all.extend(format);
    let output = roundsman()
        .args(all)
        .args(["--", "python3", script.to_str().unwrap()])
        .env("ROUNDSMAN_CONTROL", dir.path().join("c.sock"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn lines_come_raw_with_a_prefix_or_as_json() {
    let (out, err) = run(&[]);
    assert_eq!(out, b"out line\na part and its end\nnul \0 and \xff bytes\nwithout an end");
    assert!(err.lines().any(|line| line == "err line"), "{err}");
    let (out, err) = run(&["--output", "prefix"]);
    assert_eq!(
        out,
        b"svc/0 | out line\nsvc/0 | a part and its end\nsvc/0 | nul \0 and \xff bytes\nsvc/0 | without an end\n"
    );
    assert!(err.lines().any(|line| line == "svc/0 | err line"), "{err}");
    let (out, err) = run(&["--output", "json"]);
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(lines[1]["line"], "a part and its end");
    assert_eq!((lines[0]["service"].as_str(), lines[0]["slot"].as_i64()), (Some("svc"), Some(0)));
    assert!(err.contains(r#""stream":"stderr""#), "{err}");
}

#[test]
fn a_reader_that_does_not_read_holds_up_no_server() {
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "flood.py",
        "
import sys, time
for n in range(200000): print('line', n, 'x' * 60)
open(sys.argv[1], 'w').write('done')
time.sleep(60)
",
    );
    let done = dir.path().join("done");
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
    command.args(["--no-listen", "-i", "1", "--control", dir.path().join("c.sock").to_str().unwrap(), "--"]);
    command.args(["python3", script.to_str().unwrap(), done.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    crate::support::eventually("the server has written all", seconds(20), || done.is_file().then_some(()));
    let bytes = procfs::process::Process::new(child.id() as i32).unwrap().status().unwrap().vmrss.unwrap();
    assert!(bytes < 40_000, "{bytes} kB");
    // Now somebody reads: the newest lines, and word of what is missing.
    let (mut out, mut err) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut last = String::new();
        let mut line = String::new();
        while out.read_line(&mut line).unwrap() > 0 {
            last = std::mem::take(&mut line);
            if last.starts_with("line 199999 ") {
                break;
            }
        }
        last
    });
    assert!(reader.join().unwrap().starts_with("line 199999 "));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut log = String::new();
    err.read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    assert!(log.contains("output of servers dropped: its reader was too slow"), "{log}");
}

#[test]
fn on_a_terminal_lines_have_their_slot_in_front() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "say.py", "print('hello')");
    let line = format!(
        "{} --no-listen -i 1 --on-exit ok --control {} -- python3 {}",
        env!("CARGO_BIN_EXE_roundsman"),
        dir.path().join(format!("{port}.sock")).display(),
        script.display()
    );
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("say/0 | hello"), "{text}");
}

#[test]
fn a_failed_reload_shows_the_last_lines() {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "app.py", "import time; time.sleep(60)");
    let all = ["--no-listen", "-i", "1", "--min-uptime", "1s", "--", "python3", script.to_str().unwrap()];
    let daemon = Daemon::launch(roundsman(), &all, port);
    daemon.wait_online(1);
    std::fs::write(&script, "import sys\nfor n in range(30): print('line', n)\nraise RuntimeError('the reason')")
        .unwrap();
    let output = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("exit code 1") && text.contains("  | RuntimeError: the reason"), "{text}");
    assert_eq!(daemon.slot(0, "state"), "online");
}
