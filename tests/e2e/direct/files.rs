//! The library as a file, for servers of another user: where it may lie, and what is left of it.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::direct::ask;
use crate::support::{Daemon, c_server, eventually, free_port, install_dir, roundsman, seconds, unsaid};

/// Serves as nobody; the variable names a place for the library.
fn start(place: Option<&Path>) -> Daemon {
    let mut command = roundsman();
    command.env_remove("XDG_RUNTIME_DIR");
    if let Some(place) = place {
        command.env("XDG_RUNTIME_DIR", place).env("TMPDIR", place);
    }
    start_by(command, install_dir().path())
}

/// The server is copied to a directory, from which it can be started again while that is there.
fn start_by(mut command: Command, dir: &Path) -> Daemon {
    let port = free_port();
    let server = dir.join("server");
    assert!(Command::new("cp").arg(c_server()).arg(&server).status().unwrap().success());
    std::fs::set_permissions(&server, PermissionsExt::from_mode(0o755)).unwrap();
    command.env_remove("RUNTIME_DIRECTORY");
    let (listen, number) = (format!("127.0.0.1:{port}"), port.to_string());
    let all = ["-l", &listen, "-i", "1", "--via", "direct", "--user", "nobody", "--"];
    let daemon = Daemon::launch(command, &[&all[..], &[server.to_str().unwrap(), "threads", &number]].concat(), port);
    daemon.wait_online(1);
    daemon
}

/// Where its servers find the library.
fn library(daemon: &Daemon) -> PathBuf {
    let environment = std::fs::read(format!("/proc/{}/environ", daemon.workers()[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let value = environment.split('\0').find_map(|line| line.strip_prefix("LD_PRELOAD=")).unwrap();
    value.split(':').next().unwrap().into()
}

#[test]
fn the_library_lies_where_nobody_else_can_replace_it() {
    let dir = install_dir();
    let place = |name: &str, mode: u32, owner: u32| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        chown(&path, Some(owner), None).unwrap();
        path
    };
    let (open, theirs) = (place("open", 0o777, 0), place("theirs", 0o755, 65534));
    // Ours, below somebody else's.
    let below = place("theirs/ours", 0o755, 0);
    for place in [&open, &theirs, &below] {
        let daemon = start(Some(place));
        let library = library(&daemon);
        assert!(library.is_file() && !library.starts_with(dir.path()), "{}", library.display());
    }
}

#[test]
fn what_a_killed_daemon_leaves_is_removed_and_what_a_live_one_uses_is_not() {
    let mut killed = start(None);
    let left = library(&killed);
    killed.signal(Signal::SIGKILL);
    killed.finish(seconds(20));
    let live = start(None);
    let used = library(&live);
    assert_eq!(used.parent(), left.parent());
    eventually("the leftover is gone", seconds(10), || (!left.exists()).then_some(()));
    let mut other = start(None);
    assert!(used.exists());
    // Nor by one to whom its pid means nothing.
    let strange = used.with_file_name(format!("roundsman-4194999-{}-preload.so", std::process::id()));
    std::fs::write(&strange, "leftover").unwrap();
    let file = std::fs::File::open(&strange).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockSharedNonblock).unwrap();
    drop(start(None));
    assert!(strange.exists());
    drop(lock);
    drop(start(None));
    assert!(!strange.exists());
    let last = library(&other);
    assert_eq!(other.stop().code(), 0);
    assert!(!last.exists() && used.exists());
}

/// What happens to the file system of the library, and where it is after that; it is served directly all the same.
fn fails_later(deed: &str, stays: bool) {
    let mut command = Command::new("unshare");
    let line = format!("mount -t tmpfs none /run; exec {} \"$@\"", env!("CARGO_BIN_EXE_roundsman"));
    command.args(["-m", "--propagation", "private", "sh", "-c", &line, "sh"]);
    let dir = install_dir();
    let mut daemon = start_by(command, dir.path());
    let before = library(&daemon);
    assert_eq!(before.parent(), Some(Path::new("/run")));
    let inside = ["-t", &daemon.pid().to_string(), "-m", "sh", "-c", deed].map(str::to_owned);
    assert!(Command::new("nsenter").args(inside).status().unwrap().success(), "{deed}");
    kill(Pid::from_raw(daemon.workers()[0]), Signal::SIGKILL).unwrap();
    eventually("its successor", seconds(20), || (daemon.total("restarts") == 1).then_some(()));
    daemon.wait_online(1);
    assert!((0..5).all(|_| ask(daemon.port).1), "{deed}: {}", daemon.log());
    assert_eq!(library(&daemon) == before, stays, "{deed}: {}", daemon.log());
    // Nobody else may take a name that servers have in LD_PRELOAD.
    let seen = format!("/proc/{}/root{}", daemon.pid(), before.display());
    assert_eq!(Path::new(&seen).exists(), stays || deed.contains("noexec"), "{deed}");
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{deed}: {}", end.log);
    assert_eq!(end.log.contains(" from now on"), !stays, "{deed}: {}", end.log);
    unsaid(&end.log, &["ld.so"]);
}

#[test]
fn a_place_that_fails_later_is_decided_again() {
    fails_later("mount -o remount,noexec /run", false);
    fails_later("mount -o remount,ro /run; rm -f /run/*; mount -t tmpfs -o ro none /run", false);
    fails_later("mount -t tmpfs none /run", true);
    fails_later("umount -l /run; mount -t tmpfs none /run", true);
}
