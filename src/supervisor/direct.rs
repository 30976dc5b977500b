//! Direct delivery at the supervisor: servers with the preload library, and what connects each to the master.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::holders::Left;
use super::node::Ipc;
use super::retiring::DRAIN_LOOK;
use super::service::{Service, SlotProcesses, Tools};
use super::slot::Phase;
use super::stop::Step;
use super::worker::Server;
use crate::abi::attach::VARIABLE;
use crate::accept::orders::{ListenerId, WorkerId};
use crate::config::{Backend, Chosen, ServiceConfig, delivery};
use crate::direct::Preload;
use crate::direct::attach::{Secret, secret};
use crate::exit::{Exit, USAGE};
use crate::handoff::QueueTx;
use crate::handoff::page::CountersPage;
use crate::listener::Origin;
use crate::program::command::CommandLine;
use crate::program::elf;
use crate::sys::{process, sock};

/// The same where /proc has to be asked.
const DRAIN_LOOK_PROC: Duration = Duration::from_millis(100);
/// Between a receive and its count a connection is neither pending nor open. Where the counts cannot tell that there is no
/// such one (some were taken back, or a process died) a worker has to be seen empty for so long.
const SETTLED: Duration = Duration::from_millis(100);

/// Finds a place for the library of a service whose command seems fit for it. Where there is none and the choice is ours,
/// the service becomes one by relay.
///
/// # Errors
/// When direct delivery was asked for and cannot be, or when relaying cannot be either.
pub fn find_preload(config: &mut ServiceConfig, inherited: bool) -> Result<Option<Preload>, Exit> {
    let Backend::Direct(command) = &config.backend else { return Ok(None) };
    let preload = elf::examine(&command.program()?).and_then(|program| Preload::find(&program, config.user.as_ref()));
    match (preload, config.chosen) {
        (Ok(preload), _) => Ok(Some(preload)),
        (Err(reason), Chosen::AsAsked) => {
            Err(Exit::new(USAGE, format!("--via direct cannot be: {reason}; use --via relay")))
        }
        (Err(reason), Chosen::ByUs) => {
            delivery::can_relay(&config.listen, inherited || !config.listen.is_empty(), &reason)?;
            config.backend = Backend::Relayed(command.clone());
            config.via_reason = reason;
            Ok(None)
        }
    }
}

/// What connects one server (and the processes that it forks) to the master.
#[derive(Debug)]
pub struct DirectWorker {
    /// Which generation of which slot.
    pub id: WorkerId,
    /// Its proof.
    pub secret: Secret,
    /// Its counters.
    pub page: Arc<CountersPage>,
    /// For its processes.
    pub page_fd: OwnedFd,
    /// Its queues.
    pub queues: BTreeMap<ListenerId, Arc<QueueTx>>,
    /// Where it listens.
    pub listening: BTreeSet<ListenerId>,
    /// Which of its processes bound a listener.
    pub bound: BTreeMap<ListenerId, BTreeSet<u32>>,
    /// The addresses that they gave for a `--listen`, which is one listener for all of its port.
    pub(super) addresses: BTreeMap<ListenerId, BTreeSet<SocketAddr>>,
    /// The ports that it listens on.
    pub ports: BTreeSet<u16>,
    /// Ports, no `--listen`'s, that were left to the kernel.
    pub passed: BTreeSet<u16>,
    /// The process that attached first and lives: it gets the stop signal.
    pub pid: Option<u32>,
    /// Its processes that hold a lease.
    pub leased: BTreeSet<u32>,
    /// Those that got a stand-in from another process (exec, SCM_RIGHTS): they may be its successors.
    pub adopted: BTreeSet<u32>,
    /// What it attached with is gone, and what we started lives on: until then.
    pub abandoned: Option<Instant>,
    /// What its processes have closed.
    pub(super) left: Left,
    looked: Option<(Instant, bool)>,
    /// Since when nothing is pending or open.
    empty: Option<Instant>,
}

impl Service {
    /// Starts a server with the library in front of its libc.
    pub(super) fn start_direct(
        &mut self,
        command: &CommandLine,
        at: usize,
        tools: &Tools,
        now: Instant,
    ) -> Result<(), Exit> {
        let refused = |error: io::Error| Exit::os("cannot start a worker", &error);
        let (Some(attach), Some(preload)) = (&tools.attach, self.preloads.last()) else { return Ok(()) };
        let secret = secret().map_err(refused)?;
        let (page, page_fd) = CountersPage::create().map(|(page, fd)| (Arc::new(page), fd)).map_err(refused)?;
        let environment = vec![("LD_PRELOAD", preload.value()), (VARIABLE, attach.variable(&secret))];
        let server = self.start_server_with(command, Some(at), self.told_address(), environment, tools, now)?;
        let slot = &mut self.slots[at];
        slot.generation += 1;
        let id = WorkerId { service: self.id, slot: at as u32, generation: slot.generation };
        slot.server = Some(server);
        slot.counted.counts(&page);
        slot.direct = Some(DirectWorker {
            id,
            secret,
            page,
            page_fd,
            queues: BTreeMap::new(),
            listening: BTreeSet::new(),
            bound: BTreeMap::new(),
            addresses: BTreeMap::new(),
            ports: BTreeSet::new(),
            passed: BTreeSet::new(),
            pid: None,
            leased: BTreeSet::new(),
            adopted: BTreeSet::new(),
            abandoned: None,
            left: Left::default(),
            looked: None,
            empty: None,
        });
        Ok(())
    }

