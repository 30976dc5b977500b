//! The world around the service: its processes and the accept thread, as far as it can tell.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use crate::abi::page::row;
use crate::accept::orders::{Order, Report, WorkerId};
use crate::handoff::page::CountersPage;
use crate::relay::protocol::{self, Setup, ToWorker};
use crate::sys::fake::{self, Act};

/// xorshift64*, so that a seed means the same history everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

pub struct Process {
    pub slot: u32,
    pub started: Instant,
    /// A relay worker says so then, if it is set up; never, in some.
    ready: Option<Instant>,
    has_said: bool,
    pub dies: Option<Instant>,
    deaf: bool,
    /// It was asked to go, or killed.
    pub leaves: bool,
    channel: Option<OwnedFd>,
    page: Option<CountersPage>,
    drains: bool,
    code: i32,
}

/// What the service has done since the last look.
#[derive(Debug)]
pub enum Deed {
    Start(u32),
    Stop { pid: u32, by: Signal, before: Leaving },
    Drain(WorkerId),
    Order,
}

/// Whether a process had been asked to go before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    Yes,
    No,
}

pub struct World {
    pub random: Random,
    pub processes: BTreeMap<u32, Process>,
    /// Workers that get connections.
    pub online: BTreeMap<WorkerId, Arc<CountersPage>>,
    orders: Receiver<Order>,
    reports: Vec<(Instant, Report)>,
    /// From now on every new process comes up and lives.
    pub kind: bool,
    /// From now on every new process fails at once.
    pub broken: bool,
}

impl World {
    pub fn new(seed: u64, orders: Receiver<Order>) -> Self {
        let (processes, online) = (BTreeMap::new(), BTreeMap::new());
        Self { random: Random::new(seed), processes, online, orders, reports: Vec::new(), kind: false, broken: false }
    }

