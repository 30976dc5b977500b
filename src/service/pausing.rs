//! `stop` and `start`: a service without workers while the daemon goes on.

use std::time::Instant;

use tracing::info;

use super::awaited::{Awaited, Verb};
use super::lifecycle::{Backoff, Event, Phase};
use super::reload::{Progress, count_of};
use super::rollout::Times;
use super::slot::Slot;
use super::{Context, Service};
use crate::accept::orders::Order;

/// Whether somebody stopped the service, and the daemon goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// No.
    No,
    /// Its workers are ending.
    Stopping,
    /// Yes.
    Yes,
}

impl Service {
    /// Stops all workers; clients are refused until [`Service::start`].
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn pause(&mut self, context: &Context, now: Instant) -> Result<(), String> {
        self.is_free()?;
        info!(service = %self.config.name, "stopping all workers");
        self.give_up_awaited();
        self.paused = Paused::Stopping;
        self.emptying = Some(now);
        context.orders.send(Order::Pause(self.id));
        Ok(())
    }

    /// The accept thread has handed over all that lay in the backlog, and nobody gets in any more: now the workers finish.
    pub(super) fn paused_intake(&mut self, context: &Context, now: Instant) {
        let Some(began) = self.emptying.take() else { return };
        self.listeners.stopped();
        let backoff = Backoff::of(&self.config.limits);
        for slot in &mut self.slots {
            slot.dismiss(context, &backoff, now, began);
        }
        self.shared.iter_mut().for_each(|shared| shared.end(now));
    }

    /// Starts what was stopped.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn start(&mut self, verb: Verb, context: &Context, now: Instant) -> Result<(), String> {
        self.is_free()?;
        info!(service = %self.config.name, "starting all workers");
        if self.paused == Paused::Yes {
            // What the configuration had lost meanwhile.
            self.listeners.close_leaving(self.config.policy, context);
        }
        self.paused = Paused::No;
        self.awaiting = Some(Awaited::new(verb, &Times::of(&self.config.limits), now));
        for slot in &mut self.slots {
            if matches!(slot.lifecycle.phase, Phase::Gone | Phase::Errored | Phase::Finished) {
                slot.lifecycle = slot.lifecycle.again(now);
            }
        }
        Ok(())
    }

    /// Says when all that was stopped is gone.
    pub(super) fn step_pause(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        if self.paused != Paused::Stopping {
            return None;
        }
        if let Some(began) = self.emptying {
            // What no worker has taken by then is given up.
            let until = began + self.config.limits.drain_timeout;
            if now < until {
                return Some(until);
            }
            context.orders.send(Order::PauseNow(self.id));
            self.paused_intake(context, now);
            return Some(now);
        }
        let shared = self.shared.as_ref().is_some_and(|shared| shared.server.is_some());
        if shared || !self.slots.iter().all(Slot::is_empty) {
            return None;
        }
        let backoff = Backoff::of(&self.config.limits);
        self.slots.iter_mut().for_each(|slot| slot.lifecycle.apply(Event::Emptied, now, &backoff));
        self.paused = Paused::Yes;
        self.say(Progress::Done(format!("stopped {}", count_of(self.slots.len()))));
        Some(now)
    }
}
