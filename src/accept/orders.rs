//! Messages between the control thread and the accept thread. Workers are known by ids here, never by pids.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::hash::Key;
use super::policy::Policy;
use super::record::{Accepts, StandStill};
use super::stage::StageRules;
use super::stage::refusals::{Refusal, StageStats};
use super::waits::{Shed, ShedReason, Waits};
use crate::affinity::HashOn;
use crate::affinity::sessions::Change;
use crate::handoff::page::CountersPage;
use crate::handoff::{Client, QueueTx, TakenBack};
use crate::sys::closer::Foreign;

/// Index of a service in the daemon's list; never used again for another.
pub type ServiceId = usize;
/// A listener's place in its service's list plus [`PLACES`] times the number of earlier owners of that place. A message that
/// comes late for one of them finds no such id.
pub type ListenerId = usize;

/// The most listeners of one service.
pub const PLACES: usize = 1 << 12;

/// A listener's place.
pub const fn place(id: ListenerId) -> usize {
    id % PLACES
}

/// One worker: a generation of a slot of a service. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    pub service: ServiceId,
    pub slot: u32,
    /// Counts the workers that the slot has had.
    pub generation: u64,
}

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.slot, self.generation)
    }
}

/// Counters of a slot over all its workers. The accept thread writes them unless it says otherwise.
#[derive(Debug, Default)]
pub struct SlotStats {
    /// Connections handed over and not taken back.
    pub connections: AtomicU64,
    /// Connections taken back for other workers.
    pub rescued: AtomicU64,
    /// Connections that leaving workers gave back between two requests, and others get.
    pub moved: AtomicU64,
    /// Those that the control thread has passed on, and the accept thread has not seen yet (a gauge).
    pub moving: AtomicU64,
}

/// Counters of a service. The accept thread writes them, the control thread reads them.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Accepted connections that wait for a worker (a gauge).
    pub held: AtomicU64,
    /// When the one that has waited longest came: nanoseconds of the monotonic clock; 0: nobody waits.
    pub oldest: AtomicU64,
    /// How long those waited that a worker got.
    pub waits: Waits,
    /// Connections that no worker got.
    pub shed: Shed,
    /// Connections accepted by the master.
    pub accepted: AtomicU64,
    /// Times that `--accept-rate` made clients wait in the backlog.
    pub paced: AtomicU64,
    /// The [`LimitReached`] because of which no client is accepted now; 0: none (a gauge).
    pub limit: AtomicU64,
    /// Connections of which something has to be known before a worker gets them.
    pub stage: StageStats,
}

/// A limit for which clients are left in the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitReached {
    AcceptRate = 1,
    MaxConns = 2,
}

impl ServiceStats {
    /// The option because of which no client is accepted now.
    pub fn limit_reached(&self) -> Option<&'static str> {
        match self.limit.load(Relaxed) {
            at if at == LimitReached::AcceptRate as u64 => Some("accept-rate"),
            at if at == LimitReached::MaxConns as u64 => Some("max-conns"),
            _ => None,
        }
    }
}

/// Whether the accept thread has accept(2) return clients' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    Ignored,
    /// The policy hashes them, or the server gets them.
    Wanted,
}

/// The process that takes connections out of the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedBy {
    Master,
    /// The workers; the master while there is none.
    Workers,
    /// The servers, always: connections wait in the backlog until one is back.
    Servers,
}

/// How a service's connections are distributed.
#[derive(Debug, Clone)]
pub struct Rules {
    pub policy: Policy,
    /// What a policy that hashes goes by; `None`: it does not hash.
    pub hash_on: Option<HashOn>,
    pub by: AcceptedBy,
    /// The most hand-offs that may be pending for one worker.
    pub cap: u32,
    pub addresses: Addresses,
    /// Age of the oldest pending hand-off from which a worker counts as stalled.
    pub stall_timeout: Duration,
    /// How long a client waits for a worker before it is reset.
    pub queue_timeout: Duration,
    /// See [`Rules::patience`].
    pub hash_wait: Duration,
    /// How long a worker may receive nothing while hand-offs wait before it counts as hung.
    pub hang_timeout: Option<Duration>,
    /// The most connections of a worker, pending or open; more wait in the line.
    pub worker_conns: Option<u32>,
    /// The most clients that wait for room in a worker; more are reset.
    pub max_queue: Option<usize>,
    /// Whether a client that has sent something and then a FIN counts as one that left.
    pub abort_on_close: bool,
    /// How long the share of a new worker grows to that of a warm one; 0: not at all.
    pub slow_start: Duration,
    /// Connections accepted per second, at most.
    pub accept_rate: Option<u32>,
    /// The most connections of the service, open, pending or waiting in the master; more wait in the backlog.
    pub max_conns: Option<u64>,
    /// The most clients held in the master; more wait in the backlog.
    pub max_held: usize,
    /// The most that all services together hold.
    pub max_held_by_all: usize,
    /// What has to be known of connections before a worker gets them; `None`: nothing.
    pub stage: Option<Arc<StageRules>>,
}

