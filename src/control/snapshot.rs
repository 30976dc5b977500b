//! The daemon's state as `ls --json` shows it. The field names are a contract.

use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::accept::policy::Policy;
use crate::config::Backend;
use crate::handoff::page::Counts;
use crate::listener::{Listener, Origin};
use crate::supervisor::binding::ids;
use crate::supervisor::pausing::Paused;
use crate::supervisor::service::{Service, SlotProcesses};
use crate::supervisor::slot::Phase;
use crate::supervisor::upstreams::{State, Upstreams};
use crate::sys::clock::monotonic_ns;
use crate::sys::process::rss_bytes;

/// One daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// Version of the program.
    pub version: String,
    /// The master's process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Whether it got a stop signal.
    #[serde(default)]
    pub stopping: bool,
    /// Its services.
    pub services: Vec<ServiceState>,
}

/// One service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its name.
    pub name: String,
    /// The command, if it has one.
    pub command: Option<String>,
    /// The policy.
    pub policy: String,
    /// The delivery.
    pub via: String,
    /// Why this delivery.
    pub via_reason: String,
    /// Listeners.
    pub listen: Vec<ListenState>,
    /// Clients that wait in the master for a worker.
    pub held: u64,
    /// Clients reset because no worker took them in time.
    pub shed: u64,
    /// Reloads that succeeded.
    #[serde(default)]
    pub reloads: u64,
    /// Clients of relay workers that have no upstream for them now.
    #[serde(default)]
    pub waiting_for_upstream: u64,
    /// Whether somebody stopped it: `start` starts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Slots.
    pub slots: Vec<SlotState>,
    /// Upstreams, in the configuration's order.
    #[serde(default)]
    pub upstreams: Vec<UpstreamState>,
}

/// One upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamState {
    /// Its address, as configured. A name may stand for several addresses.
    pub addr: String,
    /// "up" or "down". One that was never tried counts as up; a name is down when all its addresses are.
    pub state: String,
    /// Connections open or being opened.
    pub open: u64,
    /// Connections established since the daemon's start.
    pub connections: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Attempts to connect that failed.
    pub errors: u64,
    /// Why the last of them did.
    pub last_error: Option<String>,
    /// How long ago that was, in seconds.
    pub last_error_s: Option<u64>,
}

impl UpstreamState {
    /// Whether clients can be sent there.
    pub fn is_up(&self) -> bool {
        self.state == "up"
    }
}

impl Daemon {
    /// Why it should get no traffic; empty when every service has a worker online.
    pub fn sick(&self) -> Vec<String> {
        if self.stopping {
            return vec!["the daemon is stopping".to_owned()];
        }
        self.services.iter().filter_map(ServiceState::sick).collect()
    }
}

impl ServiceState {
    /// Slots with a worker online.
    pub fn online(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == "online").count()
    }

    /// Slots whose worker has done its work.
    pub fn finished(&self) -> usize {
        self.slots.iter().filter(|slot| slot.finished).count()
    }

    /// Upstreams that are up.
    pub fn upstreams_up(&self) -> usize {
        self.upstreams.iter().filter(|upstream| upstream.is_up()).count()
    }

    /// What is wrong, when no worker is online and not all have finished, or no upstream is up.
    pub fn sick(&self) -> Option<String> {
        if self.online() == 0 && (self.finished() < self.slots.len() || self.slots.is_empty()) {
            return Some(format!("{}: none of {} workers is online", self.name, self.slots.len()));
        }
        let first = self.upstreams.first()?;
        if self.upstreams_up() > 0 {
            return None;
        }
        let error = first.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let waiting = self.waiting_for_upstream;
        Some(match self.upstreams.len() {
            1 => format!("{}: upstream {} is down{error}; clients waiting: {waiting}", self.name, first.addr),
            count => format!(
                "{}: all {count} upstreams are down ({}{error}, …); clients waiting: {waiting}",
                self.name, first.addr
            ),
        })
    }
}

/// One listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenState {
    /// The address.
    pub addr: String,
    /// Who asked for it: "flag" or "server".
    pub from: String,
    /// Workers that serve it.
    pub workers: usize,
}

