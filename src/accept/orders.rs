//! What the control thread tells the accept thread, and the reverse. Keyed by ids, never by PIDs.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::policy::Policy;
use crate::handoff::QueueTx;
use crate::handoff::page::CountersPage;

/// A service: its place in the daemon's list.
pub type ServiceId = usize;
/// A listener: its place in its service's list and, above that, a count that tells it from others that had the place
/// before. What is late means nobody else.
pub type ListenerId = usize;

/// Places in a service's list.
pub const PLACES: usize = 1 << 12;

/// A listener's place.
pub const fn place(id: ListenerId) -> usize {
    id % PLACES
}

/// One worker: a generation of a slot of a service. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    /// The service.
    pub service: ServiceId,
    /// The slot in the service.
    pub slot: u32,
    /// Counts the workers that the slot has had.
    pub generation: u64,
}

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.slot, self.generation)
    }
}

/// Counters of a slot over all its workers, shared with the control thread.
#[derive(Debug, Default)]
pub struct SlotStats {
    /// Connections handed over and not taken back.
    pub connections: AtomicU64,
    /// Connections taken back for others.
    pub rescued: AtomicU64,
}

/// Counters of a service, shared with the control thread.
#[derive(Debug, Default)]
pub struct ServiceStats {
    /// Accepted connections that wait for a worker (a gauge).
    pub held: AtomicU64,
    /// Connections reset because no worker took them in time.
    pub shed: AtomicU64,
    /// Connections accepted by the master.
    pub accepted: AtomicU64,
}

/// Whether the accept thread asks for clients' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// No: nobody looks at them.
    Ignored,
    /// Yes: the policy or the server wants them.
    Wanted,
}

/// Who takes connections out of the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedBy {
    /// The accept thread.
    Master,
    /// The workers; the accept thread while there is none.
    Workers,
    /// The servers, always: connections wait in the backlog for one to come back.
    Servers,
}

/// How a service's connections are dealt with.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Who gets the next connection.
    pub policy: Policy,
    /// Who accepts.
    pub by: AcceptedBy,
    /// The most hand-offs that may be pending for one worker.
    pub cap: u32,
    /// Whether clients' addresses travel with their sockets.
    pub addresses: Addresses,
    /// When a worker that does not receive counts as stalled.
    pub stall_timeout: Duration,
    /// How long a client waits for a worker.
    pub queue_timeout: Duration,
    /// Under `ip-hash`: how long a client waits for the worker that its address belongs to before it goes to another.
    pub hash_wait: Duration,
    /// When a worker that receives nothing while hand-offs wait counts as hung.
    pub hang_timeout: Option<Duration>,
    /// Clients held in the master while no worker is alive; more wait in the backlog.
    pub max_held: usize,
}

impl Rules {
    /// How long a hand-off may lie in a worker's queue before the queue goes to other workers.
    pub fn rescue_after(&self) -> Duration {
        match self.policy {
            Policy::IpHash => self.stall_timeout.max(self.hash_wait),
            Policy::Rr | Policy::LeastConn | Policy::None => self.stall_timeout,
        }
    }
}

/// Whose queue a rescue job empties.
#[derive(Debug, Clone)]
pub struct RescueKey {
    /// The worker.
    pub worker: WorkerId,
    /// The listener that the queue belongs to.
    pub listener: ListenerId,
    /// The counters of the worker's slot.
    pub stats: Arc<SlotStats>,
}

