//! `stop` and `start`: a service without workers while the daemon goes on.

use std::time::Instant;

use tracing::info;

use super::awaited::{Awaited, Verb};
use super::lifecycle::{Event, Phase};
use super::reload::{Progress, count_of};
use super::{Service, SlotProcesses, Tools};
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
    pub fn pause(&mut self, tools: &Tools, now: Instant) -> Result<(), String> {
        self.is_free()?;
        info!(service = %self.config.name, "stopping all workers");
        self.give_up_awaited();
        self.paused = Paused::Stopping;
        self.emptying = Some(now);
        tools.orders.send(Order::Pause(self.id));
        Ok(())
    }

    /// The accept thread has handed over all that lay in the backlog, and nobody gets in any more: now the workers finish.
    pub(super) fn paused_intake(&mut self, tools: &Tools, now: Instant) {
        let Some(began) = self.emptying.take() else { return };
        self.heard.clear();
        let backoff = self.backoff();
        for slot in &mut self.slots {
            slot.dismiss(tools, &backoff, now, began);
        }
        self.end_shared(now);
    }

    /// Starts what was stopped.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn start(&mut self, verb: Verb, tools: &Tools, now: Instant) -> Result<(), String> {
        self.is_free()?;
        info!(service = %self.config.name, "starting all workers");
        if self.paused == Paused::Yes {
            // What the configuration had lost meanwhile.
            self.close_leaving(tools);
        }
        self.paused = Paused::No;
        self.awaited = Some(Awaited::new(verb, &self.times(), now));
        for slot in &mut self.slots {
            if matches!(slot.life.phase, Phase::Gone | Phase::Errored | Phase::Finished) {
                slot.life = slot.life.again(now);
            }
        }
        Ok(())
    }

    /// Says when all that was stopped is gone.
    pub(super) fn step_pause(&mut self, tools: &Tools, now: Instant) {
        if self.paused != Paused::Stopping {
            return;
        }
        if self.pause_deadline().is_some_and(|at| at <= now) {
            tools.orders.send(Order::PauseNow(self.id));
            self.paused_intake(tools, now);
        }
        let shared = self.shared.as_ref().is_some_and(|shared| shared.server.is_some());
        if self.emptying.is_some() || shared || !self.slots.iter().all(SlotProcesses::is_empty) {
            return;
        }
        let backoff = self.backoff();
        self.slots.iter_mut().for_each(|slot| slot.life.apply(Event::Emptied, now, &backoff));
        self.paused = Paused::Yes;
        self.say(Progress::Done(format!("stopped {}", count_of(self.slots.len()))));
    }

    /// When what no worker has taken is given up.
    pub(super) fn pause_deadline(&self) -> Option<Instant> {
        Some(self.emptying? + self.config.limits.drain_timeout)
    }
}
