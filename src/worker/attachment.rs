//! Direct delivery at the supervisor: servers with the preload library, and what connects each to the master.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delivery::Library;
use super::ipc::Ipc;
use super::server::Server;
use super::sessions::Sessions;
use super::stand_ins::Left;
use super::uncounted::Uncounted;
use crate::accept::orders::ListenerId;
use crate::access::WorkerLog;
use crate::direct::attach::Secret;
use crate::handoff::page::CountersPage;
use crate::handoff::translations::TranslationsFile;
use crate::handoff::{Carries, QueueTx};
use crate::sys::process;

/// Between a receive and its count a connection is neither pending nor open. Where the counts cannot tell that there is no
/// such one (some were taken back, or a process died) a worker has to be seen empty for so long.
const SETTLED: Duration = Duration::from_millis(100);

/// What connects one server (and the processes that it forks) to the master.
#[derive(Debug)]
pub struct Attachment {
    /// Its proof.
    pub secret: Secret,
    /// Its counters.
    pub page: Arc<CountersPage>,
    /// For its processes.
    pub page_fd: OwnedFd,
    /// For its processes, with `--worker-conns` or `--max-conns`: the doorbell.
    pub bell: Option<OwnedFd>,
    /// With `--access-log`: where its processes record their connections.
    pub log: Option<WorkerLog>,
    /// With `--proxy-from`: where its processes record the addresses that PROXY headers named.
    pub translations: Option<TranslationsFile>,
    /// Its queues.
    pub queues: BTreeMap<ListenerId, Arc<QueueTx>>,
    /// Where it listens.
    pub listening: BTreeSet<ListenerId>,
    /// Which of its processes bound a listener.
    pub bound: BTreeMap<ListenerId, BTreeSet<u32>>,
    /// The addresses that they gave for a `--listen`, which is one listener for all of its port.
    pub addresses: BTreeMap<ListenerId, BTreeSet<SocketAddr>>,
    /// Where one of its sockets lacks SO_REUSEADDR.
    pub exclusive: BTreeSet<ListenerId>,
    /// The ports that it listens on.
    pub ports: BTreeSet<u16>,
    /// Ports, no `--listen`'s, that were left to the kernel.
    pub passed: BTreeSet<u16>,
    /// The process that attached first and lives: it gets the stop signal.
    pub pid: Option<u32>,
    /// Its processes that hold a lease.
    pub leased: BTreeSet<u32>,
    /// Sessions that its processes have begun (su -c does), by which they are known when what started them is gone.
    pub sessions: Sessions,
    /// Those that got a stand-in from another process (exec, SCM_RIGHTS): they may be its successors.
    pub adopted: BTreeSet<u32>,
    /// What it attached with is gone, and what we started lives on: until then.
    pub abandoned: Option<Instant>,
    /// What its processes have closed.
    pub left: Left,
    /// Its processes give connections back between two requests.
    pub moves: bool,
    pub(super) uncounted: Uncounted,
    /// Since when nothing is pending or open.
    pub(super) empty: Option<Instant>,
    /// Its processes may start others with it.
    pub(super) library: Arc<Library>,
}

impl Attachment {
    /// For a server that has just been started.
    pub fn new(secret: Secret, page: Arc<CountersPage>, page_fd: OwnedFd, library: Arc<Library>) -> Self {
        Self {
            secret,
            page,
            page_fd,
            bell: None,
            log: None,
            translations: None,
            queues: BTreeMap::new(),
            listening: BTreeSet::new(),
            bound: BTreeMap::new(),
            addresses: BTreeMap::new(),
            exclusive: BTreeSet::new(),
            ports: BTreeSet::new(),
            passed: BTreeSet::new(),
            pid: None,
            leased: BTreeSet::new(),
            sessions: Sessions::default(),
            adopted: BTreeSet::new(),
            abandoned: None,
            left: Left::default(),
            moves: false,
            uncounted: Uncounted::default(),
            empty: None,
            library,
        }
    }

    /// Whether what was started is a keeper, and the server its child.
    pub fn is_kept(&self) -> bool {
        self.library.is_keeper()
    }

    /// Its queue for a listener, made when it is asked for first.
    ///
    /// # Errors
    /// As socketpair(2) and bind(2).
    pub fn queue(&mut self, id: ListenerId) -> io::Result<Arc<QueueTx>> {
        if let Some(queue) = self.queues.get(&id) {
            return Ok(queue.clone());
        }
        let carries = if self.translations.is_some() { Carries::Translations } else { Carries::Sockets };
        let queue = Arc::new(QueueTx::to_server(id, carries)?);
        self.queues.insert(id, queue.clone());
        Ok(queue)
    }

    /// One of its processes holds a lease; `server`: the process that was started. Returns whether that is news.
    pub fn lease(&mut self, pid: u32, server: u32) -> bool {
        let session = process::session_and_name(pid).map(|(session, _)| session);
        // 0: its leader is in another pid namespace.
        if let Some(session) = session.filter(|session| ![0, server].contains(session)) {
            self.sessions.note(session);
        }
        self.leased.insert(pid)
    }

    /// Whether one of its processes has a listener.
    pub fn has(&self, id: ListenerId) -> bool {
        self.bound.contains_key(&id)
    }

    /// None of its processes has that listener any more.
    pub fn forget(&mut self, id: ListenerId) {
        self.bound.remove(&id);
        self.addresses.remove(&id);
        self.exclusive.remove(&id);
        self.queues.remove(&id);
    }

    /// Whether the master hands it connections: not under none (no queues), nor when it has closed its listeners.
    pub fn receives(&self) -> bool {
        !self.listening.is_empty() && !self.queues.is_empty()
    }

    /// Whether a worker that is sent nothing more may get its stop signal: nothing is pending or open. One that has closed
    /// its listeners may still have connections.
    pub fn is_drained(&mut self, server: &Server, now: Instant) -> bool {
        // Under none it accepts by itself. In a stop of all it goes on with that until it is told; Node's own workers can be told
        // to close their listeners first.
        let accepts_itself = !self.listening.is_empty() && self.queues.is_empty();
        let can_close = server.ipc.as_ref().is_some_and(Ipc::can_disconnect);
        if accepts_itself && !can_close && !self.page.is_leaving() {
            return true;
        }
        let pending = self.queues.values().any(|queue| queue.pending() > 0) || self.page.is_accepting();
        // In this order: what was received is counted before it can be closed.
        let all_counted =
            if self.page.is_leaving() && accepts_itself { self.page.has_all() } else { self.page.all_received() };
        let estimate = self.page.is_estimate();
        if pending || (!estimate && self.page.open_alive() > 0) {
            self.empty = None;
            self.uncounted.expire();
            return false;
        }
        // A child that serves what its parent received and closed is seen by the page only when it closes its first one.
        if (estimate || !self.ports.is_empty()) && self.uncounted.any(server.pid, &self.ports, estimate, now) {
            self.empty = None;
            return false;
        }
        let empty = *self.empty.get_or_insert(now);
        all_counted || now.duration_since(empty) >= SETTLED
    }

    /// The process that attached, where it is the only one.
    pub fn only_process(&self) -> Option<u32> {
        self.pid.filter(|_| self.leased.len() == 1)
    }
}
