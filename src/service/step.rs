//! What a service does at each turn of the control thread.

use std::io;
use std::time::Instant;

use thiserror::Error;

use super::operations::Operations;
use super::pausing::Paused;
use super::shutdown::{Step, Stop};
use super::{Context, Service};
use crate::slot::Slot;
use crate::slot::lifecycle::{Phase, Wanted, due_starts};
use crate::sys::reason;

/// Another socket took a listener's address before it listened.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {}", reason(.source))]
pub struct CannotListen {
    pub(super) address: String,
    pub(super) source: io::Error,
}

impl Service {
    /// Everything that follows from the facts at this time. Each step returns when it is due next by the clock alone; one
    /// that has changed what others look at returns `now`.
    ///
    /// # Errors
    /// The reason to end the daemon.
    pub fn step(&mut self, context: &Context, now: Instant) -> Result<(), CannotListen> {
        let disconnects = self.handoff_done && self.stop.as_ref().is_some_and(Stop::closes);
        let stopping = self.stop.is_some() || self.operations.paused != Paused::No;
        let drains = self.stop.as_ref().is_some_and(|stop| stop.step == Step::Drain);
        let due = [
            self.step_starts(context, now),
            self.slots
                .iter_mut()
                .enumerate()
                .filter_map(|(at, slot)| slot.end_abandoned(&self.config.name, at, now))
                .min(),
            self.attach(context).step(now),
            self.step_shared(context, now),
            self.memory.step(&self.config, &mut self.slots, self.stop.is_some(), context, now),
            self.check_ready(context, now)?,
            self.slots
                .iter_mut()
                .enumerate()
                .filter_map(|(at, slot)| {
                    slot.step_retiring((&self.config.name, at), &self.config.limits, stopping, context, now)
                })
                .min(),
            self.slots
                .iter_mut()
                .filter_map(|slot| slot.step_stopping(&self.config.limits, disconnects, drains, now))
                .min(),
            self.operate(context, now, Operations::step),
            self.recycling.step(&self.config, &mut self.slots, self.stop.is_some() || self.operations.is_busy(), now),
            self.upstreams.as_mut().and_then(|upstreams| upstreams.step(&self.config.name, &self.slots, now)),
            self.stop.as_ref().and_then(Stop::next_due),
        ];
        let given_up = |slot: &Slot| slot.lifecycle.phase == Phase::Errored && slot.retiring.is_empty();
        if self.stop.is_none() && self.slots.iter().all(given_up) {
            self.listeners.refuse(context);
        }
        self.due = due.into_iter().flatten().min();
        Ok(())
    }

    /// When [`Service::step`] has something to do by the clock alone.
    pub fn next_due(&self) -> Option<Instant> {
        self.due
    }

    fn step_shared(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let stopping = self.stop.is_some();
        let wanted = self.operations.wanted(stopping);
        let shared = self.shared.as_mut()?;
        let start = match wanted {
            Wanted::Running => shared.start((self.id, &self.config), self.resolved.first(), context, now),
            Wanted::Stopped => None,
        };
        let drained = self.slots.iter().all(Slot::has_drained);
        let turn = if stopping { None } else { shared.step(&self.config, drained, now) };
        [start, turn].into_iter().flatten().min()
    }

    fn step_starts(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let lives: Vec<_> = self.slots.iter().map(Slot::due_lifecycle).collect();
        let (starts, due) = due_starts(now, self.operations.wanted(self.stop.is_some()), &lives);
        let started = !starts.is_empty();
        starts.into_iter().for_each(|at| self.start_slot(at, context, now));
        if started { Some(now) } else { due }
    }

    /// Before the daemon ends by itself: settles the operations that this end decides.
    pub fn step_last(&mut self, context: &Context, now: Instant) {
        self.attach.refusals.finish();
        self.operate(context, now, Operations::step_last);
    }
}
