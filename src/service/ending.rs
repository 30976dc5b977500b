//! How the processes of a service end: by themselves, or because the service stops.

use std::time::Instant;

use nix::sys::wait::WaitStatus;
use tracing::{info, warn};

use super::shared::SharedServer;
use super::shutdown::{Step, Stop};
use super::{Context, Service, futile};
use crate::accept::orders::Order;
use crate::config::options::OnErrored;
use crate::listener::Listener;
use crate::slot::Slot;
use crate::slot::exits::{ExitEffect, Scene};
use crate::slot::lifecycle::{Backoff, Event, Phase};
use crate::slot::orphans::{await_escape, end_left_behind};
use crate::slot::retiring::Escaped;
use crate::sys::process;
use crate::worker::exit::LastExit;

impl Service {
    /// A process of this service has exited; `slot`: `None` for the shared server.
    pub fn on_exit(&mut self, slot: Option<u32>, pid: u32, status: WaitStatus, context: &Context, now: Instant) {
        let exit = LastExit::from(status);
        if let Some(upstreams) = &mut self.upstreams {
            upstreams.left(pid);
            upstreams.look(&self.config.name, now);
        }
        let shares = |shared: &SharedServer| shared.server.as_ref().is_some_and(|server| server.pid == pid);
        match slot {
            None => {
                if let Some(shared) = self.shared.as_mut().filter(|shared| shares(shared))
                    && shared.exited(&self.config, pid, &exit, self.stop.is_some(), now)
                    && let Some(slot) = self.slots.first_mut()
                {
                    slot.history.last_exit = Some(exit);
                }
            }
            Some(at) => self.slot_exit(at as usize, pid, exit, context, now),
        }
    }

    fn slot_exit(&mut self, at: usize, pid: u32, exit: LastExit, context: &Context, now: Instant) {
        let scene = Scene { config: &self.config, at, stopping: self.stop.is_some(), context, now };
        let Some(slot) = self.slots.get_mut(at) else { return };
        let (Escaped { server, attachment }, exit) = match slot.exited(&scene, pid, exit) {
            ExitEffect::Nothing => return,
            ExitEffect::Retired(Escaped { server, attachment }) => {
                if let Some(attachment) = attachment.as_deref().filter(|one| one.moves) {
                    self.attach.late.add(at as u32, slot.stats.clone(), attachment, now);
                }
                end_left_behind(&self.pids(), &context.children, &server, attachment.as_deref());
                return;
            }
            ExitEffect::ServerGone(gone, exit) => (gone, exit),
        };
        let insists = || futile::insists_on(&self.slots, &scene, pid, attachment.as_deref(), &exit);
        let insisted = self.listeners.flags().next().and_then(|_| insists());
        if exit.code == 0 && !scene.stopping {
            await_escape(pid);
        }
        // What it left behind would keep the port.
        process::kill_tree(pid);
        let left_behind = end_left_behind(&self.pids(), &context.children, &server, attachment.as_deref());
        let insisted = insisted
            .or(self.slots[at].history.insisted)
            .map(|port| (port, self.listeners.serve_instead(&self.config.backend, port)));
        let scene = Scene { config: &self.config, at, stopping: self.stop.is_some(), context, now };
        let slot = &mut self.slots[at];
        slot.server_gone(&scene, server, &insisted, &left_behind, exit);
        if !scene.stopping && insisted.is_none() && slot.lifecycle.phase == Phase::Errored {
            // It may have died of the port as well, and said so in other words.
            self.slots[at].history.insisted = futile::sibling_elsewhere(&self.slots, at);
        }
        if self.slots[at].history.insisted.is_some() {
            futile::give_up_all_insisting(&mut self.slots, &self.config, &self.listeners, now);
        }
    }

