//! `stop` and `start`: a service without workers while the daemon goes on.

use std::time::Instant;

use tracing::info;

use super::awaited::Verb;
use super::operations::{Effect, Operations, Progress, Ticket, Workers, count_of};
use crate::accept::orders::Order;
use crate::slot::Slot;
use crate::slot::lifecycle::{Event, Phase, Wanted};

/// Whether somebody stopped the service, and the daemon goes on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    #[default]
    /// No.
    No,
    /// It was not started yet: it comes after others.
    After,
    /// Its workers are ending.
    Stopping,
    /// Yes.
    Yes,
}

impl Operations {
    /// What the workers shall be now.
    pub(super) fn wanted(&self, stopping: bool) -> Wanted {
        if stopping || self.paused != Paused::No { Wanted::Stopped } else { Wanted::Running }
    }

    pub(super) fn pause(&mut self, ticket: Ticket, workers: &Workers) {
        info!(name: "stopping-workers", service = %workers.config.name, "stopping all workers");
        self.give_up_awaited();
        self.paused = Paused::Stopping;
        self.stop = Some(ticket);
        self.emptying = Some(workers.now);
        workers.context.orders.send(Order::Pause(workers.id));
    }

    /// The accept thread has handed over all that lay in the backlog, and nobody gets in any more: now the workers finish.
    pub(super) fn paused_intake(&mut self, workers: &mut Workers) {
        let Some(began) = self.emptying.take() else { return };
        self.effects.push(Effect::AllClosed);
        let (backoff, context, now) = (workers.backoff(), workers.context, workers.now);
        workers.slots.iter_mut().for_each(|slot| slot.dismiss(context, &backoff, now, began));
        workers.shared.iter_mut().for_each(|shared| shared.end(now));
    }

    /// Starts what was stopped.
    pub(super) fn start(&mut self, ticket: Ticket, verb: Verb, workers: &mut Workers) {
        info!(name: "starting-workers", service = %workers.config.name, "starting all workers");
        if self.paused == Paused::Yes {
            // What the configuration had lost meanwhile.
            self.effects.push(Effect::CloseLeaving);
        }
        self.paused = Paused::No;
        self.awaiting.push(workers.awaited(ticket, verb));
        for slot in workers.slots.iter_mut() {
            if matches!(slot.lifecycle.phase, Phase::Gone | Phase::Errored | Phase::Finished) {
                slot.lifecycle = slot.lifecycle.again(workers.now);
            }
        }
    }

    /// Says when all that was stopped is gone.
    pub(super) fn step_pause(&mut self, workers: &mut Workers) -> Option<Instant> {
        let now = workers.now;
        if self.paused != Paused::Stopping {
            return None;
        }
        if let Some(began) = self.emptying {
            // What no worker has taken by then is given up.
            let until = began + workers.config.limits.drain_timeout;
            if now < until {
                return Some(until);
            }
            workers.context.orders.send(Order::PauseNow(workers.id));
            self.paused_intake(workers);
            return Some(now);
        }
        let shared = workers.shared.as_ref().is_some_and(|shared| shared.server.is_some());
        if shared || !workers.slots.iter().all(Slot::is_empty) {
            return None;
        }
        let backoff = workers.backoff();
        workers.slots.iter_mut().for_each(|slot| slot.lifecycle.apply(Event::Emptied, now, &backoff));
        self.paused = Paused::Yes;
        if let Some(ticket) = self.stop.take() {
            self.say(ticket, Progress::Done(format!("stopped {}", count_of(workers.slots.len()))));
        }
        Some(now)
    }
}
