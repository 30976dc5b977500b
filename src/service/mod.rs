//! One service at run time: its slots' processes, started, made ready, and brought online.

mod attach;
pub mod awaited;
pub mod binding;
pub mod direct;
mod ending;
mod futile;
mod holders;
pub mod lifecycle;
mod memory;
mod node;
mod node_sockets;
mod orphans;
pub mod pausing;
mod readiness;
mod reconfigure;
pub mod reload;
mod reports;
mod retiring;
mod rollout;
mod rules;
pub mod shared;
mod shutdown;
mod silence;
mod starting;
mod step;
pub mod unused;
pub mod upstreams;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use self::awaited::Awaited;
use self::lifecycle::{Backoff, Phase, Slot, Wanted};
use self::node_sockets::Shared;
use self::pausing::Paused;
use self::reload::{Progress, Reloading};
use self::retiring::Retiring;
use self::rules::{cap, resolved, rules};
use self::shared::SharedServer;
use self::shutdown::Stop;
use self::unused::Opened;
use self::upstreams::Upstreams;
use crate::accept::Orders;
use crate::accept::orders::{Order, ServiceId, ServiceStats, SlotStats};
use crate::config::merge::Settings;
use crate::config::{Backend, ServiceConfig};
use crate::direct::Preload;
use crate::direct::attach::AttachServer;
use crate::events::Registry;
use crate::handoff::QueueTx;
use crate::launch::Launcher;
use crate::listener::Listener;
use crate::relay::intake;
use crate::relay::protocol::{FromWorker, Resolved};
use crate::worker::direct::DirectWorker;
use crate::worker::exit::LastExit;
use crate::worker::notify::Notify;
use crate::worker::probe::PrivatePorts;
use crate::worker::relay::{Readiness, Relay};
use crate::worker::server::Server;
use crate::worker::totals::Counted;

/// What services share.
#[derive(Debug)]
pub struct Tools {
    /// Starts processes.
    pub launcher: Launcher,
    /// The accept thread.
    pub orders: Orders,
    /// Where servers' preload libraries ask, when a service is direct.
    pub attach: Option<AttachServer>,
    /// Addresses for servers.
    pub ports: PrivatePorts,
    /// The file limit of relay workers.
    pub nofile: u64,
    /// Adds to what the control thread waits on.
    pub registry: Registry,
}

