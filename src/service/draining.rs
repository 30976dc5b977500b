//! `drain` and `undrain`: a mark on a slot or upstream keeps new connections from it, whichever workers there are, until it is
//! taken away.

use tracing::info;

use super::operations::{Operations, Progress, Ticket, Workers, count_of};
use super::weights::Of;
use crate::accept::orders::Order;
use crate::slot::Slot;

/// What `drain` needs where a service would be left without a slot or upstream that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    Yes,
    No,
}

impl From<bool> for Force {
    fn from(force: bool) -> Self {
        if force { Self::Yes } else { Self::No }
    }
}

impl Operations {
    /// New connections go to the other slots or upstreams; those that are open go on.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn drain(
        &mut self,
        ticket: Ticket,
        (of, force): (Of, Force),
        workers: &mut Workers,
    ) -> Result<(), String> {
        let text = match of {
            Of::Slot(number) => workers.drain_slot(number, force)?,
            Of::Upstream(at) => {
                let upstreams = workers.upstreams()?;
                let (address, _) = upstreams.set_drain(at, true, force)?;
                let open = upstreams.open(at);
                info!(name: "upstream-drained", service = %workers.config.name, upstream = address, open, "upstream drained");
                format!("draining upstream {address}; connections open: {open}")
            }
        };
        self.say(ticket, Progress::Done(text));
        Ok(())
    }

    /// One slot or upstream, or all, get new connections again.
    ///
    /// # Errors
    /// That there is no such slot or upstream.
    pub(super) fn undrain(&mut self, ticket: Ticket, of: Option<Of>, workers: &mut Workers) -> Result<(), String> {
        let text = match of {
            Some(Of::Slot(number)) => match workers.undrain_slots(Some(workers.place(number)?)) {
                None => format!("slot {number} was not drained"),
                Some(text) => text,
            },
            Some(Of::Upstream(at)) => match workers.upstreams()?.set_drain(at, false, Force::No)? {
                (address, false) => format!("upstream {address} was not drained"),
                (address, true) => workers.undrained(&address),
            },
            None => {
                let slots = workers.undrain_slots(None);
                let upstreams = workers.undrain_upstreams();
                match slots.into_iter().chain(upstreams).collect::<Vec<_>>().as_slice() {
                    [] if workers.upstreams.is_some() => "no slot was drained, and no upstream".to_owned(),
                    [] => "no slot was drained".to_owned(),
                    texts => texts.join("; "),
                }
            }
        };
        self.say(ticket, Progress::Done(text));
        Ok(())
    }
}

impl Workers<'_> {
    fn drain_slot(&mut self, number: u32, force: Force) -> Result<String, String> {
        self.shares_out()?;
        let at = self.place(number)?;
        self.may_lose(at, force)?;
        let open = self.slots[at].open();
        self.mark(at, true);
        Ok(format!("draining slot {number}; connections open: {open}"))
    }

    /// One slot, or all. Returns what to say, unless none was drained.
    fn undrain_slots(&mut self, only: Option<usize>) -> Option<String> {
        let meant = only.map_or(0..self.slots.len(), |at| at..at + 1);
        let drained: Vec<usize> = meant.filter(|&at| self.slots[at].drain).collect();
        drained.iter().for_each(|&at| self.mark(at, false));
        match drained.as_slice() {
            [] => None,
            [at] => Some(format!("slot {at} takes connections again")),
            several => Some(format!("{} take connections again", count_of(several.len()))),
        }
    }

    /// All upstreams. Returns what to say, unless none was drained.
    fn undrain_upstreams(&mut self) -> Option<String> {
        let drained = self.upstreams.as_mut()?.undrain();
        let said: Vec<_> = drained.iter().map(|address| self.undrained(address)).collect();
        match said.as_slice() {
            [] | [_] => said.into_iter().next(),
            several => Some(format!("{} upstreams take connections again", several.len())),
        }
    }

    fn undrained(&self, address: &str) -> String {
        info!(name: "upstream-undrained", service = %self.config.name, upstream = address, "upstream undrained");
        format!("upstream {address} takes connections again")
    }

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

    /// # Errors
    /// When none of the slots that stay takes connections, and one of those that go does.
    pub(super) fn may_shrink(&self, to: usize) -> Result<(), String> {
        let stays = self.slots.len().min(to);
        let (left, gone) = self.slots.split_at(stays);
        let takes = |slots: &[Slot]| slots.iter().any(|slot| slot.weight() > 0);
        if takes(left) || !takes(gone) {
            return Ok(());
        }
        let name = &self.config.name;
        let cure = match left.iter().position(|slot| slot.drain) {
            Some(at) => format!("roundsman undrain {name}/{at}"),
            None => format!("roundsman weight {name}/0 1"),
        };
        Err(format!("{} of {name} would be left, and none that takes connections; first: {cure}", count_of(stays)))
    }

    fn mark(&mut self, at: usize, drain: bool) {
        let slot = &mut self.slots[at];
        if std::mem::replace(&mut slot.drain, drain) == drain {
            return;
        }
        let (name, open) = (&self.config.name, slot.open());
        if drain {
            info!(name: "slot-drained", service = %name, slot = at, open, "slot drained");
        } else {
            info!(name: "slot-undrained", service = %name, slot = at, open, "slot undrained");
        }
        self.pass_weight(at);
    }

    /// Tells the accept thread the weight that a slot has by now.
    pub(super) fn pass_weight(&self, at: usize) {
        let weight = self.slots[at].weight();
        self.context.orders.send(Order::Weight { service: self.id, slot: at as u32, weight });
    }
}
