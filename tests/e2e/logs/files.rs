//! Log files in directories that the servers' user can write to, and FIFOs: nothing is written elsewhere, nothing hangs.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::support::{Daemon, eventually, free_port, install_dir, roundsman, seconds, write_file};

const NOBODY: u32 = 65534;

struct Logs {
    dir: tempfile::TempDir,
}

impl Logs {
    /// `logs`, which belongs to nobody, and `private`, into which only root may look.
    fn new() -> Self {
        let dir = install_dir();
        for (name, mode, owner) in [("logs", 0o755, NOBODY), ("private", 0o700, 0)] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
            chown(dir.path().join(name), Some(owner), None).unwrap();
        }
        write_file(dir.path(), "private/victim", "untouched\n");
        write_file(dir.path(), "say", "");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// As the servers' user does it, whose server says what is written to `say`.
    fn link(&self, target: &str, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
        symlink(self.path(target), self.path(name)).unwrap();
        lchown(self.path(name), Some(NOBODY), None).unwrap();
    }

    fn say(&self, text: &str) {
        std::fs::OpenOptions::new().append(true).open(self.path("say")).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn holds(&self, name: &str, text: &str) {
        eventually(&format!("{text:?} in {name}"), seconds(20), || self.read(name).contains(text).then_some(()));
    }

    fn daemon(&self, out: &str, more: &[&str]) -> Daemon {
        let mut command = roundsman();
        command.current_dir(self.dir.path());
        let all = [&["--no-listen", "-i", "1", "--name", "app", "--user", "nobody", "--out", out], more].concat();
        Daemon::launch(command, &[&all[..], &["--", "tail", "-n", "+1", "-f", "say"]].concat(), 0)
    }

    /// The message of a start that is refused.
    #[track_caller]
    fn refused(&self, out: &Path) -> String {
        let mut daemon = self.daemon(out.to_str().unwrap(), &[]);
        let finished = daemon.finish(seconds(20));
        assert_eq!(finished.code(), 71, "{}", finished.log);
        finished.log
    }
}

#[test]
fn a_link_that_a_server_puts_in_its_log_directory_is_never_followed() {
    let logs = Logs::new();
    let daemon = logs.daemon("logs/app.log", &["--rotate-size", "4KiB"]);
    logs.say("first\n");
    logs.holds("logs/app.log", "first\n");
    // At a rotation: the lines go on to the file that is open, wherever it is now.
    std::fs::rename(logs.path("logs/app.log"), logs.path("logs/moved")).unwrap();
    logs.link("private/victim", "logs/app.log");
    logs.say(&"injected\n".repeat(600));
    daemon.wait_for("cannot rotate logs/app.log: logs/app.log is a symbolic link");
    logs.holds("logs/moved", "injected\n");
    // When files are opened again; also where there is nothing yet.
    logs.link("private/new", "logs/app.log");
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for("cannot open logs/app.log again: logs/app.log is a symbolic link");
    logs.say("second\n");
    logs.holds("logs/moved", "second\n");
    // Once it is gone, all is as before.
    std::fs::remove_file(logs.path("logs/app.log")).unwrap();
    daemon.signal(Signal::SIGUSR1);
    eventually("a new file", seconds(10), || logs.path("logs/app.log").is_file().then_some(()));
    logs.say("third\n");
    logs.holds("logs/app.log", "third\n");
    assert_eq!(logs.read("private/victim"), "untouched\n");
    assert!(!logs.path("private/new").exists());
}

#[test]
fn no_rotated_name_is_followed() {
    let logs = Logs::new();
    logs.link("private/victim", "logs/app.log.1");
    // Each time one rotation, in how many pieces ever the lines come.
    let _daemon = logs.daemon("logs/app.log", &["--rotate-size", "4KiB", "--rotate-keep", "2"]);
    logs.say("first\n");
    logs.holds("logs/app.log", "first\n");
    logs.say(&"filler\n".repeat(585));
    logs.holds("logs/app.log.1", "first\n");
    logs.link("private/victim", "logs/app.log.2");
    logs.say(&"more\n".repeat(819));
    logs.holds("logs/app.log.2", "first\n");
    assert_eq!(logs.read("private/victim"), "untouched\n");
    assert!(logs.path("logs/app.log.1").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_start_with_something_else_in_the_files_place_says_what_is_wrong() {
    let logs = Logs::new();
    let app = logs.path("logs/app.log");
    for target in ["private/victim", "private/new"] {
        logs.link(target, "logs/app.log");
        let log = logs.refused(&app);
        assert!(log.contains("logs/app.log is a symbolic link that somebody other than root can have put"), "{log}");
    }
    // A link on the way.
    logs.link("private", "logs/sub");
    let log = logs.refused(&logs.path("logs/sub/new"));
    assert!(log.contains("logs/sub is a symbolic link"), "{log}");
    std::fs::remove_file(&app).unwrap();
    std::fs::hard_link(logs.path("private/victim"), &app).unwrap();
    let log = logs.refused(&app);
    assert!(log.contains("has another name (a hard link), in a directory that others can write to"), "{log}");
    // Somebody else's file in a directory for all.
    let tmp = logs.path("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    write_file(&tmp, "app.log", "");
    chown(tmp.join("app.log"), Some(1234), None).unwrap();
    let log = logs.refused(&tmp.join("app.log"));
    assert!(log.contains("tmp/app.log belongs to uid 1234"), "{log}");
    assert_eq!((logs.read("private/victim").as_str(), logs.path("private/new").exists()), ("untouched\n", false));
}

#[test]
fn what_people_have_goes_on_working() {
    let logs = Logs::new();
    // Root's own links, on the way and at the end; a file that the servers' user made, also in a directory for all.
    let tmp = logs.path("tmp");
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    symlink("logs", logs.path("link")).unwrap();
    symlink("private/large", logs.path("end.log")).unwrap();
    for name in ["logs/theirs.log", "tmp/theirs.log"] {
        write_file(logs.dir.path(), name, "");
        chown(logs.path(name), Some(NOBODY), None).unwrap();
    }
    let cases = [
        ("link/sub/new.log", "logs/sub/new.log"),
        ("end.log", "private/large"),
        ("logs/theirs.log", "logs/theirs.log"),
        ("tmp/theirs.log", "tmp/theirs.log"),
        ("logs/../logs/./plain.log", "logs/plain.log"),
    ];
    for (out, file) in cases {
        write_file(logs.dir.path(), "say", "");
        let mut daemon = logs.daemon(out, &["--rotate-size", "4KiB"]);
        logs.say("a line\n");
        logs.holds(file, "a line\n");
        logs.say(&"filler\n".repeat(585));
        logs.holds(&format!("{file}.1"), "a line\n");
        assert_eq!(daemon.stop().code(), 0);
    }
    assert!(logs.path("end.log").symlink_metadata().unwrap().is_symlink(), "the target is rotated, not the link");
    assert_eq!(std::fs::metadata(logs.path("logs/theirs.log.1")).unwrap().uid(), NOBODY);
    for out in ["/dev/stderr", "/proc/self/fd/2", "/dev/null"] {
        let daemon = logs.daemon(out, &[]);
        daemon.wait_online(1);
        if out != "/dev/null" {
            daemon.wait_for("a line");
        }
    }
}

#[test]
fn a_fifo_hangs_neither_a_start_nor_a_reload_nor_a_reopening() {
    let logs = Logs::new();
    let fifo = logs.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    let log = logs.refused(&fifo);
    assert!(log.contains("fifo: it is a FIFO that no process reads"), "{log}");
    let config = |more: &str| {
        let text = format!(
            "[service.app]\n{more}\ninstances = 1\nno-listen = true\ncommand = [\"tail\", \"-n\", \"+1\", \"-f\", \"say\"]\n"
        );
        write_file(logs.dir.path(), "app.toml", &text)
    };
    config("");
    let mut command = roundsman();
    command.current_dir(logs.dir.path());
    let mut daemon = Daemon::launch(command, &["-c", "app.toml", "--min-uptime", "100ms"], free_port());
    daemon.wait_online(1);
    config("out = \"fifo\"");
    let reload = || roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
    let output = reload();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("it is a FIFO that no process reads"), "{text}");
    daemon.wait_online(1);
    // With a reader it is fine, and stays so when the reader is gone at USR1.
    let mut reader = read_end(&fifo);
    let output = reload();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    logs.say("into the fifo\n");
    let mut got = [0; 14];
    eventually("a line from the fifo", seconds(20), || reader.read(&mut got).is_ok_and(|n| n == 14).then_some(()));
    assert_eq!(&got, b"into the fifo\n");
    drop(reader);
    daemon.signal(Signal::SIGUSR1);
    daemon.wait_for("fifo again: it is a FIFO that no process reads");
    daemon.wait_online(1);
    assert_eq!(daemon.stop().code(), 0);
}

#[test]
fn a_reader_of_a_fifo_that_does_not_read_holds_up_no_other_file() {
    let logs = Logs::new();
    let fifo = logs.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    let mut reader = read_end(&fifo);
    write_file(
        logs.dir.path(),
        "flood.py",
        "print('flood\\n' * 900000, flush=True); open('done', 'w'); __import__('time').sleep(600)",
    );
    let text = "[service.flood]\nout = \"fifo\"\ncommand = [\"python3\", \"flood.py\"]\n\
                [service.calm]\nout = \"calm.log\"\ncommand = [\"tail\", \"-n\", \"+1\", \"-f\", \"say\"]\n";
    let text = text.replace("out =", "instances = 1\nno-listen = true\nout =");
    write_file(logs.dir.path(), "two.toml", &text);
    let mut command = roundsman();
    command.current_dir(logs.dir.path());
    let mut daemon = Daemon::launch(command, &["-c", "two.toml"], 0);
    // More than the pipe, the queue and what waits for the reader can hold.
    eventually("the flood", seconds(20), || logs.path("done").exists().then_some(()));
    for n in 0..20 {
        logs.say(&format!("calm {n}\n"));
        logs.holds("calm.log", &format!("calm {n}\n"));
    }
    // Who reads again gets whole lines, and the log says what is missing.
    let mut got = Vec::new();
    let mut buffer = [0; 65536];
    eventually("word of what was dropped", seconds(20), || {
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            got.extend_from_slice(&buffer[..n]);
        }
        daemon.log().contains("output of servers dropped").then_some(())
    });
    let text = String::from_utf8(got).unwrap();
    assert!(text.starts_with("flood\n"), "{} bytes came", text.len());
    assert!(text.lines().all(|line| line == "flood" || line.is_empty()), "cut lines");
    assert_eq!(daemon.stop().code(), 0);
}

/// Of a FIFO; reads what is there.
fn read_end(fifo: &Path) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(fifo).unwrap()
}

#[test]
fn an_absolute_path_needs_nothing_of_where_the_daemon_is() {
    let logs = Logs::new();
    let copy = crate::support::unprivileged_copy(logs.dir.path());
    let mut command = std::process::Command::new("setpriv");
    // As `sudo -u app roundsman …` in root's home.
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy).current_dir(logs.path("private"));
    let (out, say) = (logs.path("logs/app.log"), logs.path("say"));
    let (out, say) = (out.to_str().unwrap(), say.to_str().unwrap());
    let all = ["--no-listen", "-i", "1", "--name", "app", "--out", out, "--", "tail", "-n", "+1", "-f", say];
    let _daemon = Daemon::launch(command, &all, 0);
    logs.say("hello\n");
    logs.holds("logs/app.log", "hello");
}
