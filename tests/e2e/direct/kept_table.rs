//! Mostly waits: servers behind keepers, through all that a daemon does with its workers: kinds of accepting × policies × deeds,
//! while clients ask without a pause. Nobody loses an answer.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roundsman::sys::process::descendants;

use crate::support::direct::{ask, parent, start_with};
use crate::support::recycle::{Connections, served_meanwhile};
use crate::support::{Daemon, eventually, free_port, freeze, roundsman, seconds, static_servers, unsaid};

/// What is done to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Reload,
    /// To three, to one, and back to two.
    Scale,
    /// A slot, and back.
    Drain,
    /// A slot gets no share, then one again.
    Weight,
    /// All workers end, then new ones start: clients wait.
    Restart,
    /// A server stands still for some requests.
    ServerStalls,
    /// Its keeper does.
    KeeperStalls,
    /// The program that runs is put in its own place.
    Upgrade,
}

const DEEDS: [Deed; 8] = [
    Deed::Reload,
    Deed::Scale,
    Deed::Drain,
    Deed::Weight,
    Deed::ServerStalls,
    Deed::KeeperStalls,
    Deed::Upgrade,
    Deed::Restart,
];

impl Deed {
    fn commands(self, service: &str) -> Vec<Vec<String>> {
        let of = |words: &[&str]| words.iter().map(|word| word.replace("NAME", service)).collect();
        match self {
            Self::Reload => vec![of(&["reload"])],
            Self::Scale => vec![of(&["scale", "3"]), of(&["scale", "1"]), of(&["scale", "2"])],
            Self::Drain => vec![of(&["drain", "NAME/0"]), of(&["undrain", "NAME/0"])],
            Self::Weight => vec![of(&["weight", "NAME/0", "0"]), of(&["weight", "NAME/0", "1"])],
            Self::Restart => vec![of(&["restart"])],
            Self::Upgrade => vec![of(&["upgrade"])],
            Self::ServerStalls | Self::KeeperStalls => Vec::new(),
        }
    }

    fn act(self, daemon: &Daemon, what: &str) {
        let service = daemon.ls()["services"][0]["name"].as_str().unwrap().to_owned();
        for command in self.commands(&service) {
            let done = roundsman().args(&command).env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
            assert!(done.status.success(), "{what}, {command:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        let server = daemon.workers()[0];
        let frozen: Vec<i32> = match self {
            Self::ServerStalls => descendants(server as u32).into_iter().map(|pid| pid as i32).collect(),
            Self::KeeperStalls => vec![parent(server)],
            _ => return,
        };
        frozen.iter().for_each(|&pid| freeze(pid));
        // What it had accepted waits; what comes now, or was queued, goes to the other.
        let mine = ask(daemon.port).0;
        assert!((0..10).all(|_| ask(daemon.port) == (mine.clone(), true)), "{what}: all go to the other");
        for pid in frozen {
            kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        }
    }
}

fn through_all(program: &str, mode: &str, policy: &str) {
    let (port, what) = (free_port(), format!("{mode} under {policy}"));
    let more = ["--via", "direct", "-p", policy, "--min-uptime", "10ms"];
    let mut daemon = start_with(port, "2", &more, &[program.to_owned(), mode.to_owned(), port.to_string()]);
    assert_eq!(daemon.ls()["services"][0]["via_seccomp"], true, "{what}");
    // Where servers accept by themselves, nobody keeps connections from one of them.
    for deed in DEEDS.into_iter().filter(|deed| policy != "none" || !matches!(deed, Deed::Drain | Deed::Weight)) {
        let what = format!("{what}, {deed:?}");
        let served = served_meanwhile(port, 12, Connections::Short, || {
            deed.act(&daemon, &what);
            daemon.wait_online(2);
        });
        assert!(served > 0, "{what}");
        assert!((0..20).all(|_| ask(port).1), "{what}: the client's address");
        eventually(&format!("{what}: open is back to 0"), seconds(15), || (daemon.total("open") == 0).then_some(()));
    }
    assert_eq!(daemon.total("restarts"), 0, "{what}: {}", daemon.log());
    let end = daemon.stop();
    assert_eq!(end.code(), 0, "{what}: {}", end.log);
    unsaid(&end.log, &["did not end", "relayed"]);
}

#[test]
fn nobody_loses_an_answer_under_rr() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(glibc, "threads"), (musl, "level"), (musl, "prefork")] {
        through_all(program, mode, "rr");
    }
}

#[test]
fn nobody_loses_an_answer_under_least_conn() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(musl, "threads"), (glibc, "level"), (glibc, "prefork")] {
        through_all(program, mode, "least-conn");
    }
}

#[test]
fn nobody_loses_an_answer_under_ip_hash() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(glibc, "threads"), (musl, "level"), (glibc, "prefork")] {
        through_all(program, mode, "ip-hash");
    }
}

#[test]
fn nobody_loses_an_answer_under_none() {
    let [glibc, musl] = static_servers();
    for (program, mode) in [(glibc, "threads"), (musl, "level"), (musl, "prefork")] {
        through_all(program, mode, "none");
    }
}
