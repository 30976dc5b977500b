//! `drain` and `undrain`: a mark on a slot keeps new connections from it, whichever worker it has, until it is taken away.

use tracing::info;

use super::operations::{Operations, Progress, Ticket, Workers, count_of};
use crate::accept::orders::Order;
use crate::accept::policy::Policy;
use crate::config::Backend;
use crate::slot::Slot;

/// What `drain` needs where a service would be left without a slot that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    Yes,
    No,
}

impl Operations {
    /// New connections go to the other slots; those that are open go on.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn drain(
        &mut self,
        ticket: Ticket,
        (number, force): (u32, Force),
        workers: &mut Workers,
    ) -> Result<(), String> {
        let name = &workers.config.name;
        if matches!(workers.config.backend, Backend::NoPort(_)) {
            return Err(format!("{name} serves no port: there are no connections to keep from a slot"));
        }
        if workers.config.policy == Policy::None {
            return Err(format!(
                "with --policy none the workers of {name} take connections themselves: none can be kept from a slot"
            ));
        }
        let at = workers.place(number)?;
        workers.may_lose(at, force)?;
        let open = workers.slots[at].open();
        workers.mark(at, true);
        self.say(ticket, Progress::Done(format!("draining slot {number}; connections open: {open}")));
        Ok(())
    }

    /// One slot, or all, get new connections again.
    ///
    /// # Errors
    /// That there is no such slot.
    pub(super) fn undrain(&mut self, ticket: Ticket, slot: Option<u32>, workers: &mut Workers) -> Result<(), String> {
        let meant = slot.map(|slot| workers.place(slot)).transpose()?;
        let meant = meant.map_or(0..workers.slots.len(), |at| at..at + 1);
        let drained: Vec<usize> = meant.filter(|&at| workers.slots[at].drain).collect();
        drained.iter().for_each(|&at| workers.mark(at, false));
        let text = match (drained.as_slice(), slot) {
            ([], Some(slot)) => format!("slot {slot} was not drained"),
            ([], None) => "no slot was drained".to_owned(),
            ([at], _) => format!("slot {at} takes connections again"),
            (several, _) => format!("{} take connections again", count_of(several.len())),
        };
        self.say(ticket, Progress::Done(text));
        Ok(())
    }
}

impl Workers<'_> {
    /// # Errors
    /// When no other slot takes connections, without `force`.
    pub(super) fn may_lose(&self, at: usize, force: Force) -> Result<(), String> {
        let takes = |slot: &Slot| slot.is_online() && slot.weight() > 0;
        let others = self.slots.iter().enumerate().any(|(other, slot)| other != at && takes(slot));
        if others || force == Force::Yes || self.slots[at].weight() == 0 {
            return Ok(());
        }
        Err(format!(
            "slot {at} is the last of {} that takes connections; with --force clients wait for --queue-timeout, and then \
             are reset",
            self.config.name
        ))
    }

    fn mark(&mut self, at: usize, drain: bool) {
        let slot = &mut self.slots[at];
        if std::mem::replace(&mut slot.drain, drain) == drain {
            return;
        }
        let (what, open) = (if drain { "slot drained" } else { "slot undrained" }, slot.open());
        info!(service = %self.config.name, slot = at, open, "{what}");
        self.pass_weight(at);
    }

    /// Tells the accept thread the weight that a slot has by now.
    pub(super) fn pass_weight(&self, at: usize) {
        let weight = self.slots[at].weight();
        self.context.orders.send(Order::Weight { service: self.id, slot: at as u32, weight });
    }
}