/// A slot with its processes.
#[derive(Debug)]
pub struct SlotProcesses {
    /// Its life.
    pub life: Slot,
    /// Workers that the slot has had.
    pub generation: u64,
    /// The relay worker in charge.
    pub relay: Option<Relay>,
    /// The server behind it, when every slot has its own.
    pub server: Option<Server>,
    /// Where the last server accepted.
    pub proven: Option<SocketAddr>,
    /// What connects the server directly.
    pub direct: Option<DirectWorker>,
    /// Workers that make room, or have made room, for a successor.
    pub retiring: Vec<Retiring>,
    /// The next worker starts only when those on their way out are gone.
    pub stop_first: bool,
    /// Why its last worker was replaced.
    pub replaced_for: Option<String>,
    /// The port, no `--listen`'s, that its servers insist on, where that is why it was given up.
    pub insisted: Option<u16>,
    /// Why its worker is being killed.
    pub doomed: Option<String>,
    /// Why the successor of a reload failed, once it has.
    pub reload_failed: Option<(String, Option<u32>)>,
    /// The server that died last.
    pub failed_pid: Option<u32>,
    /// Why it is about to.
    pub reload_failure: Option<String>,
    /// Relay workers that finish what they have.
    pub leaving: Vec<Relay>,
    /// Its counters.
    pub stats: Arc<SlotStats>,
    /// For `ls`: the queues of the worker that is online.
    pub queues: Vec<std::sync::Weak<QueueTx>>,
    /// What its workers counted.
    pub counted: Counted,
    /// How the last process ended.
    pub last_exit: Option<LastExit>,
    /// Why the slot is not online.
    pub reason: Option<String>,
    /// When a stall was last written to the log.
    pub stall_logged: Option<Instant>,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Which.
    pub id: ServiceId,
    /// What it shall be.
    pub config: ServiceConfig,
    /// The same as it was said, and where.
    pub settings: Settings,
    /// Whether it is still in the configuration.
    pub place: InConfig,
    /// The library for its servers, where they take one: the last is for new ones.
    pub preloads: Vec<Preload>,
    /// Its listening sockets.
    pub listeners: Vec<Listener>,
    /// Those of them that listen: each begins when a worker that serves it is there.
    pub heard: std::collections::BTreeSet<usize>,
    /// Addresses that servers asked for and that could not be had: the log says once who has them.
    pub refused: std::collections::BTreeMap<std::net::SocketAddr, std::thread::JoinHandle<()>>,
    /// Its slots.
    pub slots: Vec<SlotProcesses>,
    /// The server that all slots share.
    pub shared: Option<SharedServer>,
    /// Counters of the accept thread.
    pub stats: Arc<ServiceStats>,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// A reload under way.
    pub reload: Option<Reloading>,
    /// Whether somebody stopped it.
    pub paused: Paused,
    /// Somebody waits until all workers are online.
    pub awaited: Option<Awaited>,
    /// When it was stopped, until all that was accepted by then has a worker.
    pub emptying: Option<Instant>,
    /// When memory was last looked at.
    pub memory_looked: Option<Instant>,
    /// What became of what was asked for.
    pub said: VecDeque<Progress>,
    /// Listeners that its servers make.
    pub opened: Opened,
    /// What its workers in Node share.
    pub(super) node: Shared,
    /// Its stop, once begun.
    pub stop: Option<Stop>,
    /// The accept thread has handed over all that it will.
    pub handed: bool,
    /// How many connections a relay worker may have pending, in all, and how many pipes.
    pub(super) cap: usize,
    pub(super) capacity: usize,
    pub(super) pipes: usize,
    pub(super) resolved: Vec<Resolved>,
    /// What is known of its upstreams, where it has any.
    pub upstreams: Option<Upstreams>,
}

/// Whether a service is still in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InConfig {
    /// Yes.
    Yes,
    /// No: it ends.
    No,
}

impl Service {
    /// Announces the service to the accept thread and resolves its upstreams.
    pub fn new(
        id: ServiceId,
        (config, settings): (ServiceConfig, Settings),
        listeners: Vec<Listener>,
        preloads: Vec<Preload>,
        tools: &Tools,
        now: Instant,
    ) -> Self {
        let slots = (0..config.instances).map(|_| SlotProcesses::new(now)).collect();
        let resolved = resolved(&config);
        let upstreams = Upstreams::of(&config.backend);
        let shared = match &config.backend {
            Backend::Upstreams(_, Some(_)) => Some(SharedServer::new(now)),
            _ => None,
        };
        let (capacity, pipes) = intake::capacity(tools.nofile, listeners.len());
        let stats = Arc::new(ServiceStats::default());
        let cap = cap(&config, capacity);
        tools.orders.send(Order::Service { rules: rules(&config, cap, tools.nofile), stats: stats.clone() });
        Self {
            id,
            config,
            settings,
            place: InConfig::Yes,
            preloads,
            listeners,
            heard: Default::default(),
            refused: Default::default(),
            slots,
            shared,
            stats,
            reloads: 0,
            reload: None,
            paused: Paused::No,
            awaited: None,
            emptying: None,
            memory_looked: None,
            said: VecDeque::new(),
            opened: Opened::default(),
            node: Shared::default(),
            stop: None,
            handed: false,
            cap,
            capacity,
            pipes,
            resolved,
            upstreams,
        }
    }

