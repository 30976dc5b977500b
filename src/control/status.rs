//! The daemon's state as `ls --json` shows it. The field names are a contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::waits::WaitState;
use crate::handoff::page::Counts;

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
    /// What `--policy hash` goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<String>,
    /// The delivery.
    pub via: String,
    /// Direct: the server's system calls are answered, since it cannot be preloaded.
    #[serde(default)]
    pub via_seccomp: bool,
    /// Why this delivery.
    pub via_reason: String,
    /// Listeners.
    pub listen: Vec<ListenState>,
    /// Clients that wait in the master for a worker.
    pub held: u64,
    /// How long the one of them has waited that came first, in milliseconds.
    #[serde(default)]
    pub longest_wait_ms: u64,
    /// Clients that were accepted and got no worker, in all.
    pub shed: u64,
    /// Times that `--accept-rate` made clients wait in the backlog.
    #[serde(default)]
    pub accept_pauses: u64,
    /// The same by reason: "queue-timeout", "queue-full", "client-left", "no-worker".
    #[serde(default)]
    pub shed_by: BTreeMap<String, u64>,
    /// How long clients waited that then got a worker.
    #[serde(default)]
    pub waits: WaitState,
    /// The option because of which no client is accepted now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_reached: Option<String>,
    /// Reloads that succeeded.
    #[serde(default)]
    pub reloads: u64,
    /// Workers replaced by `--max-age` and `--max-served`, where one of them is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycled: Option<RecycledState>,
    /// Connections without their line in the access log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_lost: Option<u64>,
    /// Connections before a worker is chosen, where something has to be known of them first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intake: Option<IntakeState>,
    /// Clients of relay workers that have no upstream for them now.
    #[serde(default)]
    pub waiting_for_upstream: u64,
    /// Whether somebody stopped it: `start` starts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Slots.
    pub slots: Vec<SlotState>,
    /// The server that all slots share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerState>,
    /// Where servers run.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The files that servers' output goes to, with `{slot}` and `{service}` as configured.
    #[serde(default)]
    pub out: Option<String>,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub limits: Option<LimitsState>,
    /// "SIGTERM".
    #[serde(default)]
    pub stop_signal: Option<String>,
    #[serde(default)]
    pub stop_message: Option<String>,
    /// Upstreams, in the configuration's order.
    #[serde(default)]
    pub upstreams: Vec<UpstreamState>,
}

/// Connections of which something has to be known before a worker gets them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IntakeState {
    /// Those that wait now.
    pub waiting: u64,
    /// Valid PROXY headers since the daemon's start.
    pub proxy_headers: u64,
    /// Connections reset since then, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Connections whose first request had a key, which decided.
    #[serde(default)]
    pub keys: u64,
    /// Those whose first request was looked at and did not decide, by reason.
    #[serde(default)]
    pub no_key: BTreeMap<String, u64>,
    /// Connections whose servers see the balancer's address, because they have too many at a time.
    pub addresses_lost: u64,
}

/// Workers recycled since the daemon's start, by cause.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RecycledState {
    pub age: u64,
    pub served: u64,
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
    /// Its share beside the others, 0 to 256; 0: gets no new connections.
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether `roundsman drain` keeps new connections from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
    /// Whether it is used only while no other upstream is up.
    #[serde(default)]
    pub backup: bool,
}

fn one() -> u16 {
    1
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
            let whose = match self.slots.len() {
                1 => "its worker is not online".to_owned(),
                count => format!("none of {count} workers is online"),
            };
            return Some(format!("{}: {whose}", self.name));
        }
        if self.slots.iter().all(|slot| slot.drain || slot.weight == 0 || slot.state != "online") && self.online() > 0 {
            return Some(format!("{}: all workers that are online are drained", self.name));
        }
        let first = self.upstreams.first()?;
        if self.upstreams.iter().any(|upstream| upstream.is_up() && upstream.weight > 0 && !upstream.drain) {
            return None;
        }
        if self.upstreams.iter().all(|upstream| upstream.drain || upstream.weight == 0) {
            return Some(format!("{}: all upstreams are drained", self.name));
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

/// The server behind all slots, where they share one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerState {
    /// As of a slot.
    pub state: String,
    pub pid: Option<u32>,
    pub restarts: u64,
    /// Seconds since it was ready.
    pub uptime_s: u64,
    pub rss_bytes: u64,
    /// As of a slot.
    pub cpu: f64,
    /// How the last one ended.
    pub last_exit: Option<String>,
}

/// Times in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LimitsState {
    pub listen_timeout_ms: u64,
    pub drain_timeout_ms: u64,
    pub kill_timeout_ms: u64,
    pub stop_timeout_ms: u64,
    pub stop_delay_ms: u64,
    pub stall_timeout_ms: u64,
    pub queue_timeout_ms: u64,
    pub hang_timeout_ms: Option<u64>,
    #[serde(default)]
    pub accept_rate: Option<u32>,
    #[serde(default)]
    pub max_conns: Option<u32>,
    pub max_memory_bytes: Option<u64>,
    #[serde(default)]
    pub max_age_ms: Option<u64>,
    #[serde(default)]
    pub max_served: Option<u32>,
    #[serde(default)]
    pub slow_start_ms: Option<u64>,
    #[serde(default)]
    pub source_conns: Option<u32>,
    #[serde(default)]
    pub source_rate: Option<u32>,
    #[serde(default)]
    pub first_byte_timeout_ms: Option<u64>,
    pub max_restarts: u32,
    pub max_surge: u32,
    pub min_uptime_ms: u64,
    /// The first pause before a restart, and the longest.
    pub backoff_ms: [u64; 2],
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
    /// Idle connections that its leaving workers gave to others.
    #[serde(default)]
    pub moved: u64,
    /// What its workers counted; of it, programs get how long hand-offs waited, by bucket.
    #[serde(default, rename = "handoff_waits", with = "handoff_waits")]
    pub counts: Counts,
    /// Memory of the worker and its server.
    pub rss_bytes: u64,
    /// CPU use of the worker and its server in percent of one CPU, since the state was last asked for (at least half a
    /// second ago), or over their life when it was not.
    #[serde(default)]
    pub cpu: f64,
    /// Whether it is empty because its worker has done its work (`--on-exit ok`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
    /// Its share of new connections beside the other slots, 0 to 256.
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether `roundsman drain` keeps new connections from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
    /// Why the slot is not online.
    pub reason: Option<String>,
    /// How its last process ended.
    pub last_exit: Option<String>,
}

/// The buckets of [`Counts`], which are all of it that leaves the daemon.
mod handoff_waits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Counts;

    pub fn serialize<S: Serializer>(counts: &Counts, serializer: S) -> Result<S::Ok, S::Error> {
        counts.latencies.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Counts, D::Error> {
        let mut counts = Counts::default();
        // Another version may have other buckets.
        let given = Vec::<u64>::deserialize(deserializer)?;
        counts.latencies.iter_mut().zip(given).for_each(|(bucket, count)| *bucket = count);
        Ok(counts)
    }
}
