//! The processes of a slot: its relay worker and its server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::node::Ipc;
use super::notify::Notify;
use super::probe::Probe;
use super::silence::Complained;
use crate::accept::orders::WorkerId;
use crate::config::ServiceConfig;
use crate::handoff::QueueTx;
use crate::handoff::page::CountersPage;
use crate::launch::Launcher;
use crate::relay::protocol::{self, Setup, Source, ToWorker};
use crate::sys::closer::Foreign;
use crate::sys::{process, sock};

/// A relay worker's process and the master's ends of what connects it.
#[derive(Debug)]
pub struct Relay {
    /// Which generation of which slot.
    pub id: WorkerId,
    /// Its process.
    pub pid: u32,
    /// Its channel.
    pub channel: Foreign,
    /// Its queues, until the accept thread gets them.
    pub queues: Vec<Arc<QueueTx>>,
    /// Its counters.
    pub page: Arc<CountersPage>,
    /// The worker's ends of page and queues, until they are sent.
    ends: Vec<OwnedFd>,
    /// Whether it said that it is set up.
    pub readiness: Readiness,
    /// When it was started.
    pub since: Instant,
}

/// Whether a relay worker is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It waits for its setup.
    NotSetUp,
    /// It has its setup.
    Awaited,
    /// Yes.
    Ready,
}

impl Relay {
    /// Starts a relay worker with a queue for each of `listeners`; it waits for its setup.
    ///
    /// # Errors
    /// When the system refuses sockets, memory or a process.
    pub fn start(
        launcher: &Launcher,
        service: &ServiceConfig,
        id: WorkerId,
        listeners: usize,
        now: Instant,
    ) -> io::Result<Self> {
        let (channel, theirs) = sock::seqpacket_pair()?;
        let (page, page_fd) = CountersPage::create()?;
        let mut queues = Vec::new();
        let mut ends = vec![page_fd];
        for _ in 0..listeners {
            let (queue, end) = QueueTx::to_relay()?;
            queues.push(Arc::new(queue));
            ends.push(end);
        }
        let pid = launcher.relay(&service.name, id.slot, service.user.as_ref(), theirs)?;
        let page = Arc::new(page);
        let channel = Foreign::socket(channel);
        Ok(Self { id, pid, channel, queues, page, ends, readiness: Readiness::NotSetUp, since: now })
    }

    /// Sends the setup, once: only when the server accepts it is known where.
    ///
    /// # Errors
    /// As sendmsg(2); the worker is of no use then.
    pub fn set_up(
        &mut self,
        setup: &Setup,
        listeners: &[BorrowedFd<'_>],
        table: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let ends = std::mem::take(&mut self.ends);
        let mut fds: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
        if setup.source == Source::Listeners {
            fds.extend_from_slice(listeners);
        }
        fds.extend(table);
        self.readiness = Readiness::Awaited;
        protocol::send(self.channel.as_fd(), setup, &fds)
    }

    /// Sends an order. A worker whose channel is full or gone is on its way out anyhow.
    pub fn order(&self, order: ToWorker) {
        let _ = protocol::send(self.channel.as_fd(), &order, &[]);
    }

    /// Lets it finish what it has; one that was not set up has nothing to finish.
    pub fn drain(&self) {
        match self.readiness {
            Readiness::NotSetUp => process::kill_tree(self.pid),
            Readiness::Awaited | Readiness::Ready => self.order(ToWorker::Drain),
        }
    }
}

/// A server's process.
#[derive(Debug)]
pub struct Server {
    /// The process that we started.
    pub pid: u32,
    /// Where it listens: the private address, corrected to what really accepts.
    pub address: Option<SocketAddr>,
    /// Looks whether it accepts; `None` once it does.
    pub probe: Option<Probe>,
    /// When it was started.
    pub since: Instant,
    /// What was said of its not listening.
    pub complained: Complained,
    /// Why it is not online, as far as is known.
    pub trouble: Option<String>,
    /// The address that it wanted and did not get, and why.
    pub refused: Option<String>,
    /// Whether it was told to stop.
    pub told: Told,
    /// What its processes have in their environment, and no other server's.
    pub mark: String,
    /// Where it says that it is ready, as long as that is waited for.
    pub notify: Option<Notify>,
    /// Node's channel.
    pub ipc: Option<Ipc>,
    /// The port of Node's inspector: nobody's but its own.
    pub inspect: Option<u16>,
}

impl Told {
    /// When it got the stop message, if it waits for the signal since.
    pub fn by_message(self) -> Option<Instant> {
        match self {
            Self::ByMessage(at) => Some(at),
            Self::Nothing | Self::ToStop(_) => None,
        }
    }

    /// When it got its stop signal.
    pub fn by_signal(self) -> Option<Instant> {
        match self {
            Self::ToStop(at) => Some(at),
            Self::Nothing | Self::ByMessage(_) => None,
        }
    }
}

impl Server {
    /// Whether it has said that it is ready, or need not.
    pub fn has_said_ready(&mut self) -> bool {
        let by_message = self.ipc.as_ref().is_some_and(|ipc| ipc.ready);
        let pid = self.pid;
        // Read in any case: nothing may be left over for the next turn for ever.
        let by_notify = self.notify.as_mut().is_none_or(|notify| notify.is_ready(pid));
        by_message || by_notify
    }
}

/// Whether a server got its stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It shall go on.
    Nothing,
    /// It got `--stop-message` then; the signal follows.
    ByMessage(Instant),
    /// It got it then.
    ToStop(Instant),
}