    fn started(&mut self, pid: u32, slot: u32, channel: Option<OwnedFd>, now: Instant) {
        if let Some(channel) = &channel {
            fcntl(channel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        let random = &mut self.random;
        let ready = (self.kind || !random.one_in(12)).then(|| now + random.millis(1500));
        let dies = (!self.kind && random.one_in(4)).then(|| now + random.millis(20_000));
        let (ready, dies) = match self.broken {
            true => (None, Some(now + Duration::from_millis(10))),
            false => (ready, dies),
        };
        let (deaf, code) = (random.one_in(6), random.below(2) as i32);
        let process = Process {
            slot,
            started: now,
            ready,
            has_said: false,
            dies,
            deaf,
            leaves: false,
            channel,
            page: None,
            drains: false,
            code,
        };
        self.processes.insert(pid, process);
    }

    /// What the service has done, in its order: first to processes, then orders.
    pub fn look(&mut self, now: Instant) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for act in fake::acts() {
            match act {
                Act::Start { pid, slot, channel } => {
                    self.started(pid, slot.unwrap_or(0), channel, now);
                    deeds.push(Deed::Start(pid));
                }
                Act::Signal(pid, by) => {
                    let Some(process) = self.processes.get_mut(&pid) else { continue };
                    let before = if process.leaves { Leaving::Yes } else { Leaving::No };
                    process.leaves = true;
                    if by == Signal::SIGKILL {
                        process.dies = Some(now);
                    } else if !process.deaf {
                        let end = now + self.random.millis(300);
                        process.dies = Some(process.dies.map_or(end, |dies| dies.min(end)));
                    }
                    deeds.push(Deed::Stop { pid, by, before });
                }
            }
        }
        while let Ok(order) = self.orders.try_recv() {
            let later = now + self.random.millis(20);
            match order {
                Order::Online { worker, page, .. } => drop(self.online.insert(worker, page)),
                Order::Drain(worker) => {
                    // Judged before the worker goes.
                    deeds.push(Deed::Drain(worker));
                    self.reports.push((later, Report::Drained(worker)));
                    continue;
                }
                Order::WorkerDied(worker) => drop(self.online.remove(&worker)),
                Order::Stop(service) => self.reports.push((later, Report::Stopped(service))),
                Order::Pause(service) => self.reports.push((later, Report::Paused(service))),
                _ => {}
            }
            deeds.push(Deed::Order);
        }
        self.processes.values_mut().for_each(Process::hear);
        deeds
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Instant> {
        let events = self.processes.values().flat_map(|process| [process.dies, process.says_ready()]).flatten();
        events.chain(self.reports.iter().map(|(at, _)| *at)).min()
    }

    /// Those that have ended by now.
    pub fn ended(&mut self, now: Instant) -> Vec<(WaitStatus, Process)> {
        for process in self.processes.values_mut() {
            if process.drains && process.page.as_ref().is_some_and(|page| page.open() == 0) {
                process.dies = process.dies.or(Some(now));
            }
        }
        let is_over = |process: &Process| process.dies.is_some_and(|at| at <= now);
        let over: Vec<u32> =
            self.processes.iter().filter(|(_, process)| is_over(process)).map(|(&pid, _)| pid).collect();
        let end = |pid: u32| {
            let process = self.processes.remove(&pid).unwrap();
            (WaitStatus::Exited(Pid::from_raw(pid as i32), process.code), process)
        };
        over.into_iter().map(end).collect()
    }

    /// Relay workers that say now that they are ready.
    pub fn ready(&mut self, now: Instant) -> Vec<u32> {
        let says = |(_, process): &(&u32, &mut Process)| process.says_ready().is_some_and(|at| at <= now);
        let saying = self.processes.iter_mut().filter(says);
        let saying = saying.map(|(&pid, process)| {
            process.has_said = true;
            pid
        });
        saying.collect()
    }

    pub fn reports(&mut self, now: Instant) -> Vec<Report> {
        let (due, later) = std::mem::take(&mut self.reports).into_iter().partition(|(at, _)| *at <= now);
        self.reports = later;
        let due: Vec<(Instant, Report)> = due;
        due.into_iter().map(|(_, report)| report).collect()
    }

    /// A worker has been given as many connections as it may get.
    pub fn one_has_served(&mut self, now: Instant) {
        let at = self.random.below(8) as usize;
        self.reports.extend(self.online.keys().nth(at).map(|worker| (now, Report::Served(*worker))));
    }

    /// Connections come and go.
    pub fn traffic(&mut self) {
        for page in self.online.values() {
            page.add(row::RECEIVED, self.random.below(4));
        }
        for page in self.processes.values().filter_map(|process| process.page.as_ref()) {
            page.add(row::CLOSED, self.random.below(page.open() + 1));
        }
    }

    /// All that is open ends; what never came up comes, and nobody dies by itself any more.
    pub fn be_kind(&mut self, now: Instant) {
        self.kind = true;
        for process in self.processes.values_mut() {
            process.ready = process.ready.or(Some(now));
            if !process.leaves {
                process.dies = None;
            }
            if let Some(page) = &process.page {
                page.add(row::CLOSED, page.open());
            }
        }
    }
}

impl Process {
    fn says_ready(&self) -> Option<Instant> {
        self.ready.filter(|_| self.page.is_some() && !self.has_said)
    }

    fn hear(&mut self) {
        let Some(channel) = &self.channel else { return };
        if poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0) {
            return;
        }
        let mut fds = Vec::new();
        if self.page.is_none() && matches!(protocol::receive::<Setup>(channel.as_fd(), &mut fds), Ok(Some(_))) {
            self.page = Some(CountersPage::attach(fds[0].as_fd()).unwrap());
        }
        while self.page.is_some()
            && let Ok(Some(order)) = protocol::receive::<ToWorker>(channel.as_fd(), &mut fds)
        {
            self.drains |= order == ToWorker::Drain;
        }
        self.leaves |= self.drains;
    }
}
