//! As a container's first process: in a PID namespace of its own.
//! Mostly waits: tests/run runs it beside others.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Daemon, eventually, free_port, install_dir, seconds, unsaid, write_file};

/// The daemon as PID 1; `unshare` waits for it and ends with its code.
fn as_pid1(arguments: &[&str]) -> Daemon {
    let mut command = Command::new("unshare");
    command.args(["-pf", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_roundsman")]);
    Daemon::launch(command, arguments, free_port())
}

/// The daemon's pid outside.
fn outside(daemon: &Daemon) -> Pid {
    eventually("the child of unshare", seconds(5), || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    })
}

#[test]
fn signals_mean_the_same() {
    let script = "import time; time.sleep(1000)";
    for (signal, code, said) in
        [(Signal::SIGTERM, 0, "stopping"), (Signal::SIGINT, 0, "stopping"), (Signal::SIGQUIT, 131, "stopping at once")]
    {
        let mut daemon = as_pid1(&["--no-listen", "-i", "1", "--", "python3", "-c", script]);
        daemon.wait_for("pid=1");
        let pid = outside(&daemon);
        daemon.wait_for("server started");
        kill(pid, Signal::SIGUSR1).unwrap();
        daemon.wait_for("reopening log files");
        daemon.wait_for("worker online");
        kill(pid, Signal::SIGUSR2).unwrap();
        daemon.wait_for("upgraded from=");
        kill(pid, Signal::SIGHUP).unwrap();
        daemon.wait_for("reloaded");
        kill(pid, Signal::SIGTTIN).unwrap();
        daemon.wait_for("to=2");
        kill(pid, signal).unwrap();
        let end = daemon.finish(seconds(15));
        assert_eq!(end.code(), code, "{signal}: {}", end.log);
        assert!(end.log.contains(said), "{}", end.log);
    }
}

/// As `docker run --read-only --tmpfs /tmp` has it for root, whose sockets are in /run otherwise.
#[test]
fn root_with_nothing_writable_but_tmp_is_found_by_ls() {
    let dir = install_dir();
    let script = "mount --make-rprivate / && mount --bind /run /run && mount -o remount,ro,bind /run || exit 9
\"$0\" -n read-only --no-listen -i 1 -- sleep 1000 &
for _ in $(seq 100); do \"$0\" health read-only && break; sleep 0.1; done
\"$0\" ls
kill $!; wait $!";
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "-m", "sh", "-c", script, env!("CARGO_BIN_EXE_roundsman")]);
    command.env("TMPDIR", dir.path()).env_remove("XDG_RUNTIME_DIR").env_remove("RUNTIME_DIRECTORY");
    let output = command.output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("read-only: 1 of 1 online"), "{said} {log}");
    unsaid(&log, &["no control socket"]);
}

#[test]
fn a_thousand_orphans_are_reaped() {
    let dir = install_dir();
    let done = dir.path().join("done");
    // Each child leaves a grandchild behind, which ends a moment later.
    let script = write_file(
        dir.path(),
        "orphans.py",
        "
import os, sys, time
for n in range(1000):
    child = os.fork()
    if child == 0:
        if os.fork() == 0: time.sleep(0.01)
        os._exit(0)
    os.waitpid(child, 0)
open(sys.argv[1], 'w').write('done')
time.sleep(1000)
",
    );
    let mut daemon =
        as_pid1(&["--no-listen", "-i", "1", "--", "python3", script.to_str().unwrap(), done.to_str().unwrap()]);
    eventually("all are made", seconds(30), || done.is_file().then_some(()));
    let pid = outside(&daemon);
    eventually("none is left", seconds(10), || {
        let all = procfs::process::all_processes().unwrap().flatten().filter_map(|process| process.stat().ok());
        let zombies = all.filter(|stat| stat.ppid == pid.as_raw() && stat.state == 'Z').count();
        (zombies == 0).then_some(())
    });
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.finish(seconds(15)).code(), 0);
}

/// What a daemon as PID 1 ends with when its server does this.
pub fn exit_of(script: &str) -> i32 {
    let dir = install_dir();
    let output = Command::new("unshare")
        .args(["-pf", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_roundsman"), "--no-listen", "-i", "1"])
        .args(["--max-restarts", "0", "--log-level", "error", "--", "sh", "-c", script])
        .env("ROUNDSMAN_CONTROL", dir.path().join("c.sock"))
        .output()
        .unwrap();
    output.status.code().unwrap()
}

#[test]
fn the_servers_exit_code_is_ours() {
    for code in (1..=255).step_by(16).chain([2, 126, 127, 128, 254, 255]) {
        assert_eq!(exit_of(&format!("exit {code}")), code);
    }
    assert_eq!(exit_of("exit 0"), 1, "a server that ended again and again has not served");
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        assert_eq!(exit_of(&format!("kill -{signal} $$")), code);
    }
}

#[test]
fn a_stop_reaches_the_server_and_not_its_group() {
    let dir = install_dir();
    let script = write_file(
        dir.path(),
        "group.py",
        "
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, lambda *rest: (print('child got it', flush=True), os._exit(0)))
    print('child up', flush=True)
    time.sleep(1000)
signal.signal(signal.SIGTERM, lambda *rest: (print('server got it', flush=True), time.sleep(0.3), os._exit(0)))
print('up', flush=True); time.sleep(1000)
",
    );
    let out = dir.path().join("out");
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    let words = ["--no-listen", "-i", "1", "--out", out.to_str().unwrap(), "--", "python3", script.to_str().unwrap()];
    let mut daemon = as_pid1(&words);
    eventually("both are up", seconds(20), || (read().lines().count() == 2).then_some(()));
    kill(outside(&daemon), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.finish(seconds(15)).code(), 0);
    let text = read();
    assert!(text.contains("server got it") && !text.contains("child got it"), "{text}");
}