    /// Slots with a worker online.
    pub fn online(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_online()).count()
    }

    /// When a slot is started again, and when it is given up.
    pub fn backoff(&self) -> Backoff {
        let limits = &self.config.limits;
        let (first, longest) = limits.backoff;
        Backoff { first, longest, min_uptime: limits.min_uptime, most: limits.max_restarts }
    }

    /// What the service shall be now.
    pub fn wanted(&self) -> Wanted {
        if self.stop.is_some() || self.paused != Paused::No { Wanted::Stopped } else { Wanted::Running }
    }

    /// The lives of all slots.
    pub fn lives(&self) -> Vec<Slot> {
        let life = |slot: &SlotProcesses| {
            let mut life = slot.life;
            if slot.stop_first && !slot.retiring.is_empty() && matches!(life.phase, Phase::Waiting { .. }) {
                // Their end is an event; the clock changes nothing.
                life.phase = Phase::Stopping;
            }
            life
        };
        self.slots.iter().map(life).collect()
    }

    /// What a relay worker says.
    pub fn told(&mut self, at: usize, message: FromWorker, now: Instant) {
        let name = &self.config.name;
        match message {
            FromWorker::Ready => {
                if let Some(relay) = &mut self.slots[at].relay {
                    relay.readiness = Readiness::Ready;
                }
                // It may have a name without an address.
                self.look_at_upstreams(now);
            }
            FromWorker::UpstreamDown { .. } | FromWorker::UpstreamUp { .. } if self.upstreams.is_some() => {
                self.look_at_upstreams(now);
            }
            FromWorker::UpstreamDown { address, error } => {
                warn!(service = %name, slot = at, upstream = %address, "upstream down: {error}");
            }
            FromWorker::UpstreamUp { address } => {
                info!(service = %name, slot = at, upstream = %address, "upstream up again");
            }
            FromWorker::Full(true) => {
                warn!(service = %name, slot = at, "worker is at its file limit and takes no connections until some end");
            }
            FromWorker::Full(false) => info!(service = %name, slot = at, "worker takes connections again"),
        }
    }

    /// When something is due by the clock alone.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let servers = self.slots.iter().filter_map(|slot| slot.server.as_ref());
        let servers = servers.chain(self.shared.iter().filter_map(|shared| shared.server.as_ref()));
        let unread = |server: &&Server| server.notify.as_ref().is_some_and(Notify::has_more);
        let unread = servers.clone().any(|server| unread(&server)).then_some(now);
        let probes = servers.filter_map(|server| Some(server.probe.as_ref()?.due()));
        let mut lives = self.lives();
        lives.extend(self.shared.iter().map(|shared| shared.life));
        let starts = lifecycle::deadline(self.wanted(), &lives);
        let stop = self.stop.as_ref().and_then(Stop::deadline);
        let others = self.portless_deadline().into_iter().chain(self.memory_deadline()).chain(self.message_deadline());
        let others = others.chain(self.probe_deadline()).chain(self.reload_deadline()).chain(self.awaited_deadline());
        probes
            .chain(starts)
            .chain(stop)
            .chain(self.direct_deadline())
            .chain(self.retiring_deadline(now))
            .chain(self.opened.deadline())
            .chain(self.query_deadline(now))
            .chain(others)
            .chain(unread)
            .chain(self.pause_deadline())
            .chain(self.shared_deadline())
            .min()
    }
}

impl SlotProcesses {
    /// An empty one, to be filled at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            life: Slot::new(now),
            generation: 0,
            relay: None,
            server: None,
            proven: None,
            direct: None,
            retiring: Vec::new(),
            stop_first: false,
            replaced_for: None,
            insisted: None,
            doomed: None,
            reload_failed: None,
            failed_pid: None,
            reload_failure: None,
            leaving: Vec::new(),
            stats: Arc::default(),
            queues: Vec::new(),
            counted: Counted::default(),
            last_exit: None,
            reason: None,
            stall_logged: None,
        }
    }
}
