//! A relay worker: its process, and the master's ends of what connects it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::context::Context;
use crate::access::WorkerLog;
use crate::config::ServiceConfig;
use crate::handoff::page::CountersPage;
use crate::handoff::{Carries, QueueTx};
use crate::launch::Launcher;
use crate::record::{Fd, Found, Kept};
use crate::relay::protocol::{self, Setup, Source, ToWorker};
use crate::sys::closer::Foreign;
use crate::sys::{process, sock};

/// A relay worker's process and the master's ends of what connects it.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub pid: u32,
    /// Its channel.
    pub channel: Foreign,
    /// Its queues, until the accept thread gets them.
    pub queues: Vec<Arc<QueueTx>>,
    /// Its counters.
    pub page: Arc<CountersPage>,
    /// Of the counters, for the program that takes our place.
    pub page_fd: OwnedFd,
    /// The worker's ends of page and queues, until they are sent.
    ends: Vec<OwnedFd>,
    /// What hand-offs to it carry beside sockets.
    pub carries: Carries,
    /// For `--worker-conns` and `--max-conns`, until it is sent.
    bell: Option<OwnedFd>,
    /// With `--access-log`: its memory file.
    pub log: Option<WorkerLog>,
    /// It gives connections back between two requests.
    pub gives_back: bool,
    /// Whether it said that it is set up.
    pub readiness: Readiness,
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

fn carries(service: &ServiceConfig) -> Carries {
    if service.proxy_from.is_some() { Carries::Translations } else { Carries::Sockets }
}

/// A relay worker that has its setup, in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct RelayRecord {
    pub pid: u32,
    channel: Fd,
    page: Fd,
    /// Its number at the access log.
    #[serde(default)]
    log: Option<u64>,
    translations: bool,
    gives_back: bool,
}

impl Relay {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, kept: &mut Kept) -> Result<RelayRecord, String> {
        let Self { pid, channel, queues, page: _, page_fd, ends, carries, bell, log, gives_back, readiness } = self;
        if *readiness != Readiness::Ready || !queues.is_empty() || !ends.is_empty() || bell.is_some() {
            return Err("a relay worker is being started".to_owned());
        }
        Ok(RelayRecord {
            pid: *pid,
            channel: kept.keep(channel),
            page: kept.keep(page_fd),
            log: log.as_ref().map(WorkerLog::number),
            translations: *carries == Carries::Translations,
            gives_back: *gives_back,
        })
    }

    /// # Errors
    /// When a descriptor is not there, and as epoll_ctl(2).
    pub fn adopt(record: RelayRecord, found: &mut Found, context: &Context) -> io::Result<Self> {
        let RelayRecord { pid, channel, page, log, translations, gives_back } = record;
        let (channel, page_fd) = (Foreign::socket(found.take(channel)?), found.take(page)?);
        context.registry.watch(crate::events::Source::Relay(pid), &channel)?;
        Ok(Self {
            pid,
            channel,
            queues: Vec::new(),
            page: Arc::new(CountersPage::attach(page_fd.as_fd())?),
            page_fd,
            ends: Vec::new(),
            carries: if translations { Carries::Translations } else { Carries::Sockets },
            bell: None,
            log: log.map(|number| context.access.worker_log(number)).transpose()?,
            gives_back,
            readiness: Readiness::Ready,
        })
    }

    /// Starts a relay worker with a queue for each of `listeners`; it waits for its setup.
    ///
    /// # Errors
    /// When the system refuses sockets, memory or a process.
    pub fn start(
        launcher: &Launcher,
        service: &ServiceConfig,
        slot: u32,
        listeners: usize,
        bell: Option<OwnedFd>,
        log: Option<WorkerLog>,
    ) -> io::Result<Self> {
        let (channel, theirs) = sock::seqpacket_pair()?;
        let (page, page_fd) = CountersPage::create()?;
        let mut queues = Vec::new();
        let mut ends = vec![page_fd.try_clone()?];
        let carries = carries(service);
        for _ in 0..listeners {
            let (queue, end) = QueueTx::to_relay(carries)?;
            queues.push(Arc::new(queue));
            ends.push(end);
        }
        let pid = launcher.relay(&service.name, slot, service.user.as_ref(), theirs)?;
        let page = Arc::new(page);
        let channel = Foreign::socket(channel);
        Ok(Self {
            pid,
            channel,
            queues,
            page,
            page_fd,
            ends,
            carries,
            bell,
            log,
            gives_back: false,
            readiness: Readiness::NotSetUp,
        })
    }

    pub fn has_bell(&self) -> bool {
        self.bell.is_some()
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
        let bell = self.bell.take();
        let mut fds: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
        if setup.source == Source::Listeners {
            fds.extend_from_slice(listeners);
        }
        fds.extend(bell.as_ref().map(AsFd::as_fd));
        fds.extend(self.log.iter().flat_map(WorkerLog::ends));
        fds.extend(table);
        self.readiness = Readiness::Awaited;
        protocol::send(self.channel.as_fd(), setup, &fds)
    }

    /// Sends an order. A worker whose channel is full or gone is on its way out anyhow.
    pub fn order(&self, order: ToWorker) {
        let _ = protocol::send(self.channel.as_fd(), &order, &[]);
    }

    /// Has it give connections back between two requests, or do so no more.
    pub fn give_back(&mut self, on: bool) {
        if self.gives_back != on {
            self.gives_back = on;
            self.order(ToWorker::GiveBack(on));
        }
    }

    /// Lets it finish what it has; one that was not set up has nothing to finish.
    pub fn drain(&self) {
        match self.readiness {
            Readiness::NotSetUp => process::kill_tree(self.pid),
            Readiness::Awaited | Readiness::Ready => self.order(ToWorker::Drain),
        }
    }
}