impl Rules {
    /// How long a worker that comes now is in its slow start: where it is hashed clients belong to workers, and under `none` they
    /// accept by themselves.
    pub fn slow_start(&self) -> Duration {
        match self.policy {
            Policy::Rr | Policy::LeastConn => self.slow_start,
            Policy::IpHash | Policy::Hash | Policy::None => Duration::ZERO,
        }
    }

    /// What a client is hashed by; `None` also where only its worker decides.
    pub fn key(&self, client: &Client) -> Option<Key> {
        match self.hash_on.as_ref()? {
            HashOn::Source => client.address.ip().map(Key::Address),
            HashOn::Cookie(_) | HashOn::Query(_) | HashOn::Header(_) => client.key.map(Key::Digest),
            HashOn::SocketIo => None,
        }
    }

    /// Whether connections belong to workers that alone can serve them.
    pub fn has_sessions(&self) -> bool {
        self.hash_on == Some(HashOn::SocketIo)
    }

    /// How long a client waits for its own worker before another may take it: elsewhere its session is unknown.
    pub fn patience(&self) -> Duration {
        if self.has_sessions() { self.queue_timeout } else { self.hash_wait }
    }

    /// Age of a pending hand-off from which the worker's queue is emptied for other workers.
    pub fn rescue_after(&self) -> Duration {
        match self.policy {
            // Those with a session come back to wait in the master, and hold up nobody without one.
            Policy::Hash if self.has_sessions() => self.stall_timeout,
            Policy::IpHash | Policy::Hash => self.stall_timeout.max(self.hash_wait),
            Policy::Rr | Policy::LeastConn | Policy::None => self.stall_timeout,
        }
    }
}

/// The queue that a rescue job empties.
#[derive(Debug, Clone)]
pub struct RescueKey {
    pub worker: WorkerId,
    pub listener: ListenerId,
    pub stats: Arc<SlotStats>,
}

/// From the control thread to the accept thread.
#[derive(Debug)]
pub enum Order {
    /// A new service; its id is the number of services before it.
    Service { rules: Rules, stats: Arc<ServiceStats> },
    /// New rules for a service; `by` stays what it was.
    Rules(ServiceId, Rules),
    /// A socket that now listens, non-blocking.
    Listener { service: ServiceId, id: ListenerId, socket: Arc<OwnedFd> },
    /// A worker may receive connections. A server may listen on more listeners later.
    Online { worker: WorkerId, queues: Vec<(ListenerId, Arc<QueueTx>)>, page: Arc<CountersPage>, stats: Arc<SlotStats> },
    /// A worker that is online listens on one more listener.
    Listens { worker: WorkerId, listener: ListenerId, queue: Arc<QueueTx> },
    /// A worker that is online has closed a listener: its queue goes to others.
    Unlistens { worker: WorkerId, listener: ListenerId },
    /// All slots of a service are given up: stop accepting on a listener.
    StopAccepting { service: ServiceId, id: ListenerId },
    /// All slots of a service are given up: reset the clients that wait for a worker.
    Refuse(ServiceId),
    /// A listener left the configuration: it is closed once its backlog has been taken.
    CloseListener { service: ServiceId, id: ListenerId },
    /// A listener made by a server is gone: its waiting clients are reset, as by the server's own close(2), and its place
    /// is free.
    Forget { service: ServiceId, id: ListenerId },
    /// Sets the weight of a slot, 0 to 256, which its next workers inherit. With 0 it gets nothing new and keeps what is
    /// in its queues; with all slots at 0 clients are held.
    Weight { service: ServiceId, slot: u32, weight: u16 },
    /// A worker has begun or ended sessions.
    Sessions { worker: WorkerId, changes: Vec<Change> },
    /// Report when a worker has been given this many connections.
    CountServed { worker: WorkerId, limit: u64 },
    /// Stop giving a live worker connections and take back those it has not received.
    Drain(WorkerId),
    /// Take back the connections that a worker had not received when it died.
    WorkerDied(WorkerId),
    /// A connection that a leaving worker gave back between two requests, and what a PROXY header said of its client.
    Moved {
        service: ServiceId,
        /// Of the worker that had it.
        slot: u32,
        listener: ListenerId,
        socket: Foreign,
        client: Option<Client>,
        /// Of that slot.
        stats: Arc<SlotStats>,
    },
    /// From the rescue thread: the sockets it took back from one queue of a live worker.
    Rescued { from: RescueKey, sockets: Vec<TakenBack> },
    /// Take the backlog, close the service's listeners, hand over held connections, retire all workers.
    Stop(ServiceId),
    /// Reset the connections still held after [`Order::Stop`].
    StopNow(ServiceId),
    /// As [`Order::Stop`], for a service that may be started again: its listeners stay bound and refuse clients.
    Pause(ServiceId),
    /// Reset the connections still held after [`Order::Pause`].
    PauseNow(ServiceId),
    /// Tell what there is, and wait: another program is about to take this one's place.
    StandStill(StandStill),
    /// Go on with what the program before had; its workers are online by then.
    TakeOver {
        service: ServiceId,
        accepts: Box<Accepts<OwnedFd>>,
        listeners: Vec<(ListenerId, Arc<OwnedFd>)>,
        /// Workers that get nothing new, with their counters.
        leaving: Vec<(WorkerId, Arc<CountersPage>)>,
    },
}

