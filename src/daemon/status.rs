//! The daemon's state, gathered for `ls`, health and metrics.

use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;

use super::Daemon;
use crate::accept::policy::Policy;
use crate::accept::stage::refusals::{Refusal, StageStats};
use crate::accept::waits::ShedReason;
use crate::access::Access;
use crate::affinity::HashOn;
use crate::affinity::head::NoKey;
use crate::config::Backend;
use crate::config::clients::Clients;
use crate::config::service::Limits;
use crate::control::status::{
    Daemon as Status, IntakeState, LimitsState, ListenState, RecycledState, ServerState, ServiceState, SlotState,
    UpstreamState,
};
use crate::control::waits::WaitState;
use crate::listener::{Listener, Origin};
use crate::service::Service;
use crate::service::recycling::Recycled;
use crate::service::rules::has_stage;
use crate::service::shared::SharedServer;
use crate::service::upstreams::{State, Upstreams};
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;
use crate::sys::clock::monotonic_ns;
use crate::sys::cpu::CpuMeter;
use crate::sys::process::rss_bytes;

impl Daemon {
    pub(super) fn status(&mut self) -> Status {
        self.cpu.begin_round();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            stopping: self.stopping.is_some(),
            services: self.services.iter().map(|service| state(service, &self.context.access, &mut self.cpu)).collect(),
        }
    }
}

fn state(service: &Service, access: &Access, cpu: &mut CpuMeter) -> ServiceState {
    let id = service.id();
    let online = crate::slot::online(service.slots());
    let service = service.view();
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
        hash_on: service
            .config
            .hash_on
            .as_ref()
            .filter(|_| service.config.policy == Policy::Hash)
            .map(HashOn::to_string),
        via: service.config.backend.via().to_owned(),
        via_seccomp: service.config.seccomp,
        via_reason: service.config.via_reason.clone(),
        listen: service.listeners.ids().filter_map(listen).collect(),
        held: service.stats.held.load(Relaxed),
        accept_pauses: service.stats.paced.load(Relaxed),
        longest_wait_ms: match service.stats.oldest.load(Relaxed) {
            0 => 0,
            since => monotonic_ns().saturating_sub(since) / 1_000_000,
        },
        shed: ShedReason::ALL.map(|reason| service.stats.shed.count(reason)).into_iter().sum(),
        shed_by: ShedReason::ALL
            .map(|reason| (reason.name().to_owned(), service.stats.shed.count(reason)))
            .into_iter()
            .collect(),
        waits: WaitState { buckets: service.stats.waits.buckets(), sum: service.stats.waits.sum().as_secs_f64() },
        limit_reached: service.stats.limit_reached().map(str::to_owned),
        reloads: service.reloads,
        recycled: recycled(&service.config.limits, service.recycled),
        access_lost: service.config.access.as_ref().map(|_| access.lost(id)),
        intake: has_stage(service.config).then(|| intake(&service.stats.stage, service.slots)),
        waiting_for_upstream: service.upstreams.map_or(0, Upstreams::waiting),
        upstreams: service.upstreams.into_iter().flat_map(Upstreams::states).map(upstream_state).collect(),
        stopped: service.stopped,
        slots: service
            .slots
            .iter()
            .enumerate()
            .map(|(at, slot)| slot_state(at, slot, service.config.policy, cpu))
            .collect(),
        server: service.shared.map(|shared| server_state(shared, cpu)),
        cwd: service.config.cwd.clone().or_else(|| std::env::current_dir().ok()).map(|path| path.display().to_string()),
        out: service.config.files.out.as_ref().map(|path| path.display().to_string()),
        error: service.config.files.error.as_ref().map(|path| path.display().to_string()),
        limits: Some(limits_state(&service.config.limits, &service.config.clients)),
        stop_signal: Some(service.config.limits.stop_signal.as_str().to_owned()),
        stop_message: service.config.stop_message.clone(),
    }
}

fn intake(stage: &StageStats, slots: &[Slot]) -> IntakeState {
    let lost = slots.iter().map(|slot| slot.totals.total().addresses_lost);
    IntakeState {
        waiting: stage.waiting.load(Relaxed),
        proxy_headers: stage.headers.load(Relaxed),
        refused: Refusal::ALL.map(|reason| (reason.name().to_owned(), stage.refused(reason))).into_iter().collect(),
        keys: stage.keys.load(Relaxed),
        no_key: NoKey::ALL.map(|reason| (reason.name().to_owned(), stage.without_key(reason))).into_iter().collect(),
        // Servers write these.
        addresses_lost: lost.fold(0, u64::saturating_add),
    }
}