/// One slot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotState {
    /// Its number.
    pub slot: usize,
    /// Its state.
    pub state: String,
    /// The worker that receives connections.
    pub pid: Option<u32>,
    /// The server behind a relay worker.
    pub server_pid: Option<u32>,
    /// Workers that the slot has had.
    pub generation: u64,
    /// Starts that a crash made necessary.
    pub restarts: u64,
    /// Seconds since the worker came online.
    pub uptime_s: u64,
    /// Connections open.
    pub open: u64,
    /// Whether that is an estimate: the server passes connections on to processes that it forks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_is_estimate: bool,
    /// Hand-offs not yet received.
    pub pending: u64,
    /// Connections handed to the slot since the daemon's start.
    pub connections: u64,
    /// Connections taken back for others.
    pub rescued: u64,
    /// What its workers counted, for /metrics.
    #[serde(skip)]
    pub counts: Counts,
    /// Memory of the worker and its server.
    pub rss_bytes: u64,
    /// Whether it is empty because its worker has done its work (`--on-exit ok`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
    /// Why the slot is not online.
    pub reason: Option<String>,
    /// How its last process ended.
    pub last_exit: Option<String>,
}

/// The state now.
pub fn daemon(services: &[Service], started: Instant, stopping: Option<Instant>) -> Daemon {
    Daemon {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: started.elapsed().as_secs(),
        stopping: stopping.is_some(),
        services: services.iter().map(state).collect(),
    }
}

fn state(service: &Service) -> ServiceState {
    let online = service.online();
    let command = service.config.command().map(ToString::to_string);
    let direct = matches!(service.config.backend, Backend::Direct(_));
    let listen = |(id, listener): (usize, &Listener)| {
        let from = match listener.origin {
            Origin::Flag | Origin::Leaving => "flag",
            Origin::Server => "server",
            Origin::GivenBack => return None,
        };
        let listening = service.slots.iter().filter(|slot| slot.listens(id)).count();
        let workers = if direct { listening } else { online };
        Some(ListenState { addr: listener.address.clone(), from: from.to_owned(), workers })
    };
    ServiceState {
        name: service.config.name.clone(),
        command,
        policy: service.config.policy.to_string(),
        via: service.config.backend.via().to_owned(),
        via_reason: service.config.via_reason.clone(),
        listen: ids(&service.listeners).filter_map(listen).collect(),
        held: service.stats.held.load(Relaxed),
        shed: service.stats.shed.load(Relaxed),
        reloads: service.reloads,
        waiting_for_upstream: service.upstreams.as_ref().map_or(0, Upstreams::waiting),
        upstreams: service.upstreams.iter().flat_map(Upstreams::states).map(upstream_state).collect(),
        stopped: service.paused != Paused::No,
        slots: service.slots.iter().enumerate().map(|(at, slot)| slot_state(at, slot, service.config.policy)).collect(),
    }
}

fn upstream_state(State { address, health, counts }: State) -> UpstreamState {
    let ago = || monotonic_ns().saturating_sub(health.error_at) / 1_000_000_000;
    UpstreamState {
        addr: address,
        state: if health.down { "down" } else { "up" }.to_owned(),
        open: counts.open,
        connections: counts.connections,
        bytes_in: counts.bytes_in,
        bytes_out: counts.bytes_out,
        errors: health.errors,
        last_error: health.error(),
        last_error_s: health.errno.map(|_| ago()),
    }
}

fn slot_state(at: usize, slot: &SlotProcesses, policy: Policy) -> SlotState {
    let uptime_s = match slot.life.phase {
        Phase::Online { since } => since.elapsed().as_secs(),
        _ => 0,
    };
    let pid = slot.pid();
    let server_pid = slot.server_pid();
    let pending: usize = slot.queues.iter().filter_map(Weak::upgrade).map(|queue| queue.pending()).sum();
    let counts = slot.counted.total();
    let connections = match policy {
        Policy::None => counts.received,
        _ => slot.stats.connections.load(Relaxed),
    };
    SlotState {
        slot: at,
        // One that has closed its listeners is where it was before it listened.
        state: if slot.is_silent() { Phase::LAUNCHING } else { slot.life.phase.name() }.to_owned(),
        pid,
        server_pid,
        generation: slot.generation,
        restarts: slot.life.restarts,
        uptime_s,
        open: slot.open(),
        open_is_estimate: slot.direct.as_ref().is_some_and(|direct| direct.page.is_estimate()),
        pending: pending as u64,
        connections,
        counts,
        rescued: slot.stats.rescued.load(Relaxed),
        rss_bytes: pid.into_iter().chain(server_pid).map(rss_bytes).sum(),
        finished: slot.life.phase == Phase::Finished,
        reason: slot.trouble().map(str::to_owned).or_else(|| slot.reason.clone()),
        last_exit: slot.last_exit.as_ref().map(|exit| exit.text.clone()),
    }
}
