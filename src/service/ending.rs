//! How the processes of a service end: by themselves, or because the service stops.

use std::time::Instant;

use nix::sys::wait::WaitStatus;
use tracing::{debug, error, info, warn};

use super::lifecycle::{Backoff, Event, Phase};
use super::orphans::end_left_behind;
use super::retiring::Escaped;
use super::shared::SharedServer;
use super::shutdown::{Step, Stop};
use super::slot::Slot;
use super::{Context, Service};
use crate::accept::orders::{Order, WorkerId};
use crate::config::Backend;
use crate::config::options::{OnErrored, OnExit};
use crate::listener::Listener;
use crate::sys::process;
use crate::worker::attachment::Attachment;
use crate::worker::children::Owner;
use crate::worker::exit::LastExit;
use crate::worker::relay::Relay;
use crate::worker::server::Server;
use crate::worker::{Ended, Worker};

/// The unexpected end of a process, for the log.
struct Crash {
    at: usize,
    who: &'static str,
    pid: u32,
    status: String,
    reason: Option<String>,
    open: Option<u64>,
    event: Event,
}

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
        self.settle_stopped(now);
    }

    fn slot_exit(&mut self, at: usize, pid: u32, exit: LastExit, context: &Context, now: Instant) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.finishing.retain(|relay| relay.pid != pid);
        if let Some(escaped) = slot.retiring_exited((&self.config.name, at), pid, &exit, context) {
            if let Some(Escaped { server, attachment }) = escaped {
                end_left_behind(&self.pids(), &server.mark, attachment.as_deref());
            }
            return;
        }
        if slot.server().is_some_and(|server| server.pid == pid) && slot.adopt_successor(&self.config.name, at) {
            if let Some(server) = slot.server() {
                context.children.add(server.pid, Owner { service: self.id, slot: Some(at as u32) });
            }
            return;
        }
        let Some(worker) = slot.current.take_if(|worker| worker.pids().any(|own| own == pid)) else { return };
        let id = worker.id;
        let (rest, ended) = worker.without(pid);
        slot.current = rest;
        match ended {
            Some(Ended::Relay(relay)) => self.relay_gone(at, id, &relay, exit, context, now),
            Some(Ended::Server(server, attachment)) => {
                if attachment.is_some() {
                    context.orders.send(Order::WorkerDied(id));
                }
                self.server_gone(at, server, attachment, exit, context, now);
            }
            None => {}
        }
    }

    fn relay_gone(&mut self, at: usize, id: WorkerId, relay: &Relay, exit: LastExit, context: &Context, now: Instant) {
        let backoff = Backoff::of(&self.config.limits);
        let slot = &mut self.slots[at];
        if self.stop.is_some() {
            debug!(service = %self.config.name, slot = at, pid = relay.pid, "relay worker ended: {}", exit.text);
        } else {
            context.orders.send(Order::WorkerDied(id));
            let how = || format!("relay worker: {}", exit.text);
            slot.history.reason = Some(slot.history.kill_reason.take().unwrap_or_else(how));
        }
        let status = exit.text.clone();
        slot.history.last_exit = Some(exit);
        slot.lifecycle.apply(Event::Died, now, &backoff);
        let open = Some(relay.page.open());
        let crash = Crash { at, who: "relay worker", pid: relay.pid, status, reason: None, open, event: Event::Died };
        self.after_death(crash, now, context);
    }

    /// A worker is gone. Whether it was a successor, and the worker before it is back in its place.
    pub(super) fn successor_failed(&mut self, at: usize, now: Instant, context: &Context) -> bool {
        let backoff = Backoff::of(&self.config.limits);
        let slot = &mut self.slots[at];
        if self.stop.is_some() || !slot.restore(context, &backoff, now) {
            return false;
        }
        let history = &mut slot.history;
        let how = history.last_exit.as_ref().map(|exit| exit.text.clone()).unwrap_or_default();
        let reason = history.successor_trouble.take().unwrap_or_else(|| format!("the successor ended: {how}"));
        history.reason = Some(reason.clone());
        history.reload_failed = Some((reason, history.failed_successor.take()));
        true
    }

    fn server_gone(
        &mut self,
        at: usize,
        server: Server,
        attachment: Option<Box<Attachment>>,
        mut exit: LastExit,
        context: &Context,
        now: Instant,
    ) {
        let backoff = Backoff::of(&self.config.limits);
        let history = &mut self.slots[at].history;
        history.failed_successor = Some(server.pid);
        history.last_address = server.address.filter(|_| server.probe.is_none());
        let known = history.insisted;
        let insisted = self.insists_on(at, server.pid, attachment.as_deref(), &exit, context).or(known);
        // What it left behind would keep the port.
        process::kill_tree(server.pid);
        let left_behind = end_left_behind(&self.pids(), &server.mark, attachment.as_deref());
        let serve_instead = insisted.map(|port| self.serve_instead(port));
        let slot = &mut self.slots[at];
        let launching = matches!(slot.lifecycle.phase, Phase::Launching { .. });
        let history = &mut slot.history;
        let (mut event, mut reason) = (Event::Died, None);
        let finishes = self.config.limits.on_exit == OnExit::Ok;
        if self.stop.is_some() {
            debug!(service = %self.config.name, slot = at, pid = server.pid, "server ended: {}", exit.text);
        } else if left_behind > 0 && exit.code == 0 {
            let hint = "let it run in the foreground (nginx: daemon off; redis: --daemonize no)";
            let text = format!("it put itself into the background; {hint}");
            (history.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if let (Some(port), Some(instead)) = (insisted, serve_instead) {
            let text = history.kill_reason.take().unwrap_or_else(|| {
                format!("address already in use: its servers all listen on :{port}, which no -l serves; {instead}")
            });
            // One that we killed for it has no code of its own.
            exit.code = if history.insisted.is_some() { 1 } else { exit.code };
            history.insisted = insisted;
            (history.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if exit.code == 0 && finishes {
            info!(service = %self.config.name, slot = at, pid = server.pid, status = exit.text, "server finished");
            history.reason = Some(format!("finished: {}", exit.text));
            event = Event::Finish;
        } else {
            let hint = match &self.config.backend {
                _ if exit.code != 0 => None,
                Backend::NoPort(_) => Some("if it is a job that is done: --on-exit ok"),
                _ if launching => Some("if it is a job that is done: --no-listen --on-exit ok -i 1"),
                _ => None,
            };
            reason = server.refused.filter(|_| launching).or(hint.map(str::to_owned));
            let more = reason.iter().map(|reason| format!(": {reason}")).collect::<String>();
            history.reason = Some(history.kill_reason.take().unwrap_or_else(|| format!("server: {}{more}", exit.text)));
        }
        let status = exit.text.clone();
        history.last_exit = Some(exit);
        if self.stop.is_none() {
            slot.finish_relay(context);
        }
        slot.lifecycle.apply(event, now, &backoff);
        if event != Event::Finish {
            let crash = Crash { at, who: "server", pid: server.pid, status, reason, open: None, event };
            self.after_death(crash, now, context);
        }
        if self.stop.is_none() && insisted.is_none() && self.slots[at].lifecycle.phase == Phase::Errored {
            // It may have died of the port as well, and said so in other words.
            self.slots[at].history.insisted = self.sibling_elsewhere(at);
        }
        if self.slots[at].history.insisted.is_some() {
            self.give_up_all_insisting(now);
        }
    }

    /// A worker that should live is dead: one line says how it ended and what follows.
    fn after_death(&mut self, crash: Crash, now: Instant, context: &Context) {
        let Crash { at, who, pid, status, reason, open, event } = crash;
        let (name, stopping) = (self.config.name.clone(), self.stop.is_some());
        let restored = self.successor_failed(at, now, context);
        match self.slots[at].lifecycle.phase {
            _ if stopping => {}
            Phase::Waiting { until } if !restored => {
                let restart_in =
                    std::time::Duration::from_millis(until.saturating_duration_since(now).as_millis() as u64);
                warn!(service = %name, slot = at, pid, status, open, reason, ?restart_in, "{who} exited");
            }
            Phase::Errored if !restored => {
                let why = match event {
                    Event::GiveUp => "another start would not help",
                    _ => "it exited too often in a row",
                };
                error!(service = %name, slot = at, pid, status, open, reason, "slot given up: {why}");
            }
            _ => warn!(service = %name, slot = at, pid, status, open, reason, "{who} exited"),
        }
        if self.slots[at].lifecycle.phase == Phase::Errored && !restored {
            // A server without a relay worker, or the reverse, is of no use.
            self.slots[at].current.iter().for_each(Worker::kill);
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
        self.emptying = None;
        self.give_up_awaited();
    }

    /// Removes the files of its Unix sockets. At the end of the daemon (`left`) only where no step of a stop has done it:
    /// then another daemon may have files there by now.
    pub fn remove_files(&self, left: bool) {
        if !(left && self.closes()) {
            self.listeners.iter().chain(self.node.unserved()).for_each(Listener::remove_file);
        }
    }

    /// Whether it stops and its listeners are closed, or are being closed.
    pub(super) fn closes(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.step != Step::Delay)
    }

    /// Does the steps of a stop that are due.
    pub fn step_stop(&mut self, context: &Context, now: Instant) {
        let name = self.config.name.clone();
        while let Some(step) = self.stop.as_mut().and_then(|stop| stop.due(now)) {
            match step {
                Step::Delay => {}
                Step::Drain => {
                    let open: u64 = self.slots.iter().map(Slot::open).sum();
                    info!(service = %name, open, "draining");
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
                        warn!(service = %name, open, "stop time is up: closing the connections that are left");
                    }
                    self.stop_servers();
                }
                Step::Killed => {
                    for pid in self.pids() {
                        warn!(service = %name, pid, "killed: it did not end within the stop time");
                        process::kill_tree(pid);
                    }
                }
            }
        }
        self.settle_stopped(now);
    }

    /// The stop time is up for connections: relay workers are killed, servers asked to stop.
    fn stop_servers(&mut self) {
        let signal = self.config.limits.stop_signal;
        self.slots.iter_mut().for_each(|slot| slot.stop_all(signal));
        if let Some(server) = self.shared.as_mut().and_then(|shared| shared.server.as_mut()) {
            server.request_stop(None, signal);
        }
    }

    /// During a stop: servers whose relay workers are done are asked to stop; empty slots are gone.
    fn settle_stopped(&mut self, now: Instant) {
        if !self.closes() {
            return;
        }
        let (signal, backoff) = (self.config.limits.stop_signal, Backoff::of(&self.config.limits));
        for slot in &mut self.slots {
            let retired = slot.retired(signal, now);
            let asked = slot.current.as_ref().is_some_and(Worker::was_asked_to_stop);
            let relays = slot.relay().is_some() || !slot.finishing.is_empty();
            if !asked && !relays && slot.is_drained(self.handoff_done, now) {
                match &mut slot.current {
                    Some(worker) => worker.request_stop(signal),
                    None if retired => slot.lifecycle.apply(Event::Emptied, now, &backoff),
                    None => {}
                }
            }
        }
        if self.slots.iter().all(|slot| slot.relay().is_none() && slot.has_drained())
            && let Some(server) = self.shared.as_mut().and_then(|shared| shared.server.as_mut())
        {
            server.request_stop(None, signal);
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