fn upstream_state(State { address, health, counts, weight, drain, backup }: State) -> UpstreamState {
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
        weight,
        drain,
        backup,
    }
}

fn slot_state(at: usize, slot: &Slot, policy: Policy, cpu: &mut CpuMeter) -> SlotState {
    let uptime_s = match slot.lifecycle.phase {
        Phase::Online { since } => since.elapsed().as_secs(),
        _ => 0,
    };
    let pid = slot.pid();
    let server_pid = slot.server_pid();
    let pending: usize = slot
        .current
        .iter()
        .flat_map(|worker| &worker.queues)
        .filter_map(Weak::upgrade)
        .map(|queue| queue.pending())
        .sum();
    let counts = slot.totals.total();
    let connections = match policy {
        Policy::None => counts.received,
        _ => slot.stats.connections.load(Relaxed),
    };
    SlotState {
        slot: at,
        // One that has closed its listeners is where it was before it listened.
        state: if slot.is_silent() { Phase::LAUNCHING } else { slot.lifecycle.phase.name() }.to_owned(),
        pid,
        server_pid,
        generation: slot.generation,
        restarts: slot.lifecycle.restarts,
        uptime_s,
        open: slot.open(),
        open_is_estimate: slot.attachment().is_some_and(|direct| direct.page.is_estimate()),
        pending: pending as u64,
        connections,
        counts,
        rescued: slot.stats.rescued.load(Relaxed),
        moved: slot.stats.moved.load(Relaxed),
        rss_bytes: pid.into_iter().chain(server_pid).map(rss_bytes).sum(),
        cpu: pid.into_iter().chain(server_pid).map(|pid| cpu.percent(pid)).sum(),
        finished: slot.lifecycle.phase == Phase::Finished,
        drain: slot.drain,
        weight: slot.weight,
        reason: slot.trouble().map(str::to_owned).or_else(|| slot.history.reason.clone()),
        last_exit: slot.history.last_exit.as_ref().map(|exit| exit.text.clone()),
    }
}

fn server_state(shared: &SharedServer, cpu: &mut CpuMeter) -> ServerState {
    let uptime_s = match shared.lifecycle.phase {
        Phase::Online { since } => since.elapsed().as_secs(),
        _ => 0,
    };
    let pid = shared.server.as_ref().map(|server| server.pid);
    ServerState {
        state: shared.lifecycle.phase.name().to_owned(),
        pid,
        restarts: shared.lifecycle.restarts,
        uptime_s,
        rss_bytes: pid.map_or(0, rss_bytes),
        cpu: pid.map_or(0.0, |pid| cpu.percent(pid)),
        last_exit: shared.last_exit().map(str::to_owned),
    }
}

fn recycled(limits: &Limits, Recycled { age, served }: Recycled) -> Option<RecycledState> {
    (limits.max_age.is_some() || limits.max_served.is_some()).then_some(RecycledState { age, served })
}

fn limits_state(limits: &Limits, clients: &Clients) -> LimitsState {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    LimitsState {
        listen_timeout_ms: ms(limits.listen_timeout),
        drain_timeout_ms: ms(limits.drain_timeout),
        kill_timeout_ms: ms(limits.kill_timeout),
        stop_timeout_ms: ms(limits.stop_timeout),
        stop_delay_ms: ms(limits.stop_delay),
        stall_timeout_ms: ms(limits.stall_timeout),
        queue_timeout_ms: ms(limits.queue_timeout),
        hang_timeout_ms: limits.hang_timeout.map(ms),
        accept_rate: limits.accept_rate,
        max_conns: limits.max_conns,
        max_memory_bytes: limits.max_memory,
        max_age_ms: limits.max_age.map(ms),
        max_served: limits.max_served,
        slow_start_ms: (!limits.slow_start.is_zero()).then(|| ms(limits.slow_start)),
        source_conns: clients.source_conns,
        source_rate: clients.source_rate,
        first_byte_timeout_ms: clients.first_byte_timeout.map(ms),
        max_restarts: limits.max_restarts,
        max_surge: limits.max_surge,
        min_uptime_ms: ms(limits.min_uptime),
        backoff_ms: [ms(limits.backoff.0), ms(limits.backoff.1)],
    }
}
