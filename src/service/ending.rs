//! How the processes of a service end: by themselves, or because the service stops.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use tracing::{debug, error, info, warn};

use super::lifecycle::{Event, Phase};
use super::retiring::Retiring;
use super::shutdown::{Step, Stop};
use super::{Service, SlotProcesses, Tools};
use crate::accept::orders::Order;
use crate::config::Backend;
use crate::config::options::{OnErrored, OnExit};
use crate::sys::process;
use crate::worker::direct::DirectWorker;
use crate::worker::exit::LastExit;
use crate::worker::server::{Told, tell};

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
    /// A child is gone. Returns whether it was one of ours.
    pub fn child_gone(&mut self, pid: u32, status: WaitStatus, tools: &Tools, now: Instant) -> bool {
        let exit = LastExit::from(status);
        if let Some(upstreams) = &mut self.upstreams {
            upstreams.left(pid);
            self.look_at_upstreams(now);
        }
        if let Some(at) = self.slots.iter().position(|slot| slot.relay.as_ref().is_some_and(|relay| relay.pid == pid)) {
            self.relay_gone(at, exit, tools, now);
        } else if let Some(at) =
            self.slots.iter().position(|slot| slot.server.as_ref().is_some_and(|server| server.pid == pid))
        {
            self.server_gone(at, exit, tools, now);
        } else if self.shared.iter().any(|shared| shared.server.as_ref().is_some_and(|server| server.pid == pid)) {
            self.shared_gone(pid, exit, now);
        } else if let Some(slot) = self.slots.iter_mut().find(|slot| slot.leaving.iter().any(|relay| relay.pid == pid))
        {
            slot.leaving.retain(|relay| relay.pid != pid);
        } else if !self.retiring_gone(pid, status, tools) {
            return false;
        }
        self.settle_stopped(now);
        true
    }

    fn relay_gone(&mut self, at: usize, exit: LastExit, tools: &Tools, now: Instant) {
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Some(relay) = slot.relay.take() else { return };
        if self.stop.is_some() {
            debug!(service = %self.config.name, slot = at, pid = relay.pid, "relay worker ended: {}", exit.text);
        } else {
            tools.orders.send(Order::WorkerDied(relay.id));
            slot.reason = Some(slot.doomed.take().unwrap_or_else(|| format!("relay worker: {}", exit.text)));
        }
        let status = exit.text.clone();
        slot.last_exit = Some(exit);
        slot.life.apply(Event::Died, now, &backoff);
        let open = Some(relay.page.open());
        let crash = Crash { at, who: "relay worker", pid: relay.pid, status, reason: None, open, event: Event::Died };
        self.after_death(crash, now, tools);
    }

    /// A worker is gone. Whether it was a successor, and the worker before it is back in its place.
    pub(super) fn successor_failed(&mut self, at: usize, now: Instant, tools: &Tools) -> bool {
        if self.stop.is_some() || !self.restore(at, now, tools) {
            return false;
        }
        let slot = &mut self.slots[at];
        let how = slot.last_exit.as_ref().map(|exit| exit.text.clone()).unwrap_or_default();
        let reason = slot.reload_failure.take().unwrap_or_else(|| format!("the successor ended: {how}"));
        slot.reason = Some(reason.clone());
        slot.reload_failed = Some((reason, slot.failed_pid.take()));
        true
    }

    fn server_gone(&mut self, at: usize, mut exit: LastExit, tools: &Tools, now: Instant) {
        if self.has_successor(at) {
            return;
        }
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Some(server) = slot.server.take() else { return };
        slot.failed_pid = Some(server.pid);
        slot.proven = server.address.filter(|_| server.probe.is_none());
        let insisted = self.insists_on(at, server.pid, &exit, tools).or(self.slots[at].insisted);
        // What it left behind would keep the port.
        process::kill_tree(server.pid);
        let left_behind = self.end_left_behind(&server.mark, self.slots[at].direct.as_ref());
        let serve_instead = insisted.map(|port| self.serve_instead(port));
        let slot = &mut self.slots[at];
        let (mut event, mut reason) = (Event::Died, None);
        let finishes = self.config.limits.on_exit == OnExit::Ok;
        if self.stop.is_some() {
            debug!(service = %self.config.name, slot = at, pid = server.pid, "server ended: {}", exit.text);
        } else if left_behind > 0 && exit.code == 0 {
            let hint = "let it run in the foreground (nginx: daemon off; redis: --daemonize no)";
            let text = format!("it put itself into the background; {hint}");
            (slot.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if let (Some(port), Some(instead)) = (insisted, serve_instead) {
            let text = slot.doomed.take().unwrap_or_else(|| {
                format!("address already in use: its servers all listen on :{port}, which no -l serves; {instead}")
            });
            // One that we killed for it has no code of its own.
            exit.code = if slot.insisted.is_some() { 1 } else { exit.code };
            slot.insisted = insisted;
            (slot.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if exit.code == 0 && finishes {
            info!(service = %self.config.name, slot = at, pid = server.pid, status = exit.text, "server finished");
            slot.reason = Some(format!("finished: {}", exit.text));
            event = Event::Finish;
        } else {
            let launching = matches!(slot.life.phase, Phase::Launching { .. });
            let hint = match &self.config.backend {
                _ if exit.code != 0 => None,
                Backend::NoPort(_) => Some("if it is a job that is done: --on-exit ok"),
                _ if launching => Some("if it is a job that is done: --no-listen --on-exit ok -i 1"),
                _ => None,
            };
            reason = server.refused.filter(|_| launching).or(hint.map(str::to_owned));
            let more = reason.iter().map(|reason| format!(": {reason}")).collect::<String>();
            slot.reason = Some(slot.doomed.take().unwrap_or_else(|| format!("server: {}{more}", exit.text)));
        }
        let status = exit.text.clone();
        slot.last_exit = Some(exit);
        if self.stop.is_none() {
            slot.retire_relay(tools);
        }
        if let Some(direct) = slot.direct.take() {
            tools.orders.send(Order::WorkerDied(direct.id));
        }
        slot.life.apply(event, now, &backoff);
        if event != Event::Finish {
            let crash = Crash { at, who: "server", pid: server.pid, status, reason, open: None, event };
            self.after_death(crash, now, tools);
        }
        if self.stop.is_none() && insisted.is_none() && self.slots[at].life.phase == Phase::Errored {
            // It may have died of the port as well, and said so in other words.
            self.slots[at].insisted = self.sibling_elsewhere(at);
        }
        if self.slots[at].insisted.is_some() {
            self.give_up_all_insisting(now);
        }
    }

    /// A worker that should live is dead: one line says how it ended and what follows.
    fn after_death(&mut self, crash: Crash, now: Instant, tools: &Tools) {
        let Crash { at, who, pid, status, reason, open, event } = crash;
        let (name, stopping) = (self.config.name.clone(), self.stop.is_some());
        let restored = self.successor_failed(at, now, tools);
        match self.slots[at].life.phase {
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
        if self.slots[at].life.phase == Phase::Errored && !restored {
            // A server without a relay worker, or the reverse, is of no use.
            let slot = &self.slots[at];
            let left = slot.server.iter().map(|server| server.pid).chain(slot.relay.iter().map(|relay| relay.pid));
            left.for_each(process::kill_tree);
        }
    }

    /// The exit code of a service that is over for good; 0: it has done its work.
    pub fn given_up(&self) -> Option<u8> {
        if self.stop.is_some() {
            return None;
        }
        let shared = |phase| self.shared.as_ref().is_some_and(|shared| shared.life.phase == phase);
        let finished = self.slots.iter().all(|slot| slot.life.phase == Phase::Finished) && self.pids().is_empty();
        if finished || shared(Phase::Finished) {
            return Some(0);
        }
        if self.config.limits.on_errored == OnErrored::Stay {
            return None;
        }
        let shared = shared(Phase::Errored);
        let all = self.slots.iter().all(|slot| matches!(slot.life.phase, Phase::Errored | Phase::Finished))
            && self.slots.iter().any(|slot| slot.life.phase == Phase::Errored);
        let mut codes = self.slots.iter().filter_map(|slot| slot.last_exit.as_ref()).map(|exit| exit.code);
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

    /// Whether it stops and its listeners are closed, or are being closed.
    pub(super) fn closes(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.step != Step::Delay)
    }

    /// Does the steps of a stop that are due.
    pub fn step_stop(&mut self, tools: &Tools, now: Instant) {
        let name = self.config.name.clone();
        while let Some(step) = self.stop.as_mut().and_then(|stop| stop.due(now)) {
            match step {
                Step::Delay => {}
                Step::Drain => {
                    let open: u64 = self.slots.iter().map(SlotProcesses::open).sum();
                    info!(service = %name, open, "draining");
                    // The accept thread closes each when it has taken its backlog: nobody may come after that and wait in
                    // vain.
                    self.remove_files();
                    self.listeners.clear();
                    tools.orders.send(Order::Stop(self.id));
                    self.slots.iter_mut().for_each(SlotProcesses::begin_drain);
                    let backoff = self.backoff();
                    for slot in &mut self.slots {
                        slot.life.apply(Event::Stop, now, &backoff);
                        slot.retiring.iter_mut().for_each(|old| old.drain_in_stop(now));
                    }
                }
                Step::Told => {
                    tools.orders.send(Order::StopNow(self.id));
                    let open: u64 = self.slots.iter().map(SlotProcesses::open).sum();
                    if open > 0 {
                        warn!(service = %name, open, "stop time is up: closing the connections that are left");
                    }
                    for relay in self.slots.iter().flat_map(|slot| slot.relay.iter().chain(&slot.leaving)) {
                        process::kill_tree(relay.pid);
                    }
                    self.tell_servers();
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

    /// Tells every server that is left to stop.
    fn tell_servers(&mut self) {
        let signal = self.config.limits.stop_signal;
        for slot in &mut self.slots {
            slot.tell(signal);
            slot.tell_retiring(signal);
        }
        if let Some(server) = self.shared.as_mut().and_then(|shared| shared.server.as_mut()) {
            tell(server, None, signal);
        }
    }

    /// During a stop: servers whose relay workers are done are told to end; empty slots are gone.
    fn settle_stopped(&mut self, now: Instant) {
        if !self.closes() {
            return;
        }
        let (signal, backoff) = (self.config.limits.stop_signal, self.backoff());
        for slot in &mut self.slots {
            let retired = slot.retired(signal, now);
            let told = slot.server.as_ref().is_some_and(|server| server.told != Told::Nothing);
            if !told && slot.relay.is_none() && slot.leaving.is_empty() && slot.drained(self.handed, now) {
                if slot.server.is_some() {
                    slot.tell(signal);
                } else if retired {
                    slot.life.apply(Event::Emptied, now, &backoff);
                }
            }
        }
        if self.slots.iter().all(|slot| slot.relay.is_none() && slot.has_drained())
            && let Some(server) = self.shared.as_mut().and_then(|shared| shared.server.as_mut())
        {
            tell(server, None, signal);
        }
    }

    /// Whether nothing of it runs any more.
    pub fn is_over(&self) -> bool {
        self.stop.is_some() && self.pids().is_empty()
    }

    /// All its processes.
    pub fn pids(&self) -> Vec<u32> {
        let relays = self.slots.iter().flat_map(|slot| slot.relay.iter().chain(&slot.leaving)).map(|relay| relay.pid);
        let servers = self.slots.iter().filter_map(|slot| slot.server.as_ref());
        let servers = servers.chain(self.shared.iter().filter_map(|shared| shared.server.as_ref()));
        let retiring = self.slots.iter().flat_map(|slot| &slot.retiring).flat_map(Retiring::pids);
        relays.chain(servers.map(|server| server.pid)).chain(retiring).collect()
    }
}

impl SlotProcesses {
    /// Open connections of all its relay workers.
    pub fn open(&self) -> u64 {
        let direct: u64 = self.direct.iter().map(|direct| direct.page.open_alive()).sum();
        let retiring: u64 = self.retiring.iter().map(Retiring::open).sum();
        direct + retiring + self.relay.iter().chain(&self.leaving).map(|relay| relay.page.open()).sum::<u64>()
    }

    /// Tells its server to stop: the process that attached, which is not always the one that we started (a shell, npm).
    /// Where several did, what we started is their manager.
    fn tell(&mut self, signal: Signal) {
        let attached = self.direct.as_ref().and_then(DirectWorker::only_process);
        if let Some(server) = &mut self.server {
            tell(server, attached, signal);
        }
    }

    /// Tells what we started, if its server was told already.
    pub(super) fn tell_again(&mut self, signal: Signal) {
        if let Some(server) = self.server.as_mut().filter(|server| server.told.by_signal().is_some()) {
            server.told = Told::Nothing;
            tell(server, None, signal);
        }
    }

    /// The server is gone: its relay worker takes nothing new, finishes, and makes room for another.
    fn retire_relay(&mut self, tools: &Tools) {
        if let Some(relay) = self.relay.take() {
            tools.orders.send(Order::Drain(relay.id));
            relay.drain();
            self.leaving.push(relay);
        }
    }

    fn begin_drain(&mut self) {
        for relay in self.relay.iter_mut().chain(&mut self.leaving) {
            relay.drain();
            // Never given to the accept thread: nobody else would close them.
            relay.queues.clear();
        }
    }
}
