//! The relay worker: a single-threaded loop that carries bytes between clients and upstreams.
//!
//! Data flows intake → sessions → (connect) → pump. The master sets it up over a channel on its standard input; it knows
//! nothing of supervision or of other workers.

mod connect;
mod follow;
pub mod intake;
mod journal;
mod leaving;
mod opening;
mod pipes;
mod probe;
pub mod protocol;
mod pump;
mod resolve;
mod session;
mod sessions;
mod upstreams;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;

use crate::handoff::access::AccessWriter;
use crate::handoff::bell::BellRope;
use crate::handoff::page::CountersPage;
use crate::handoff::upstreams::UpstreamTable;
use crate::handoff::{Carries, QueueRx};
use crate::sys::reason;
use intake::Intake;
use protocol::{FromWorker, Setup, Source, ToWorker};
use resolve::Resolver;
use sessions::Sessions;

const CHANNEL: Token = Token(usize::MAX);
const RESOLVER: Token = Token(usize::MAX - 1);
const PROBE: Token = Token(usize::MAX - 2);

/// Why a relay worker ends early.
#[derive(Debug, Error)]
pub enum RelayError {
    #[error("{what}: {}", reason(.source))]
    Unusable { what: &'static str, source: io::Error },
    #[error("setup came with {0} descriptors")]
    Descriptors(usize),
    #[error("the master is gone")]
    NoMaster,
    #[error("{}", reason(.0))]
    Os(#[from] io::Error),
}

fn unusable(what: &'static str) -> impl Fn(io::Error) -> RelayError {
    move |source| RelayError::Unusable { what, source }
}

/// The role's `main`: serves until the master has it drain, or is gone.
///
/// # Errors
/// When the setup is malformed, or the system refuses epoll or the counters page.
pub fn main() -> Result<(), RelayError> {
    let channel = crate::sys::process::take_stdin().map_err(unusable("no channel on standard input"))?;
    crate::sys::process::set_thread_name(c"roundsman-relay");
    crate::sys::process::prefer_batches();
    let mut worker = Worker::set_up(channel)?;
    crate::sys::mmap::forget_start_up_code();
    worker.report(&FromWorker::Ready);
    worker.run()
}

struct Worker {
    poll: Poll,
    channel: OwnedFd,
    intake: Intake,
    sessions: Sessions,
    resolver: Resolver,
    bell: Option<BellRope>,
    phase: Phase,
    reported_full: bool,
}

#[derive(PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

impl Worker {
    fn set_up(channel: OwnedFd) -> Result<Self, RelayError> {
        let mut fds = Vec::new();
        let mut blocking = [nix::poll::PollFd::new(channel.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut blocking, nix::poll::PollTimeout::NONE).map_err(io::Error::from)?;
        let setup = protocol::receive::<Setup>(channel.as_fd(), &mut fds).map_err(unusable("unreadable setup"))?;
        let setup = setup.ok_or(RelayError::NoMaster)?;
        let listeners = if setup.source == Source::Listeners { setup.listeners } else { 0 };
        if fds.len()
            != 1 + setup.listeners
                + listeners
                + usize::from(setup.shared)
                + usize::from(setup.bell)
                + 2 * usize::from(setup.log)
        {
            return Err(RelayError::Descriptors(fds.len()));
        }
        let table = match fds.pop_if(|_| setup.shared) {
            Some(table) => UpstreamTable::attach(table.as_fd()).map_err(unusable("table of upstreams"))?,
            None => UpstreamTable::own(),
        };
        let log = match (fds.pop_if(|_| setup.log), fds.pop_if(|_| setup.log)) {
            (Some(bell), Some(file)) => {
                Some(AccessWriter::attach(file.as_fd(), bell.as_fd()).map_err(unusable("access log"))?)
            }
            _ => None,
        };
        let bell = match fds.pop_if(|_| setup.bell) {
            Some(bell) => Some(BellRope::attach(bell.as_fd()).map_err(unusable("doorbell"))?),
            None => None,
        };
        let listeners = fds.split_off(1 + setup.listeners);
        let queues = fds.split_off(1);
        let page = fds.pop().ok_or(RelayError::Descriptors(0))?;
        let page = CountersPage::attach(page.as_fd()).map_err(unusable("counters page"))?;
        page.add(crate::abi::page::row::PID, u64::from(std::process::id()));
        let poll = Poll::new()?;
        let fd = channel.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), CHANNEL, Interest::READABLE)?;
        let carries = if setup.translates { Carries::Translations } else { Carries::Sockets };
        let queues = queues.into_iter().map(|queue| QueueRx::new(queue, carries)).collect();
        let intake = Intake::new(&poll, queues, listeners, setup.batch, setup.capacity)?;
        let resolver = Resolver::new(&poll, RESOLVER)?;
        let sessions = Sessions::new(&setup, page, table, log, Instant::now());
        Ok(Self { poll, channel, intake, sessions, resolver, bell, phase: Phase::Serving, reported_full: false })
    }

    /// A full channel loses reports, not connections.
    fn report(&self, message: &FromWorker) {
        let _ = protocol::send(self.channel.as_fd(), message, &[]);
    }

    fn run(&mut self) -> Result<(), RelayError> {
        let mut events = Events::with_capacity(1024);
        loop {
            let now = Instant::now();
            let deadlines =
                [self.sessions.deadline(now), self.sessions.leave_due(), self.intake.deadline(&self.sessions, now)];
            let timeout = deadlines.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            let now = Instant::now();
            let mut ordered = false;
            for event in &events {
                match event.token() {
                    CHANNEL => ordered = true,
                    RESOLVER => {
                        self.resolver.take_finished(|group, addresses| self.sessions.resolved(group, addresses, now))
                    }
                    PROBE => self.sessions.probed(now),
                    token if self.intake.event(token) => {}
                    _ => self.sessions.event(&self.poll, event, now),
                }
            }
            if ordered && !self.take_orders(now)? {
                return Ok(());
            }
            let received = self.intake.take(&self.poll, &mut self.sessions, now)?;
            self.sessions.run_timers(&self.poll, now);
            self.sessions.leave(&self.poll, self.channel.as_fd(), now);
            self.send_reports();
            if let Some(bell) = &self.bell
                && self.sessions.room_is_wanted(received)
            {
                bell.ring();
            }
            if self.phase == Phase::Draining && self.intake.ended() && self.sessions.len() == 0 {
                return Ok(());
            }
        }
    }

    /// Returns whether the master is alive.
    fn take_orders(&mut self, now: Instant) -> Result<bool, RelayError> {
        loop {
            match protocol::receive::<ToWorker>(self.channel.as_fd(), &mut Vec::new()) {
                Ok(Some(ToWorker::Serve)) => self.intake.serve(&self.poll)?,
                Ok(Some(ToWorker::Probe)) => self.sessions.probe(&self.poll, PROBE, now),
                Ok(Some(ToWorker::Drain)) => {
                    self.phase = Phase::Draining;
                    self.intake.stop_listening(&self.poll);
                    self.sessions.spread(now);
                }
                Ok(Some(ToWorker::GiveBack(on))) => self.sessions.give_back(on),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(unusable("channel to the master")(error)),
            }
        }
    }

    fn send_reports(&mut self) {
        let (reports, stale) = self.sessions.take_reports();
        for message in reports {
            self.report(&message);
        }
        for (group, host, port) in stale {
            self.resolver.start(group, host, port);
        }
        if self.intake.full() != self.reported_full {
            self.reported_full = self.intake.full();
            self.report(&FromWorker::Full(self.reported_full));
        }
    }
}