    /// What servers are told by PORT and HOST: the first `--listen`. A port that a server chose is not for us to tell its
    /// successor.
    fn told_address(&self) -> Option<SocketAddr> {
        let listener = self.listeners.iter().find(|listener| listener.origin == Origin::Flag)?;
        let bound = sock::local_addr(listener.socket.as_fd())?;
        // `::` would be refused by many servers that only know IPv4, and by none is 0.0.0.0.
        let ip = if bound.ip().is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { bound.ip() };
        Some(SocketAddr::new(ip, listener.served_port()?))
    }

    /// When a direct service has something to look at.
    pub(super) fn direct_deadline(&self) -> Option<Instant> {
        let stopping = self.stop.is_some();
        let draining = self.stop.as_ref().is_some_and(|stop| stop.step == Step::Drain);
        let looks = self.slots.iter().filter_map(|slot| {
            let direct = slot.direct.as_ref()?;
            let silent = match (slot.life.phase, &slot.server) {
                (Phase::Launching { since }, Some(server)) => {
                    server.complained.due(since, self.config.limits.listen_timeout)
                }
                _ => None,
            };
            let drain = draining.then(|| Instant::now() + DRAIN_LOOK);
            silent.into_iter().chain(drain).chain(direct.abandoned).chain(slot.holders_deadline(stopping)).min()
        });
        looks.min()
    }
}

impl SlotProcesses {
    /// Whether its worker, if it is direct, listens there.
    pub fn listens(&self, listener: ListenerId) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.listening.contains(&listener))
    }

    /// Whether a stopping server may be told: nothing is open any more. `handed`: nothing more will come.
    pub(super) fn drained(&mut self, handed: bool, now: Instant) -> bool {
        let Some(direct) = &mut self.direct else { return true };
        (handed || !direct.receives()) && direct.is_drained(self.server.as_ref(), now)
    }
}

impl DirectWorker {
    /// Its queue for a listener, made when it is asked for first.
    ///
    /// # Errors
    /// As socketpair(2) and bind(2).
    pub(super) fn queue(&mut self, id: ListenerId) -> io::Result<Arc<QueueTx>> {
        if let Some(queue) = self.queues.get(&id) {
            return Ok(queue.clone());
        }
        let queue = Arc::new(QueueTx::to_server(id)?);
        self.queues.insert(id, queue.clone());
        Ok(queue)
    }

    /// Whether one of its processes has a listener.
    pub(super) fn has(&self, id: ListenerId) -> bool {
        self.bound.contains_key(&id)
    }

    /// Whether the master hands it connections: not under none (no queues), nor when it has closed its listeners.
    fn receives(&self) -> bool {
        !self.listening.is_empty() && !self.queues.is_empty()
    }

    /// Whether a worker that is sent nothing more may get its stop signal: nothing is pending or open. One that has closed
    /// its listeners may still have connections.
    pub(super) fn is_drained(&mut self, server: Option<&Server>, now: Instant) -> bool {
        // Under none it goes on accepting until it is told; Node's own workers can be told to close their listeners first.
        let accepts_itself = !self.listening.is_empty() && self.queues.is_empty();
        let can_close = server.and_then(|server| server.ipc.as_ref()).is_some_and(Ipc::can_disconnect);
        if accepts_itself && !can_close {
            return true;
        }
        let pending = self.queues.values().any(|queue| queue.pending() > 0);
        // In this order: what was received is counted before it can be closed.
        let all_counted = self.page.all_received();
        if pending || self.has_open(server.map(|server| server.pid), now) {
            self.empty = None;
            return false;
        }
        let empty = *self.empty.get_or_insert(now);
        all_counted || now.duration_since(empty) >= SETTLED
    }

    /// The process that attached, where it is the only one.
    pub(super) fn only_process(&self) -> Option<u32> {
        self.pid.filter(|_| self.leased.len() == 1)
    }

    /// Whether connections are open: by its page, or, where that may not know of all, by /proc: a child that serves what its
    /// parent received and closed is seen by the page only when it closes its first one.
    fn has_open(&mut self, root: Option<u32>, now: Instant) -> bool {
        if !self.page.is_estimate() {
            if self.page.open_alive() > 0 {
                return true;
            }
            if self.ports.is_empty() || root.is_none_or(|root| process::tree(root).len() < 2) {
                return false;
            }
        }
        if let Some((at, open)) = self.looked
            && now.duration_since(at) < DRAIN_LOOK_PROC
        {
            return open;
        }
        let open = root.is_some_and(|root| crate::proc_net::has_connections(root, &self.ports));
        self.looked = Some((now, open));
        open
    }
}
