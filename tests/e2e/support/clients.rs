//! Many clients of a server under direct delivery while its processes are replaced or killed.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::direct::start_with;
use super::{eventually, get, roundsman, seconds};

/// What became of connections: answered, cut off (their server had them when it was killed), and what may never be.
#[derive(Default, Debug)]
struct Fates {
    served: AtomicUsize,
    cut: AtomicUsize,
    refused: AtomicUsize,
    hung: AtomicUsize,
}

impl Fates {
    fn note(&self, result: &io::Result<String>) {
        use io::ErrorKind::{ConnectionRefused, TimedOut, WouldBlock};
        let fate = match result.as_ref().map_err(io::Error::kind) {
            Ok(_) => &self.served,
            Err(ConnectionRefused) => &self.refused,
            Err(TimedOut | WouldBlock) => &self.hung,
            Err(_) => &self.cut,
        };
        fate.fetch_add(1, SeqCst);
    }
}

/// Clients that ask without a pause, and the server that they ask.
pub struct Clients<'a> {
    pub command: &'a [String],
    pub port: u16,
    pub count: usize,
    pub ask: fn(u16) -> io::Result<String>,
    /// For roundsman, besides `--via direct`.
    pub options: &'a [&'a str],
}

impl<'a> Clients<'a> {
    /// 50 of an HTTP server.
    pub fn of_http(command: &'a [String], port: u16) -> Self {
        Self { command, port, count: 50, ask: get, options: &[] }
    }

    fn during(&self, deed: impl FnOnce()) -> Fates {
        let (fates, over) = (Fates::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..self.count {
                scope.spawn(|| {
                    while !over.load(SeqCst) {
                        fates.note(&(self.ask)(self.port));
                    }
                });
            }
            deed();
            over.store(true, SeqCst);
        });
        fates
    }

    /// Reloads the service: nobody notices.
    pub fn through_reloads(&self, count: usize) {
        let more = [&["--via", "direct", "--min-uptime", "10ms"], self.options].concat();
        let mut daemon = start_with(self.port, "2", &more, self.command);
        let fates = self.during(|| {
            for _ in 0..count {
                let done = roundsman().arg("reload").env("ROUNDSMAN_CONTROL", daemon.control()).output().unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
        });
        let (served, lost) = (fates.served.load(SeqCst), [&fates.cut, &fates.refused, &fates.hung]);
        let none_lost = lost.iter().all(|lost| lost.load(SeqCst) == 0);
        assert!(served > 2 * self.count && none_lost, "{fates:?}\n{}", daemon.log());
        assert!(daemon.slots().iter().all(|slot| slot["generation"].as_u64() > Some(count as u64)));
        assert_eq!(daemon.stop().code(), 0);
    }

    /// Kills servers: only what they had received is lost.
    pub fn through_kills(&self, count: usize) {
        let more = ["--via", "direct", "--min-uptime", "10ms", "--backoff", "1ms..10ms", "--max-restarts", "1000"];
        let mut daemon = start_with(self.port, "2", &[&more, self.options].concat(), self.command);
        let fates = self.during(|| {
            for n in 0..count {
                daemon.wait_online(2);
                kill(Pid::from_raw(daemon.workers()[n % 2]), Signal::SIGKILL).unwrap();
                eventually("the end is noticed", seconds(10), || (daemon.total("restarts") > n as u64).then_some(()));
            }
        });
        let (served, lost) = (fates.served.load(SeqCst), [&fates.refused, &fates.hung]);
        let none_lost = lost.iter().all(|lost| lost.load(SeqCst) == 0);
        assert!(served > 2 * self.count && none_lost, "{fates:?}\n{}", daemon.log());
        // A server has one connection of each client at most.
        assert!(fates.cut.load(SeqCst) <= count * self.count, "{fates:?}");
        daemon.wait_online(2);
        assert_eq!(daemon.stop().code(), 0);
    }
}
