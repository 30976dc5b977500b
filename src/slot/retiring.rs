//! Workers on their way out while their slot goes on: the successor first, then no new connections, then the stop signal.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tracing::{debug, info, warn};

use super::Slot;
use super::lifecycle::{Backoff, Event, Phase};
use super::rollout::{self, RetireAction, RetireStage, Times};
use crate::accept::orders::Order;
use crate::config::options::DrainIdle;
use crate::config::service::Limits;
use crate::relay::protocol::ToWorker;
use crate::sys::{clock, process};
use crate::worker::attachment::Attachment;
use crate::worker::exit::LastExit;
use crate::worker::server::Server;
use crate::worker::{Context, Ended, Worker};

/// How often it is looked whether a draining server's connections are all gone.
pub const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// A worker on its way out.
#[derive(Debug)]
pub struct Retiring {
    pub worker: Worker,
    pub stage: RetireStage,
    /// Since when it was online.
    pub online: Instant,
    /// The accept thread sends it nothing more.
    pub out_of_rotation: bool,
}

impl Retiring {
    pub fn new(worker: Worker, online: Instant) -> Self {
        Self { worker, stage: RetireStage::Serving, online, out_of_rotation: false }
    }

    pub fn killed(worker: Worker, now: Instant) -> Self {
        Self { worker, stage: RetireStage::Killed, online: now, out_of_rotation: true }
    }

    /// No more connections for it; its time to finish began at `since`.
    pub fn drain(&mut self, context: &Context, since: Instant) {
        if self.stage == RetireStage::Serving {
            context.orders.send(Order::Drain(self.worker.id));
            self.worker.stop_accepting();
            self.drain_in_stop(since);
        }
    }

    /// The same in a stop of all: until the accept thread has handed over the last connection this may be the only worker
    /// that can take it.
    pub fn drain_in_stop(&mut self, now: Instant) {
        if self.stage == RetireStage::Serving {
            self.stage = RetireStage::Draining(now);
            self.worker.drain_relay();
        }
    }

    fn has_drained(&mut self, now: Instant) -> bool {
        (self.out_of_rotation || self.worker.attachment().is_none()) && self.worker.is_drained(now)
    }

    /// Whether it drains and the accept thread has taken note.
    pub fn is_draining(&self) -> bool {
        self.out_of_rotation && matches!(self.stage, RetireStage::Draining(_))
    }

    fn step(&mut self, times: &Times, phase: Phase, signal: Signal, context: &Context, now: Instant) -> RetireAction {
        let drained = matches!(self.stage, RetireStage::Draining(_)) && self.has_drained(now);
        let action = rollout::due(now, times, phase, self.stage, drained);
        match action {
            RetireAction::Nothing | RetireAction::GiveUpSuccessor => {}
            RetireAction::RemoveFromRotation => self.drain(context, now),
            RetireAction::SendStop { timed_out } => {
                if timed_out {
                    self.worker.kill_relay();
                }
                self.worker.request_stop(signal);
                self.stage = RetireStage::Stopping(now);
            }
            RetireAction::Kill => {
                self.worker.kill();
                self.stage = RetireStage::Killed;
            }
        }
        action
    }

    /// When [`Retiring::step`] has something to do by the clock alone.
    fn next_due(&self, times: &Times, phase: Phase, now: Instant) -> Option<Instant> {
        match self.stage {
            // A relay worker's end is an event; whether a server has drained is looked at.
            RetireStage::Draining(_) if self.worker.relay().is_none() => Some(now + DRAIN_LOOK),
            stage => rollout::next_due(times, phase, stage),
        }
    }
}

/// What has escaped from a worker that is gone has to be looked for.
#[derive(Debug)]
pub struct Escaped {
    pub server: Server,
    pub attachment: Option<Box<Attachment>>,
}