/// From the accept thread to the control thread.
#[derive(Debug)]
pub enum Report {
    /// A worker did not receive for the stall timeout; its queue goes to others.
    Stalled(WorkerId),
    /// A worker has received nothing for the hang timeout while hand-offs waited.
    Hung(WorkerId),
    /// After [`Order::Drain`]: nothing more is sent to this worker.
    Drained(WorkerId),
    /// After [`Order::CountServed`]: a worker has been given that many.
    Served(WorkerId),
    /// A worker was handed connections and has never received one.
    NeverReceived(WorkerId),
    /// A worker's connections are limited, and what it has open is an estimate.
    Inexact(WorkerId),
    /// `count` hand-offs were taken back from a worker.
    Rescued { worker: WorkerId, count: usize },
    /// `count` clients got no worker.
    Shed { service: ServiceId, count: usize, reason: ShedReason },
    /// `count` connections were reset before a worker was chosen.
    Refused { service: ServiceId, count: usize, reason: Refusal },
    /// accept(2) fails with this errno, or works again (`None`).
    AcceptTrouble { service: ServiceId, listener: ListenerId, errno: Option<i32> },
    /// After [`Order::Forget`]: the accept thread's copy of the socket is closed.
    Forgotten { service: ServiceId, listener: ListenerId },
    /// `max_conns` does not hold: a worker's number of open connections is an estimate.
    Uncountable(ServiceId),
    /// `source_conns` does not hold: the kernel does not say which connections are open.
    SourcesUnknown(ServiceId),
    /// It says so again.
    SourcesKnown(ServiceId),
    /// All listeners of a service are closed and nothing is held: workers see the end of their queues.
    Stopped(ServiceId),
    /// The same after [`Order::Pause`].
    Paused(ServiceId),
}

impl Order {
    /// How many changes it makes, about; at least 1.
    pub fn cost(&self) -> usize {
        match self {
            Self::Sessions { changes, .. } => changes.len().max(1),
            Self::Rescued { sockets, .. } => sockets.len().max(1),
            _ => 1,
        }
    }
}

impl Report {
    pub fn service(&self) -> ServiceId {
        match self {
            Self::Inexact(worker)
            | Self::Stalled(worker)
            | Self::Hung(worker)
            | Self::Drained(worker)
            | Self::NeverReceived(worker)
            | Self::Served(worker) => worker.service,
            Self::Rescued { worker, .. } => worker.service,
            Self::Shed { service, .. }
            | Self::AcceptTrouble { service, .. }
            | Self::Refused { service, .. }
            | Self::Forgotten { service, .. }
            | Self::Uncountable(service)
            | Self::SourcesUnknown(service)
            | Self::SourcesKnown(service)
            | Self::Stopped(service)
            | Self::Paused(service) => *service,
        }
    }
}
