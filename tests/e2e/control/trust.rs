//! Control sockets of other users, of other daemons, and of daemons that answer nonsense.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::{
    Daemon, Killed, eventually, free_port, install_dir, millis, roundsman, seconds, unprivileged_copy,
};

const USER: u32 = 1234;
const OTHER: u32 = 65534;

/// `roundsman` as a user whose runtime directory is made in a directory for all.
fn as_user(program: &Path, tmp: &Path, uid: u32) -> Command {
    let mut command = Command::new(program);
    command.uid(uid).gid(uid).env("TMPDIR", tmp).current_dir("/").stdin(Stdio::null());
    for name in ["ROUNDSMAN_CONTROL", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect()
}

#[test]
fn another_user_can_neither_take_a_name_nor_answer_for_a_daemon() {
    let dir = install_dir();
    let program = unprivileged_copy(dir.path());
    let tmp = dir.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    // A daemon of another user, in the directory that would be ours.
    let theirs = tmp.join(format!("roundsman-{USER}"));
    std::fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    let socket = theirs.join("web.sock");
    let options = ["--no-listen", "-i", "1", "--name", "web", "--"];
    let mut command = as_user(&program, &tmp, OTHER);
    command.arg("--control").arg(&socket).args(options).args(["sleep", "600"]);
    let _theirs = Killed::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("their socket", seconds(20), || socket.exists().then_some(()));
    for path in [&theirs, &socket] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut command = as_user(&program, &tmp, USER);
    command.args(options).args(["sleep", "600"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut ours = Killed::spawn(&mut command);
    let mut log = Vec::new();
    let mut stderr = ours.0.stderr.take().unwrap();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&log).contains("worker online") {
        let n = stderr.read(&mut buffer).unwrap();
        assert!(n > 0, "it ended: {}", String::from_utf8_lossy(&log));
        log.extend_from_slice(&buffer[..n]);
    }
    let log = String::from_utf8_lossy(&log).into_owned();
    assert!(log.contains("no control socket at") && log.contains(&format!("belongs to uid {OTHER}")), "{log}");
    for verb in ["ls", "reload", "logs", "health"] {
        let output = as_user(&program, &tmp, USER).arg(verb).output().unwrap();
        let text = text(&output);
        assert!(output.status.code() == Some(69) && text.contains(&format!("belongs to uid {OTHER}")), "{text}");
        // The same, when the place is given.
        let output = as_user(&program, &tmp, USER).arg(verb).arg("--control").arg(&socket).output().unwrap();
        let text = self::text(&output);
        assert!(output.status.code() == Some(69) && text.contains(&format!("runs as uid {OTHER}")), "{text}");
    }
}

#[test]
fn a_socket_of_another_user_in_a_directory_for_all_is_left_alone() {
    let dir = install_dir();
    let program = unprivileged_copy(dir.path());
    let tmp = dir.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    let socket = tmp.join("d.sock");
    let options = ["--no-listen", "-i", "1", "--name", "web", "--", "sleep", "600"];
    let mut command = as_user(&program, &tmp, OTHER);
    command.arg("--control").arg(&socket).args(options);
    let _theirs = Killed::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("their socket", seconds(20), || socket.exists().then_some(()));
    let before = std::fs::metadata(&socket).unwrap().ino();
    for uid in [0, USER] {
        let mut command = as_user(&program, &tmp, uid);
        command.arg("--control").arg(&socket).args(options).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut ours = Killed::spawn(&mut command);
        let mut stderr = ours.0.stderr.take().unwrap();
        let mut log = String::new();
        let mut buffer = [0; 4096];
        while !log.contains("worker online") {
            let n = stderr.read(&mut buffer).unwrap();
            assert!(n > 0, "it ended: {log}");
            log.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
        assert!(log.contains("no control socket at"), "{log}");
    }
    assert_eq!(std::fs::metadata(&socket).unwrap().ino(), before);
    // Root may ask any daemon whose socket it names.
    let output = roundsman().args(["ls", "--control"]).arg(&socket).output().unwrap();
    assert!(output.status.success() && text(&output).contains("web"), "{}", text(&output));
}

/// systemd makes /run/roundsman-unit for the unit's user; the daemon has its name in $RUNTIME_DIRECTORY.
#[test]
fn root_finds_the_daemon_of_a_unit_with_a_user_of_its_own_and_others_hear_of_sudo() {
    let dir = install_dir();
    let program = unprivileged_copy(dir.path());
    let script = r#"set -e
        mount -t tmpfs -o mode=755 run /run
        as() { user=$1; shift; setpriv --reuid "$user" --regid "$user" --clear-groups env "$@"; }
        mkdir -m 700 /run/roundsman-unit "$TMPDIR/state" "$TMPDIR/roundsman-0"
        chown 1234 /run/roundsman-unit "$TMPDIR/state" "$TMPDIR/roundsman-0"
        cd /
        as 1234 RUNTIME_DIRECTORY=/run/roundsman-unit XDG_STATE_HOME="$TMPDIR/state" \
            "$0" -d -n web --no-listen -i 1 --min-uptime 1ms -- sleep 600
        trap '"$0" quit all' EXIT
        "$0" ls web
        "$0" reload web
        "$0" -d -n own --no-listen -i 1 --min-uptime 1ms -- sleep 600
        "$0" ls
        as 1235 "$0" ls || echo "code $?"
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(&program).env("TMPDIR", dir.path()).stdin(Stdio::null());
    command.env("XDG_STATE_HOME", dir.path().join("root"));
    for name in ["ROUNDSMAN_CONTROL", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for wanted in ["reloaded 1 slot", "\nown ", "\nweb ", "code 69", "sudo roundsman ls", "web: the daemon has ended"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[test]
fn answers_without_an_end_are_given_up() {
    let dir = install_dir();
    for slowly in [false, true] {
        let socket = dir.path().join(format!("{slowly}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let piece = if slowly { vec![b'x'; 1] } else { vec![b'x'; 1 << 20] };
            while stream.write_all(&piece).is_ok() {
                count.fetch_add(piece.len(), Ordering::Relaxed);
                if slowly {
                    std::thread::sleep(millis(50));
                }
            }
        });
        let begin = Instant::now();
        let mut child = Killed::spawn(roundsman().args(["ls", "--control"]).arg(&socket).stderr(Stdio::null()));
        let status = eventually("its end", seconds(60), || child.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(69), "after {:?}", begin.elapsed());
        assert!(sent.load(Ordering::Relaxed) < 64 << 20, "{sent:?}");
    }
}

#[test]
fn a_daemon_removes_its_own_control_socket_and_no_others() {
    let dir = install_dir();
    let socket = dir.path().join("d.sock");
    let launch = |port: u16| {
        let mut command = roundsman();
        command.arg("--control").arg(&socket);
        Daemon::launch(command, &["-l", &port.to_string(), "-i", "1", "-u", "127.0.0.1:1", "--name", "one"], port)
    };
    let mut first = launch(free_port());
    first.wait_for("worker online");
    std::fs::remove_file(&socket).unwrap();
    let mut second = launch(free_port());
    second.wait_for("worker online");
    first.signal(Signal::SIGTERM);
    assert_eq!(first.finish(seconds(20)).code(), 0);
    let output = roundsman().args(["ls", "--control"]).arg(&socket).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(second.stop().code(), 0);
    assert!(!socket.exists());
    // A file that is no socket is not ours to remove.
    std::fs::write(&socket, "mine").unwrap();
    let mut third = launch(free_port());
    third.wait_for("what is there is not a socket");
    third.stop();
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
}