    /// The exit code of a service that is over for good; 0: it has done its work.
    pub fn given_up(&self) -> Option<u8> {
        if self.stop.is_some() {
            return None;
        }
        let shared = |phase| self.shared.as_ref().is_some_and(|shared| shared.lifecycle.phase == phase);
        let finished = self.slots.iter().all(|slot| slot.lifecycle.phase == Phase::Finished) && self.pids().is_empty();
        if finished || shared(Phase::Finished) {
            return Some(0);
        }
        if self.config.limits.on_errored == OnErrored::Stay {
            return None;
        }
        let shared = shared(Phase::Errored);
        let all = self.slots.iter().all(|slot| matches!(slot.lifecycle.phase, Phase::Errored | Phase::Finished))
            && self.slots.iter().any(|slot| slot.lifecycle.phase == Phase::Errored);
        let mut codes = self.slots.iter().filter_map(|slot| slot.history.last_exit.as_ref()).map(|exit| exit.code);
        // A server that ended with 0 again and again has not served either.
        (shared || all).then(|| codes.rfind(|&code| code != 0).unwrap_or(1))
    }

    /// Begins to stop.
    pub fn begin_stop(&mut self, now: Instant) {
        let limits = &self.config.limits;
        self.stop = Some(Stop::new(now, limits.stop_delay, limits.stop_timeout));
        self.operations.emptying = None;
        self.operations.give_up_awaited();
    }

    /// Removes the files of its Unix sockets. At the end of the daemon (`left`) only where no step of a stop has done it:
    /// then another daemon may have files there by now.
    pub fn remove_files(&self, left: bool) {
        if !(left && self.stop.as_ref().is_some_and(Stop::closes)) {
            self.listeners.all().iter().chain(self.attach.node.unserved()).for_each(Listener::remove_file);
        }
    }

    /// Does the steps of a stop that are due.
    pub fn step_stop(&mut self, context: &Context, now: Instant) {
        let name = self.config.name.clone();
        while let Some(step) = self.stop.as_mut().and_then(|stop| stop.due(now)) {
            match step {
                Step::Delay => {}
                Step::Drain => {
                    let open: u64 = self.slots.iter().map(Slot::open).sum();
                    info!(name: "draining", service = %name, open, "draining");
                    // The accept thread closes each when it has taken its backlog: nobody may come after that and wait in
                    // vain.
                    self.remove_files(false);
                    self.listeners.clear();
                    context.orders.send(Order::Stop(self.id));
                    self.slots.iter_mut().for_each(Slot::begin_drain);
                    let backoff = Backoff::of(&self.config.limits);
                    for slot in &mut self.slots {
                        slot.lifecycle.apply(Event::Stop, now, &backoff);
                        slot.retiring.iter_mut().for_each(|old| old.drain_in_stop(now));
                    }
                }
                Step::Told => {
                    context.orders.send(Order::StopNow(self.id));
                    let open: u64 = self.slots.iter().map(Slot::open).sum();
                    if open > 0 {
                        warn!(name: "drain-timeout", service = %name, open, "stop time is up: closing the connections that are left");
                    }
                    let signal = self.config.limits.stop_signal;
                    self.slots.iter_mut().for_each(|slot| slot.stop_all(signal));
                    self.shared.iter_mut().for_each(|shared| shared.request_stop(signal));
                }
                Step::Killed => {
                    for pid in self.pids() {
                        warn!(name: "worker-killed", service = %name, pid, "killed: it did not end within the stop time");
                        process::kill_tree(pid);
                    }
                }
            }
        }
        if !self.stop.as_ref().is_some_and(Stop::closes) {
            return;
        }
        // Servers whose relay workers are done are asked to stop; empty slots are gone.
        let (signal, backoff) = (self.config.limits.stop_signal, Backoff::of(&self.config.limits));
        self.slots.iter_mut().for_each(|slot| slot.settle_stopped(signal, self.handoff_done, &backoff, now));
        if self.slots.iter().all(|slot| slot.relay().is_none() && slot.has_drained()) {
            self.shared.iter_mut().for_each(|shared| shared.request_stop(signal));
        }
    }

    /// Whether nothing of it runs any more.
    pub fn is_over(&self) -> bool {
        self.stop.is_some() && self.pids().is_empty()
    }

    /// All its processes.
    pub fn pids(&self) -> Vec<u32> {
        let shared = self.shared.iter().filter_map(|shared| shared.server.as_ref()).map(|server| server.pid);
        self.slots.iter().flat_map(Slot::pids).chain(shared).collect()
    }
}
