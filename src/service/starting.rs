//! A slot gets a worker, and the worker comes online.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::listeners::Listeners;
use super::shared::SharedServer;
use super::step::CannotListen;
use super::{Context, Service, futile, silence};
use crate::accept::orders::{Order, WorkerId};
use crate::accept::policy::Policy;
use crate::addr::Upstream;
use crate::config::options::DrainIdle;
use crate::handoff::Carries;
use crate::relay::protocol::{Resolved, Setup, Source};
use crate::slot::Slot;
use crate::slot::exits::Scene;
use crate::slot::lifecycle::{Backoff, Event, Phase};
use crate::sys::{process, reason, scm, sock};
use crate::worker::exit::LastExit;
use crate::worker::probe::Probe;
use crate::worker::relay::Readiness;
use crate::worker::start::StartError;
use crate::worker::{Delivery, Seat, Worker, listen_watch};

impl Slot {
    /// Starts what it lacks: a worker, or the relay worker in front of a server that has lost its own.
    fn start(&mut self, seat: &Seat, delivery: &Delivery, context: &Context) -> Result<(), StartError> {
        let mut worker = match self.current.take() {
            Some(worker) => worker,
            None => Worker::start(seat, delivery, self.history.last_address.take(), &mut self.totals, context)?,
        };
        let relay = worker.start_relay(seat, &mut self.totals, context);
        self.generation = worker.id.generation;
        self.current = Some(worker).filter(|worker| worker.pids().next().is_some());
        relay
    }

    /// Its worker is ready: it gets connections from now on.
    fn go_online(&mut self, (name, at): (&str, usize), policy: Policy, context: &Context, took: Duration) {
        let Some(worker) = &mut self.current else { return };
        worker.go_online(policy, self.stats.clone(), context);
        self.history.reason = self.history.replace_reason.take();
        let took = humantime::format_duration(Duration::from_millis(took.as_millis() as u64));
        let (pid, server) = (worker.receiver(), worker.behind_relay());
        info!(name: "worker-online", service = %name, slot = at, pid, server, %took, "worker online");
    }
}

impl Service {
    pub(super) fn start_slot(&mut self, at: usize, context: &Context, now: Instant) {
        let backoff = Backoff::of(&self.config.limits);
        let slot = &mut self.slots[at];
        let id = WorkerId { service: self.id, slot: at as u32, generation: slot.generation + 1 };
        let told = told_address(&self.listeners);
        let seat = Seat { config: &self.config, id, listeners: self.listeners.all().len(), told, now };
        if let Err(error) = slot.start(&seat, &self.delivery, context) {
            warn!(name: "worker-failed", service = %self.config.name, slot = at, "worker not started: {error}");
            slot.history.last_exit = Some(LastExit { text: error.to_string(), code: error.exit_code() });
            slot.history.reason = Some(error.to_string());
            slot.lifecycle.apply(Event::Died, now, &backoff);
            let scene = Scene { config: &self.config, at, stopping: self.stop.is_some(), context, now };
            slot.successor_failed(&scene);
            return;
        }
        slot.stop_first = false;
        slot.history.insisted = None;
        slot.lifecycle.apply(Event::Started, now, &backoff);
    }

    /// Looks whether servers accept by now; brings online what is ready.
    ///
    /// # Errors
    /// When a listener cannot listen: another socket took its address.
    pub(super) fn check_ready(&mut self, context: &Context, now: Instant) -> Result<Option<Instant>, CannotListen> {
        let limits = self.config.limits;
        let mut due: Vec<Instant> = Vec::new();
        for at in 0..self.slots.len() {
            let Some(server) = self.slots[at].server_mut() else { continue };
            let before = server.listen_watch;
            if let Some(accepting) = listen_watch::look(server, &self.config.name, Some(at), limits.listen_timeout, now)
            {
                server.address = Some(accepting);
            }
            due.extend(server.probe.as_ref().map(Probe::due));
            if server.probe.is_some() && server.listen_watch != before {
                futile::give_up_insisting(&mut self.slots, at, &self.config, &self.listeners);
            }
        }
        due.extend(self.shared.as_mut().and_then(|shared| shared.check(&self.config, now)));
        let shared_ready = self.shared.as_ref().is_none_or(SharedServer::is_ready);
        let flags = self.listeners.flags().count();
        for at in 0..self.slots.len() {
            let server = self.slots[at].server_mut();
            // Before all else: what it has said by now counts.
            let ready = server.is_none_or(|server| {
                let ready = server.has_said_ready();
                due.extend(server.notify.as_ref().filter(|notify| notify.has_more()).map(|_| now));
                ready
            });
            if ready && self.bring_online(at, shared_ready, flags, context, now)? {
                due.push(now);
            }
            silence::watch_listening(&mut self.slots, at, &self.config, &self.listeners, now);
            let slot = &self.slots[at];
            if let (Some(worker), Phase::Launching { since }) = (&slot.current, slot.lifecycle.phase) {
                due.extend(worker.launch_due(&limits, since));
            }
        }
        Ok(due.into_iter().min())
    }

