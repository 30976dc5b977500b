//! Workers on their way out while their slot goes on: the successor first, then no new connections, then the stop signal.

use std::sync::Weak;
use std::time::{Duration, Instant};

use nix::sys::wait::WaitStatus;
use tracing::{debug, info, warn};

use super::lifecycle::{Event, Phase};
use super::rollout::{self, Due, Leave, Times};
use super::{Service, SlotProcesses, Tools};
use crate::accept::orders::{Order, WorkerId};
use crate::handoff::QueueTx;
use crate::relay::protocol::ToWorker;
use crate::sys::process;
use crate::worker::direct::DirectWorker;
use crate::worker::exit::LastExit;
use crate::worker::relay::Relay;
use crate::worker::server::tell;
use crate::worker::server::{Server, Told};

/// How often it is looked whether a draining server's connections are all gone.
pub(super) const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// A worker on its way out.
#[derive(Debug)]
pub struct Retiring {
    relay: Option<Relay>,
    pub(super) server: Option<Server>,
    pub(super) direct: Option<DirectWorker>,
    queues: Vec<Weak<QueueTx>>,
    online: Instant,
    /// Nothing more is sent to it.
    pub(super) cut_off: bool,
    /// How far it is.
    pub step: Leave,
}

impl Retiring {
    pub(super) fn id(&self) -> Option<WorkerId> {
        self.relay.as_ref().map(|relay| relay.id).or(self.direct.as_ref().map(|direct| direct.id))
    }

    /// Its processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let relay = self.relay.as_ref().map(|relay| relay.pid);
        relay.into_iter().chain(self.server.as_ref().map(|server| server.pid))
    }

    /// Its open connections.
    pub fn open(&self) -> u64 {
        let relay = self.relay.as_ref().map_or(0, |relay| relay.page.open());
        relay + self.direct.as_ref().map_or(0, |direct| direct.page.open_alive())
    }

    /// No more connections for it.
    pub(super) fn drain(&mut self, tools: &Tools, now: Instant) {
        if self.step != Leave::Serving {
            return;
        }
        self.step = Leave::Draining(now);
        if let Some(id) = self.id() {
            tools.orders.send(Order::Drain(id));
        }
        self.drain_relay();
    }

    fn drain_relay(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.drain();
            // Never given to the accept thread: nobody else would close them.
            relay.queues.clear();
        }
    }

    /// The same in a stop of all: until the accept thread has handed over the last connection this may be the only worker
    /// that can take it.
    pub(super) fn drain_in_stop(&mut self, now: Instant) {
        if self.step == Leave::Serving {
            self.step = Leave::Draining(now);
            self.drain_relay();
        }
    }

    fn has_drained(&mut self, now: Instant) -> bool {
        let Some(direct) = &mut self.direct else { return self.relay.is_none() };
        self.cut_off && direct.is_drained(self.server.as_ref(), now)
    }

    fn tell(&mut self, signal: nix::sys::signal::Signal) {
        let attached = self.direct.as_ref().and_then(DirectWorker::only_process);
        if let Some(server) = &mut self.server {
            tell(server, attached, signal);
        }
    }
}

impl Service {
    /// Makes room in a slot for a successor; the worker that is there goes on until that one has proved itself.
    pub(super) fn begin_replace(&mut self, at: usize, now: Instant) {
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Phase::Online { since } = slot.life.phase else { return };
        slot.life.apply(Event::Replace, now, &backoff);
        slot.set_aside(since);
    }

    /// The successor in a slot failed: the worker that was there stays. Whether there was one.
    pub(super) fn restore(&mut self, at: usize, now: Instant, tools: &Tools) -> bool {
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Some(place) = slot.retiring.iter().position(|old| old.step == Leave::Serving) else { return false };
        // What is left of the successor.
        for pid in slot.relay.iter().map(|relay| relay.pid).chain(slot.server.iter().map(|server| server.pid)) {
            process::kill_tree(pid);
        }
        slot.leaving.extend(slot.relay.take());
        if let Some(direct) = slot.direct.take() {
            tools.orders.send(Order::WorkerDied(direct.id));
        }
        let old = slot.retiring.swap_remove(place);
        let failed = slot.server.take();
        (slot.relay, slot.server, slot.direct, slot.queues) = (old.relay, old.server, old.direct, old.queues);
        slot.life.apply(Event::Restored(old.online), now, &backoff);
        // It is killed already; until it is reaped it has to be known.
        if let Some(server) = failed {
            slot.retiring.push(Retiring {
                relay: None,
                server: Some(server),
                direct: None,
                queues: Vec::new(),
                online: now,
                cut_off: true,
                step: Leave::Killed,
            });
        }
        true
    }