/// From the control thread to the accept thread.
#[derive(Debug)]
pub enum Order {
    /// A service begins; its id is the number of services before it.
    Service {
        /// Its rules.
        rules: Rules,
        /// Its counters.
        stats: Arc<ServiceStats>,
    },
    /// Other rules for a service; who accepts stays as it is.
    Rules(ServiceId, Rules),
    /// A listener of a service listens now.
    Listener {
        /// The service.
        service: ServiceId,
        /// Its number.
        id: ListenerId,
        /// The listening socket, non-blocking.
        socket: Arc<OwnedFd>,
    },
    /// A worker may receive connections.
    Online {
        /// Who.
        worker: WorkerId,
        /// Its queues, by listener. A server may listen on more later.
        queues: Vec<(ListenerId, Arc<QueueTx>)>,
        /// Its counters.
        page: Arc<CountersPage>,
        /// Its slot's counters.
        stats: Arc<SlotStats>,
    },
    /// A worker that is online listens on one more listener.
    Listens {
        /// Who.
        worker: WorkerId,
        /// On what.
        listener: ListenerId,
        /// Its queue for it.
        queue: Arc<QueueTx>,
    },
    /// A worker that is online has closed a listener: its queue goes to others.
    Unlistens {
        /// Who.
        worker: WorkerId,
        /// What.
        listener: ListenerId,
    },
    /// A service is given up: nobody accepts on a listener.
    StopAccepting {
        /// The service.
        service: ServiceId,
        /// The listener.
        id: ListenerId,
    },
    /// All workers of a service are given up: clients that wait for one are reset.
    Refuse(ServiceId),
    /// A listener leaves the service: what lies in its backlog is taken, then it is closed.
    CloseListener {
        /// The service.
        service: ServiceId,
        /// The listener.
        id: ListenerId,
    },
    /// A listener that a server made is gone: who waits there is reset, as by the server's own close(2). Its place is
    /// another's from now on.
    Forget {
        /// The service.
        service: ServiceId,
        /// The listener.
        id: ListenerId,
    },
    /// Stop giving a live worker connections and take back what it has not received.
    Drain(WorkerId),
    /// A worker died: take back what it had not received.
    WorkerDied(WorkerId),
    /// What the rescue thread took back from one queue of a live worker.
    Rescued {
        /// Whose queue.
        from: RescueKey,
        /// The sockets.
        sockets: Vec<OwnedFd>,
    },
    /// Accept what lies in the backlog, close the service's listeners, hand over what is held, retire all workers.
    Stop(ServiceId),
    /// Give up what is still held after [`Order::Stop`].
    StopNow(ServiceId),
    /// As [`Order::Stop`], for a service that may be started again: its listeners stay bound and refuse clients.
    Pause(ServiceId),
    /// Give up what is still held after [`Order::Pause`].
    PauseNow(ServiceId),
}

/// From the accept thread to the control thread.
#[derive(Debug)]
pub enum Report {
    /// A worker did not receive for the stall timeout; its queue goes to others.
    Stalled(WorkerId),
    /// A worker has received nothing for the hang timeout while hand-offs waited.
    Hung(WorkerId),
    /// After [`Order::Drain`]: nothing more is sent to it.
    Drained(WorkerId),
    /// A worker was handed connections and has never received one.
    NeverReceived(WorkerId),
    /// Hand-offs were taken back from a worker.
    Rescued {
        /// From whom.
        worker: WorkerId,
        /// How many.
        count: usize,
    },
    /// Clients were reset because no worker took them within the queue timeout.
    Shed {
        /// The service.
        service: ServiceId,
        /// How many since the last such report.
        count: usize,
    },
    /// accept(2) fails (`Some`) or works again (`None`).
    AcceptTrouble {
        /// The service.
        service: ServiceId,
        /// The listener.
        listener: ListenerId,
        /// The errno.
        errno: Option<i32>,
    },
    /// After [`Order::Forget`]: its socket is closed.
    Forgotten {
        /// The service.
        service: ServiceId,
        /// The listener.
        listener: ListenerId,
    },
    /// All listeners of a service are closed and nothing is held: workers see the end of their queues.
    Stopped(ServiceId),
    /// The same after [`Order::Pause`].
    Paused(ServiceId),
}

impl Report {
    /// The service that it is about.
    pub fn service(&self) -> ServiceId {
        match self {
            Self::Stalled(worker) | Self::Hung(worker) | Self::Drained(worker) | Self::NeverReceived(worker) => {
                worker.service
            }
            Self::Rescued { worker, .. } => worker.service,
            Self::Shed { service, .. }
            | Self::AcceptTrouble { service, .. }
            | Self::Forgotten { service, .. }
            | Self::Stopped(service)
            | Self::Paused(service) => *service,
        }
    }
}