    /// Whether the worker of a slot has just come online.
    fn bring_online(
        &mut self,
        at: usize,
        shared_ready: bool,
        flags: usize,
        context: &Context,
        now: Instant,
    ) -> Result<bool, CannotListen> {
        self.set_up_relay(at);
        let slot = &self.slots[at];
        let (Some(worker), Phase::Launching { since }) = (&slot.current, slot.lifecycle.phase) else {
            return Ok(false);
        };
        if !shared_ready || !worker.is_ready(&self.config, flags, since, now) {
            return Ok(false);
        }
        // Before, clients are refused as if nothing ran. By relay it serves the first so many listeners.
        let served = worker.relay().map_or(0, |relay| relay.queues.len());
        (0..served).try_for_each(|id| self.listeners.listen(id, self.config.policy, context))?;
        let backoff = Backoff::of(&self.config.limits);
        let slot = &mut self.slots[at];
        slot.lifecycle.apply(Event::Ready, now, &backoff);
        slot.go_online((&self.config.name, at), self.config.policy, context, now.duration_since(since));
        let worker = slot.current.as_ref().map(|worker| worker.id);
        if let Some((worker, limit)) = worker.and_then(|id| Some((id, self.recycling.max_served(&self.config, id)?))) {
            context.orders.send(Order::CountServed { worker, limit });
        }
        Ok(true)
    }

    /// A relay worker gets its setup when the server behind it accepts.
    fn set_up_relay(&mut self, at: usize) {
        let Some(worker) = &mut self.slots[at].current else { return };
        let server = worker.server();
        if server.is_some_and(|server| server.probe.is_some()) {
            return;
        }
        let address = server.and_then(|server| server.address);
        let Some(relay) = worker.relay_mut().filter(|relay| relay.readiness == Readiness::NotSetUp) else { return };
        let upstreams = match address {
            Some(address) => {
                let upstream = Upstream::Host { host: address.ip().to_string(), port: address.port() };
                vec![Resolved { upstream, addresses: vec![address], weight: 1, backup: false }]
            }
            None => self.resolved.clone(),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let setup = Setup {
            slot: at as u32,
            // Others may have come since its start.
            listeners: relay.queues.len(),
            source: if self.config.policy == Policy::None { Source::Listeners } else { Source::Queues },
            upstreams,
            shared: self.upstreams.is_some(),
            bell: relay.has_bell(),
            translates: relay.carries == Carries::Translations,
            send_proxy: self.config.send_proxy,
            log: relay.log.is_some(),
            batch: self.cap.min(scm::MAX_FDS),
            capacity: self.capacity,
            pipes: self.pipes,
            connect_timeout_ms: millis(self.config.limits.connect_timeout),
            idle_timeout_ms: millis(self.config.limits.idle_timeout),
            moves: self.config.limits.drain_idle == DrainIdle::Move,
            drain_spread_ms: self.config.limits.drain_spread.map(millis),
        };
        let listeners = self.listeners.all().iter().take(setup.listeners);
        let listeners: Vec<_> = listeners.map(|listener| listener.socket.as_fd()).collect();
        if let Some(log) = &relay.log {
            for (id, listener) in self.listeners.all().iter().take(setup.listeners).enumerate() {
                log.name_listener(id, listener.address.clone());
            }
            log.name_upstreams(setup.upstreams.iter().map(|resolved| resolved.upstream.to_string()).collect());
        }
        let table = self.upstreams.as_mut().map(|upstreams| upstreams.joined(relay.pid, relay.page.clone()));
        if let Err(error) = relay.set_up(&setup, &listeners, table) {
            // It sees the end of its channel, exits, and is replaced.
            warn!(service = %self.config.name, slot = at, "cannot set up a relay worker: {}", reason(&error));
            process::kill_tree(relay.pid);
        }
    }
}

/// What servers are told by PORT and HOST: the first `--listen`. A port that a server chose is not for us to tell its
/// successor.
fn told_address(listeners: &Listeners) -> Option<SocketAddr> {
    let (_, listener) = listeners.flags().next()?;
    let bound = sock::local_addr(listener.socket.as_fd())?;
    // `::` would be refused by many servers that only know IPv4, and by none is 0.0.0.0.
    let ip = if bound.ip().is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { bound.ip() };
    Some(SocketAddr::new(ip, listener.served_port()?))
}