    /// Does what is due for workers on their way out.
    pub(super) fn step_retiring(&mut self, tools: &Tools, now: Instant) {
        let (times, signal) = (self.times(), self.config.limits.stop_signal);
        let name = &self.config.name;
        let mut late = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let phase = slot.life.phase;
            for old in &mut slot.retiring {
                let drained = matches!(old.step, Leave::Draining(_)) && old.has_drained(now);
                match rollout::due(now, &times, phase, old.step, drained) {
                    Due::Nothing => {}
                    Due::Cut => {
                        debug!(service = %name, slot = at, "the old worker gets no more connections");
                        old.drain(tools, now);
                    }
                    Due::Tell { late } => {
                        if late {
                            let open = old.open();
                            warn!(service = %name, slot = at, open, "drain time is up: closing the connections that are left");
                            if let Some(relay) = &old.relay {
                                process::kill_tree(relay.pid);
                            }
                        }
                        old.tell(signal);
                        old.step = Leave::Stopping(now);
                    }
                    Due::Kill => {
                        for pid in old.pids() {
                            warn!(service = %name, slot = at, pid, "killed: it did not end within the kill timeout");
                            process::kill_tree(pid);
                        }
                        old.step = Leave::Killed;
                    }
                    Due::GiveUpSuccessor => late.push(at),
                }
            }
            slot.retiring.retain(|old| old.relay.is_some() || old.server.is_some());
        }
        late.into_iter().for_each(|at| self.give_up_successor(at));
    }

    /// The times that replacements keep to.
    pub fn times(&self) -> Times {
        let limits = &self.config.limits;
        Times {
            min_uptime: limits.min_uptime,
            listen_timeout: limits.listen_timeout,
            drain_timeout: limits.drain_timeout,
            kill_timeout: limits.kill_timeout,
            max_surge: limits.max_surge as usize,
        }
    }

    /// When [`Service::step_retiring`] has something to do by the clock alone.
    pub(super) fn retiring_deadline(&self, now: Instant) -> Option<Instant> {
        let limits = &self.config.limits;
        let due = |slot: &SlotProcesses| {
            let dues = slot.retiring.iter().filter_map(|old| match (old.step, slot.life.phase) {
                (Leave::Serving, Phase::Online { since }) => Some(since + limits.min_uptime),
                (Leave::Serving, Phase::Launching { since }) => Some(since + limits.listen_timeout),
                // A relay worker's end is an event; whether a server has drained is looked at.
                (Leave::Draining(_), _) if old.relay.is_none() => Some(now + DRAIN_LOOK),
                (Leave::Draining(since), _) => Some(since + limits.drain_timeout),
                (Leave::Stopping(since), _) => Some(since + limits.kill_timeout),
                (Leave::Serving | Leave::Killed, _) => None,
            });
            dues.min()
        };
        self.slots.iter().filter_map(due).min()
    }

    /// A child is gone that belonged to a worker on its way out. Whether it was one.
    pub(super) fn retiring_gone(&mut self, pid: u32, status: WaitStatus, tools: &Tools) -> bool {
        let exit = LastExit::from(status);
        let (mut escaped, mut found) = (None, false);
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(old) = slot.retiring.iter_mut().find(|old| old.pids().any(|own| own == pid)) else { continue };
            let serving = old.step == Leave::Serving;
            if old.relay.as_ref().is_some_and(|relay| relay.pid == pid) {
                if let (true, Some(id)) = (serving, old.id()) {
                    tools.orders.send(Order::WorkerDied(id));
                }
                old.relay = None;
            } else {
                process::kill_tree(pid);
                let direct = old.direct.take();
                direct.iter().for_each(|direct| tools.orders.send(Order::WorkerDied(direct.id)));
                escaped = old.server.take().map(|server| (server.mark, direct));
                if serving && let Some(relay) = &old.relay {
                    tools.orders.send(Order::Drain(relay.id));
                    relay.order(ToWorker::Drain);
                    old.step = Leave::Draining(Instant::now());
                }
            }
            let how = if serving { "exited before its successor was online" } else { "stopped" };
            info!(service = %self.config.name, slot = at, pid, status = exit.text, "old worker {how}");
            slot.retiring.retain(|old| old.relay.is_some() || old.server.is_some());
            found = true;
            break;
        }
        if let Some((mark, direct)) = escaped {
            self.end_left_behind(&mark, direct.as_ref());
        }
        found
    }
}

impl SlotProcesses {
    /// Moves its worker to those on their way out.
    pub(super) fn set_aside(&mut self, online: Instant) {
        self.proven = None;
        self.retiring.push(Retiring {
            relay: self.relay.take(),
            server: self.server.take(),
            direct: self.direct.take(),
            queues: std::mem::take(&mut self.queues),
            online,
            cut_off: false,
            step: Leave::Serving,
        });
    }

    /// During a stop of all: whether nobody on the way out is left. Tells those whose connections are gone.
    pub(super) fn retired(&mut self, signal: nix::sys::signal::Signal, now: Instant) -> bool {
        for old in &mut self.retiring {
            let told = old.server.as_ref().is_some_and(|server| server.told != Told::Nothing);
            if !told && old.has_drained(now) {
                old.tell(signal);
            }
        }
        self.retiring.is_empty()
    }

    /// The stop time is up for those on the way out.
    pub(super) fn tell_retiring(&mut self, signal: nix::sys::signal::Signal) {
        for old in &mut self.retiring {
            if let Some(relay) = &old.relay {
                process::kill_tree(relay.pid);
            }
            old.tell(signal);
        }
    }
}
