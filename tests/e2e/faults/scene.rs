//! A daemon with a crowd of clients that wait, and what it used before they came.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Crowd, Daemon, Gate, Killed, eventually, free_port, roundsman, seconds};

/// Long enough for anything but a hang.
pub const LIMIT: Duration = seconds(60);

/// Descriptors and resident memory of the master.
#[derive(Debug, Clone, Copy)]
struct Usage {
    descriptors: usize,
    bytes: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self { descriptors, bytes: kib * 1024 }
    }
}

/// How connections reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Relay,
    Direct,
}

pub struct Scene {
    pub daemon: Daemon,
    pub crowd: Crowd,
    pub gate: Gate,
    under_way: Option<Killed>,
    before: Usage,
}

impl Scene {
    /// Two workers, whose answers wait for a gate.
    pub fn start(via: Via, options: &[&str]) -> Self {
        let (gate, port) = (Gate::closed(), free_port());
        let listen = format!("127.0.0.1:{port}");
        let mut arguments = vec!["-l", &listen, "-i", "2"];
        arguments.extend(options);
        let (address, command);
        match via {
            Via::Relay => {
                address = gate.upstream().arg();
                arguments.extend(["-u", &address]);
            }
            Via::Direct => {
                command = gate.command(port);
                arguments.extend(["--via", "direct", "--"]);
                arguments.extend(command.iter().map(String::as_str));
            }
        }
        let daemon = Daemon::launch(roundsman(), &arguments, port);
        daemon.wait_online(2);
        let (crowd, before) = (Crowd::of(port), Usage::of(daemon.pid()));
        Self { daemon, crowd, gate, under_way: None, before }
    }

    /// The same with both workers killed, and no others for an hour.
    pub fn without_workers(options: &[&str]) -> Self {
        let mut all = vec!["--backoff", "1h..1h"];
        all.extend(options);
        let scene = Self::start(Via::Relay, &all);
        scene.gate.open();
        for worker in scene.daemon.workers() {
            kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        }
        scene.daemon.wait_for_count("relay worker exited", 2);
        scene
    }

    pub fn held(&self) -> usize {
        self.number("held")
    }

    pub fn shed(&self) -> usize {
        self.number("shed")
    }

    /// A number of the service in `ls`.
    pub fn number(&self, field: &str) -> usize {
        self.daemon.ls()["services"][0][field].as_u64().unwrap() as usize
    }

    pub fn wait_held(&self, count: usize) {
        eventually(&format!("{count} held"), LIMIT, || (self.held() == count).then_some(()));
    }

    /// CPU time of the master's threads.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).unwrap().flatten();
        let nanos = tasks.map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(nanos.sum())
    }

    pub fn served(&self) -> usize {
        self.daemon.total("connections") as usize
    }

    fn verb(&self, words: &[&str]) -> Command {
        let mut command = roundsman();
        command.args(words).env("ROUNDSMAN_CONTROL", self.daemon.control());
        command
    }

    /// A verb that goes on while the clients do something.
    pub fn begin(&mut self, words: &[&str]) {
        let log = |daemon: &Daemon| daemon.log().len();
        let before = log(&self.daemon);
        self.under_way = Some(Killed::spawn(self.verb(words).stdout(Stdio::null())));
        eventually(&format!("{words:?} has begun"), LIMIT, || (log(&self.daemon) > before).then_some(()));
    }

    /// Its end, which is to be success.
    #[track_caller]
    pub fn end_of_verb(&mut self) {
        if let Some(mut verb) = self.under_way.take() {
            assert!(verb.0.wait().unwrap().success(), "{}", self.daemon.log());
        }
    }

    /// A verb, which is to succeed.
    #[track_caller]
    pub fn ask(&self, words: &[&str]) {
        let output = self.verb(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Nothing is left of the crowd: the master has its descriptors back, and its memory but for what an allocator keeps.
    #[track_caller]
    pub fn as_before(&self) {
        eventually("nobody waits", LIMIT, || (self.held() == 0).then_some(()));
        eventually("open and pending are back to 0", LIMIT, || {
            (self.daemon.total("open") + self.daemon.total("pending") == 0).then_some(())
        });
        let before = self.before;
        // One more for a client of the control socket that is just leaving.
        let limit = before.descriptors + 2;
        eventually(&format!("descriptors are back to {}", before.descriptors), seconds(10), || {
            (Usage::of(self.daemon.pid()).descriptors <= limit).then_some(())
        });
        let now = Usage::of(self.daemon.pid());
        assert!(now.bytes <= before.bytes + (4 << 20), "{before:?}, now {now:?}");
    }
}
