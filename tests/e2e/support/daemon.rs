//! The daemon under test: the real binary, with its log kept for the message when a test fails.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roundsman::sys::process::descendants;
use serde_json::Value;
use tempfile::TempDir;

use super::{eventually, free_port, seconds};

/// The binary under test.
pub fn roundsman() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roundsman"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ROUNDSMAN_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A copy of the binary in a directory that every user may enter.
pub fn unprivileged_copy(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let copy = dir.join("roundsman");
    // By another process: a fork of another test would hold our descriptor, and the copy would be "busy".
    assert!(
        Command::new("cp")
            .args([env!("CARGO_BIN_EXE_roundsman").as_ref(), copy.as_os_str()])
            .status()
            .unwrap()
            .success()
    );
    for path in [dir, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

/// A running daemon; killed, with everything below it, when dropped.
pub struct Daemon {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    control: PathBuf,
    _dir: TempDir,
}

/// How a process ended and what it wrote.
pub struct Finished {
    pub status: ExitStatus,
    pub log: String,
}

impl Finished {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 1000 + self.status.signal().unwrap_or(0))
    }
}

impl Daemon {
    /// By relay, on a free port of 127.0.0.1, with these arguments besides `--listen`; returns when it listens.
    pub fn start(arguments: &[&str]) -> Self {
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let mut all = vec!["-l", &listen, "--via", "relay"];
        all.extend(arguments);
        let daemon = Self::launch(roundsman(), &all, port);
        daemon.wait_for("listening");
        daemon
    }

    /// With exactly these arguments; returns at once.
    pub fn launch(mut command: Command, arguments: &[&str], port: u16) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        // An unprivileged daemon refuses a control directory that belongs to another user, hence its own one.
        let control = dir.path().join("control").join("d.sock");
        command.args(arguments.iter().map(OsString::from)).env("ROUNDSMAN_CONTROL", &control);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, port, log, reader: Some(reader), control, _dir: dir }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_for_count(text, 1);
    }

    /// Waits until the log has `text` so many times.
    #[track_caller]
    pub fn wait_for_count(&self, text: &str, count: usize) {
        eventually(&format!("{count} × {text:?} in the log"), seconds(20), || {
            (self.log().matches(text).count() >= count).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// `roundsman ls --json`, once there is a daemon.
    #[track_caller]
    pub fn ls(&self) -> Value {
        eventually("an answer to ls", seconds(10), || {
            let output = roundsman().args(["ls", "--json"]).env("ROUNDSMAN_CONTROL", &self.control).output().unwrap();
            serde_json::from_slice(&output.stdout).ok()
        })
    }

    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The slots of the first service in `ls`.
    pub fn slots(&self) -> Vec<Value> {
        self.ls()["services"][0]["slots"].as_array().unwrap().clone()
    }

    pub fn slot(&self, slot: usize, field: &str) -> Value {
        self.slots()[slot][field].clone()
    }

    /// The sum of a field over all slots.
    pub fn total(&self, field: &str) -> u64 {
        self.slots().iter().map(|slot| slot[field].as_u64().unwrap()).sum()
    }

    /// The processes of the workers that receive connections.
    pub fn workers(&self) -> Vec<i32> {
        self.slots().iter().filter_map(|slot| slot["pid"].as_i64()).map(|pid| pid as i32).collect()
    }

    /// Waits until so many slots are online.
    #[track_caller]
    pub fn wait_online(&self, count: usize) {
        eventually(&format!("{count} slots online"), seconds(20), || {
            let online = self.slots().iter().filter(|slot| slot["state"] == "online").count();
            (online == count).then_some(())
        });
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(&mut self, limit: Duration) -> Finished {
        let end = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "the daemon did not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        Finished { status, log: self.log() }
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub fn stop(&mut self) -> Finished {
        self.signal(Signal::SIGTERM);
        self.finish(seconds(15))
    }

    /// The same; no process that was below it is left.
    #[track_caller]
    pub fn stop_with_all_below(&mut self) -> Finished {
        let below = descendants(self.pid());
        let finished = self.stop();
        for pid in below {
            let is_gone = || kill(Pid::from_raw(pid as i32), None).is_err().then_some(());
            eventually(&format!("the end of process {pid}"), seconds(5), is_gone);
        }
        finished
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Children of servers that die with it would be nobody's. A master that is stopped starts no others and reaps none,
            // so that no number is another process's; the second look is for what was being forked.
            self.signal(Signal::SIGSTOP);
            for _ in 0..2 {
                for &pid in descendants(self.pid()).iter().skip(1) {
                    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                }
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}--- end of the log ---", self.log());
        }
    }
}
