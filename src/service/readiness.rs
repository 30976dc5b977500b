//! When a worker is ready, and what follows: its setup, the listeners, its coming online.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::lifecycle::{Event, Phase};
use super::shared::SharedServer;
use super::{Service, SlotProcesses, Tools};
use crate::accept::orders::Order;
use crate::accept::policy::Policy;
use crate::config::Backend;
use crate::exit::{Exit, OS};
use crate::listener::Origin;
use crate::relay::protocol::ToWorker;
use crate::worker::listen_watch;
use crate::worker::relay::Readiness;

impl Service {
    /// Looks whether servers accept by now; brings online what is ready.
    ///
    /// # Errors
    /// When a listener cannot listen: another socket took its address.
    pub fn check_ready(&mut self, tools: &Tools, now: Instant) -> Result<(), Exit> {
        let timeout = self.config.limits.listen_timeout;
        let name = self.config.name.clone();
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let Some(server) = &mut slot.server else { continue };
            let before = server.complained;
            if let Some(accepting) = listen_watch::look(server, &name, Some(at), timeout, now) {
                server.address = Some(accepting);
            }
            if server.probe.is_some() && server.complained != before {
                self.give_up_insisting(at);
            }
        }
        self.check_shared(now);
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            // Before all else: what it has said by now counts.
            let said = slot.server.as_mut().is_none_or(|server| server.has_said_ready());
            match &self.config.backend {
                _ if !said => {}
                Backend::Direct(_) => self.bring_direct_online(at, tools, now),
                Backend::NoPort(_) => self.bring_portless_online(at, now),
                Backend::Relayed(_) | Backend::Upstreams(..) => self.bring_online(at, tools, now)?,
            }
            self.complain_of_silence(at, now);
        }
        Ok(())
    }

    /// One that serves no port is online when it has lived long enough, or when it says so.
    fn bring_portless_online(&mut self, at: usize, now: Instant) {
        let (backoff, limits) = (self.backoff(), self.config.limits);
        let slot = &mut self.slots[at];
        let Phase::Launching { since } = slot.life.phase else { return };
        if slot.server.is_some() && (limits.wait_ready || now.duration_since(since) >= limits.min_uptime) {
            slot.life.apply(Event::Ready, now, &backoff);
            slot.reason = slot.replaced_for.take();
            let pid = slot.server.as_ref().map(|server| server.pid);
            info!(service = %self.config.name, slot = at, pid, "worker online");
        }
    }

    /// When [`Service::bring_portless_online`] has something to do by the clock alone.
    pub(super) fn portless_deadline(&self) -> Option<Instant> {
        if !matches!(self.config.backend, Backend::NoPort(_)) || self.config.limits.wait_ready {
            return None;
        }
        let due = |slot: &SlotProcesses| match slot.life.phase {
            Phase::Launching { since } => Some(since + self.config.limits.min_uptime),
            _ => None,
        };
        self.slots.iter().filter_map(due).min()
    }

    /// A relay worker gets its setup when the server behind it accepts.
    fn set_up(&mut self, at: usize) {
        let slot = &self.slots[at];
        let waits = slot.relay.as_ref().is_some_and(|relay| relay.readiness == Readiness::NotSetUp);
        if !waits || slot.server.as_ref().is_some_and(|server| server.probe.is_some()) {
            return;
        }
        let setup = self.setup(at);
        let listeners = self.listeners.iter().take(setup.listeners);
        let listeners: Vec<_> = listeners.map(|listener| listener.socket.as_fd()).collect();
        if let Some(relay) = &mut self.slots[at].relay
            && let upstreams = self.upstreams.as_mut()
            && let table = upstreams.map(|upstreams| upstreams.joined(relay.pid, relay.page.clone()))
            && let Err(error) = relay.set_up(&setup, &listeners, table)
        {
            // It sees the end of its channel, exits, and is replaced.
            warn!(service = %self.config.name, slot = at, "cannot set up a relay worker: {error}");
            crate::sys::process::kill_tree(relay.pid);
        }
    }

    fn bring_online(&mut self, at: usize, tools: &Tools, now: Instant) -> Result<(), Exit> {
        self.set_up(at);
        let slot = &self.slots[at];
        let server_ready = slot.server.as_ref().is_none_or(|server| server.probe.is_none());
        let shared_ready = self.shared.as_ref().is_none_or(SharedServer::is_ready);
        let relay_ready = slot.relay.as_ref().is_some_and(|relay| relay.readiness == Readiness::Ready);
        if !(matches!(slot.life.phase, Phase::Launching { .. }) && server_ready && shared_ready && relay_ready) {
            return Ok(());
        }
        let served = slot.relay.as_ref().map_or(0, |relay| relay.queues.len());
        self.listen(served, tools)?;
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Some(relay) = &mut slot.relay else { return Ok(()) };
        let queues: Vec<_> = std::mem::take(&mut relay.queues).into_iter().enumerate().collect();
        slot.queues = queues.iter().map(|(_, queue)| Arc::downgrade(queue)).collect();
        let (worker, page, stats) = (relay.id, relay.page.clone(), slot.stats.clone());
        tools.orders.send(Order::Online { worker, queues, page, stats });
        if self.config.policy == Policy::None {
            relay.order(ToWorker::Serve);
        }
        slot.life.apply(Event::Ready, now, &backoff);
        slot.reason = slot.replaced_for.take();
        let server = slot.server.as_ref().map(|server| server.pid);
        let took =
            humantime::format_duration(Duration::from_millis(now.duration_since(relay.since).as_millis() as u64));
        info!(service = %self.config.name, slot = at, pid = relay.pid, server, %took, "worker online");
        Ok(())
    }

    /// At the first worker's coming online: before, clients are refused as if nothing ran.
    /// The worker serves the first so many listeners.
    fn listen(&mut self, served: usize, tools: &Tools) -> Result<(), Exit> {
        for (id, listener) in self.listeners.iter().enumerate().take(served) {
            if listener.origin == Origin::GivenBack || !self.heard.insert(id) {
                continue;
            }
            listener
                .listen()
                .map_err(|error| Exit::new(OS, format!("cannot listen on {}: {error}", listener.address)))?;
            tools.orders.send(Order::Listener { service: self.id, id, socket: listener.socket.clone() });
            info!(service = %self.config.name, address = %listener.address, policy = %self.config.policy, "listening");
        }
        Ok(())
    }
}
