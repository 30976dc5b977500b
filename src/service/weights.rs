//! `weight`: the share of a slot or an upstream beside the others, set while the service runs.

use tracing::info;

use super::draining::Force;
use super::operations::{Operations, Progress, Ticket, Workers};
use super::upstreams::Upstreams;
use crate::accept::policy::Policy;
use crate::config::Backend;

/// What has a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Slot(u32),
    /// By its place in the configuration; the others of the same address get the weight, too.
    Upstream(usize),
}

impl Operations {
    /// Sets a weight, 0 to 256. That of a slot holds for all its workers until the daemon ends; that of an upstream until
    /// the configuration file has another one than before.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn weigh(
        &mut self,
        ticket: Ticket,
        (of, weight, force): (Of, u16, Force),
        workers: &mut Workers,
    ) -> Result<(), String> {
        let text = match of {
            Of::Slot(number) => workers.weigh_slot(number, weight, force)?,
            Of::Upstream(at) => workers.weigh_upstream(at, weight, force)?,
        };
        info!(name: "weight", service = %workers.config.name, "{text}");
        self.say(ticket, Progress::Done(text));
        Ok(())
    }
}

impl Workers<'_> {
    /// # Errors
    /// When nobody chooses the slot of a connection.
    pub(super) fn shares_out(&self) -> Result<(), String> {
        let name = &self.config.name;
        if matches!(self.config.backend, Backend::NoPort(_)) {
            return Err(format!("{name} serves no port: its slots get no connections"));
        }
        if self.config.policy == Policy::None {
            return Err(format!(
                "with --policy none the workers of {name} take connections themselves: slots have no weight, and cannot be \
                 drained"
            ));
        }
        Ok(())
    }

    fn weigh_slot(&mut self, number: u32, weight: u16, force: Force) -> Result<String, String> {
        self.shares_out()?;
        let at = self.place(number)?;
        if weight == 0 {
            self.may_lose(at, force)?;
        }
        let before = std::mem::replace(&mut self.slots[at].weight, weight);
        self.pass_weight(at);
        let drained = if self.slots[at].drain { "; it is drained" } else { "" };
        Ok(format!("slot {number}: weight {weight}, before {before}{drained}"))
    }

    fn weigh_upstream(&mut self, at: usize, weight: u16, force: Force) -> Result<String, String> {
        let (address, before, drain) = self.upstreams()?.set_weight(at, weight, force)?;
        let drained = if drain { "; it is drained" } else { "" };
        Ok(format!("upstream {address}: weight {weight}, before {before}{drained}"))
    }

    /// # Errors
    /// When there was no memory for them.
    pub(super) fn upstreams(&mut self) -> Result<&mut Upstreams, String> {
        self.upstreams.as_mut().ok_or_else(|| "the state of upstreams is not shared: out of memory".to_owned())
    }
}
