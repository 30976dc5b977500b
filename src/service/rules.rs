//! What a service's configuration means for the accept thread and for relay workers.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use tracing::warn;

use crate::accept::orders::{AcceptedBy, Addresses, Rules};
use crate::accept::policy::Policy;
use crate::accept::stage::StageRules;
use crate::accept::stage::sources::SourceLimits;
use crate::addr::Upstream;
use crate::affinity::HashOn;
use crate::config::clients::Clients;
use crate::config::upstream::WeightedUpstream;
use crate::config::{Backend, ServiceConfig};
use crate::relay::protocol::Resolved;
use crate::sys::{reason, sock_open};

/// Hand-offs that may be pending for one relay worker.
const CAP: usize = 64;
/// Hand-offs that may be pending for one server.
const DIRECT_CAP: usize = 16;

/// Clients of a service held in the master while no worker is alive, at most; with `--worker-conns` only their share limits them.
const MAX_HELD: usize = 1024;
/// Connections of which something has to be known first, at most.
const MAX_STAGED: usize = 16_384;
/// Those held for all services may take this part of the master's descriptors, and those in the stages the same: a new worker
/// needs some, too.
const HELD_SHARE: u64 = 4;

/// Hand-offs that may be pending for one worker.
pub(super) fn cap(config: &ServiceConfig, capacity: usize) -> usize {
    if matches!(config.backend, Backend::Direct(_)) { DIRECT_CAP } else { CAP.min(capacity / 2).max(1) }
}

/// What the accept thread is told about a service.
pub(super) fn rules(config: &ServiceConfig, cap: usize, nofile: u64) -> Rules {
    let direct = matches!(config.backend, Backend::Direct(_));
    let share = usize::try_from(nofile / HELD_SHARE).unwrap_or(MAX_HELD);
    Rules {
        policy: config.policy,
        hash_on: config.hash_on.clone(),
        by: match (config.policy, direct) {
            (Policy::None, true) => AcceptedBy::Servers,
            (Policy::None, false) => AcceptedBy::Workers,
            _ => AcceptedBy::Master,
        },
        addresses: if direct
            || config.hash_on == Some(HashOn::Source)
            || config.proxy_from.is_some()
            || config.clients.by_address()
        {
            Addresses::Wanted
        } else {
            Addresses::Ignored
        },
        cap: u32::try_from(cap).unwrap_or(u32::MAX),
        stall_timeout: config.limits.stall_timeout,
        queue_timeout: config.limits.queue_timeout,
        hash_wait: config.limits.hash_wait,
        hang_timeout: config.limits.hang_timeout,
        worker_conns: config.limits.worker_conns,
        max_queue: config.limits.max_queue.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        abort_on_close: config.limits.abort_on_close,
        max_held: match config.limits.worker_conns {
            Some(_) => share.max(1),
            None => share.clamp(1, MAX_HELD),
        },
        max_held_by_all: share.max(1),
        slow_start: config.limits.slow_start,
        accept_rate: config.limits.accept_rate,
        max_conns: config.limits.max_conns.map(u64::from),
        stage: stage(config, share.clamp(1, MAX_STAGED)),
    }
}

/// Whether something has to be known of a service's connections before a worker is chosen.
pub fn has_stage(config: &ServiceConfig) -> bool {
    config.proxy_from.is_some() || config.clients.any() || config.hash_on.as_ref().is_some_and(HashOn::reads_head)
}

/// What that is; `None`: nothing.
fn stage(config: &ServiceConfig, max: usize) -> Option<Arc<StageRules>> {
    let clients = &config.clients;
    if clients.source_conns.is_some() {
        sock_open::prepare();
    }
    has_stage(config).then(|| {
        Arc::new(StageRules {
            proxy_from: config.proxy_from.clone().unwrap_or_default(),
            allowed: clients.allowed.clone(),
            sources: SourceLimits { conns: clients.source_conns, rate: clients.source_rate },
            first_byte: clients.first_byte_timeout,
            key: config.hash_on.clone().filter(HashOn::reads_head),
            session_wait: config.limits.hash_wait,
            max,
        })
    })
}

/// `--allow` and `--deny` with the networks that their files have now; `None` without these options.
///
/// # Errors
/// What is wrong with a file.
pub(super) fn reread(clients: &Clients) -> Result<Option<Clients>, String> {
    let mut clients = clients.clone();
    clients.read().map_err(|error| error.to_string())?;
    Ok(clients.allowed.is_some().then_some(clients))
}

/// The addresses of a service's upstreams, looked up.
pub(super) fn resolved(config: &ServiceConfig) -> Vec<Resolved> {
    match &config.backend {
        Backend::Upstreams(upstreams, _) => upstreams.iter().map(resolve).collect(),
        Backend::Relayed(_) | Backend::Direct(_) | Backend::NoPort(_) => Vec::new(),
    }
}

/// Looks a name up at start; a failure is no error, since the name may come to exist.
fn resolve(WeightedUpstream { address: upstream, weight, backup }: &WeightedUpstream) -> Resolved {
    let addresses = match upstream {
        Upstream::Unix(_) => Vec::new(),
        Upstream::Host { host, port } => match (host.as_str(), *port).to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                warn!(%upstream, "name does not resolve yet: {}", reason(&error));
                Vec::new()
            }
        },
    };
    Resolved { upstream: upstream.clone(), addresses, weight: *weight, backup: *backup }
}