impl Slot {
    /// Does what is due for workers on their way out; when there is more to do. `stopping`: the service ends.
    pub fn step_retiring(
        &mut self,
        (name, at): (&str, usize),
        limits: &Limits,
        stopping: bool,
        context: &Context,
        now: Instant,
    ) -> Option<Instant> {
        let (times, signal, phase) = (&Times::of(limits), limits.stop_signal, self.lifecycle.phase);
        let (mut late, mut acted) = (false, false);
        for old in &mut self.retiring {
            if limits.drain_idle == DrainIdle::Move && old.out_of_rotation {
                match old.stage {
                    _ if stopping => old.worker.keep_idle(),
                    RetireStage::Draining(_) => old.worker.give_back_idle(signal),
                    _ => {}
                }
            }
            let open = old.worker.open();
            let action = old.step(times, phase, signal, context, now);
            acted |= !matches!(action, RetireAction::Nothing | RetireAction::GiveUpSuccessor);
            match action {
                RetireAction::Nothing | RetireAction::SendStop { timed_out: false } => {}
                RetireAction::RemoveFromRotation => {
                    debug!(service = %name, slot = at, "the old worker gets no more connections");
                }
                RetireAction::SendStop { timed_out: true } => {
                    warn!(name: "drain-timeout", service = %name, slot = at, open, "drain time is up: closing the connections that are left");
                }
                RetireAction::Kill => {
                    for pid in old.worker.pids() {
                        warn!(name: "worker-killed", service = %name, slot = at, pid, "killed: it did not end within the kill timeout");
                    }
                }
                RetireAction::GiveUpSuccessor => late = true,
            }
        }
        // What is due by now was done just before.
        let due = self.retiring.iter().filter_map(|old| old.next_due(times, phase, now)).filter(|due| *due > now).min();
        if late {
            self.give_up_successor(times.listen_timeout);
        }
        if acted { Some(now) } else { due }
    }

    /// A child is gone. Whether it belonged to a worker on its way out, and what that one's server has left.
    pub fn retiring_exited(
        &mut self,
        (name, at): (&str, usize),
        pid: u32,
        exit: &LastExit,
        context: &Context,
    ) -> Option<Option<Escaped>> {
        let place = self.retiring.iter().position(|old| old.worker.pids().any(|own| own == pid))?;
        let Retiring { worker, mut stage, online, out_of_rotation } = self.retiring.swap_remove(place);
        let (id, serving) = (worker.id, stage == RetireStage::Serving);
        let (rest, ended) = worker.without(pid);
        let escaped = match ended? {
            Ended::Relay(_) => {
                context.orders.send(Order::WorkerDied(id));
                None
            }
            Ended::Server(server, attachment) => {
                process::kill_tree(pid);
                if attachment.is_some() {
                    context.orders.send(Order::WorkerDied(id));
                }
                if serving && let Some(relay) = rest.as_ref().and_then(Worker::relay) {
                    context.orders.send(Order::Drain(id));
                    relay.order(ToWorker::Drain);
                    stage = RetireStage::Draining(clock::now());
                }
                Some(Escaped { server, attachment })
            }
        };
        let how = if serving { "exited before its successor was online" } else { "stopped" };
        info!(name: "worker-stopped", service = %name, slot = at, pid, status = exit.text, "old worker {how}");
        self.retiring.extend(rest.map(|worker| Retiring { worker, stage, online, out_of_rotation }));
        Some(escaped)
    }

    /// During a stop of all: asks those to stop whose connections are gone. `handed`: no more connections will come.
    pub fn settle_stopped(&mut self, signal: Signal, handed: bool, backoff: &Backoff, now: Instant) {
        for old in &mut self.retiring {
            if !old.worker.was_asked_to_stop() && old.has_drained(now) {
                old.worker.request_stop(signal);
            }
        }
        let asked = self.current.as_ref().is_some_and(Worker::was_asked_to_stop);
        let relays = self.relay().is_some() || !self.finishing.is_empty();
        if !asked && !relays && self.is_drained(handed, now) {
            match &mut self.current {
                Some(worker) => worker.request_stop(signal),
                None if self.retiring.is_empty() => self.lifecycle.apply(Event::Emptied, now, backoff),
                None => {}
            }
        }
    }

    /// The stop time is up.
    pub fn stop_all(&mut self, signal: Signal) {
        for worker in self.workers_mut() {
            worker.kill_relay();
            worker.request_stop(signal);
        }
        self.finishing.iter().for_each(|relay| process::kill_tree(relay.pid));
    }
}
