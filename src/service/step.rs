//! What a service does at each turn of the control thread.

use std::time::Instant;

use super::lifecycle::{Action, reconcile};
use super::{Service, Tools};
use crate::exit::Exit;

impl Service {
    /// Everything that follows from the facts at this time.
    ///
    /// # Errors
    /// The reason to end the daemon.
    pub fn step(&mut self, tools: &mut Tools, now: Instant) -> Result<(), Exit> {
        for action in reconcile(now, self.wanted(), &self.lives()) {
            match action {
                Action::Start(slot) => self.start_slot(slot, tools, now),
                // The steps of the stop do it in their time.
                Action::Stop(_) => {}
            }
        }
        self.end_abandoned(now);
        self.step_unused(tools, now);
        self.step_queries(tools);
        self.step_holders(tools, now);
        self.start_shared(tools, now);
        self.check_memory(tools, now);
        self.check_ready(tools, now)?;
        self.step_disconnect();
        self.step_stop_messages(now);
        self.step_retiring(tools, now);
        self.step_shared(now);
        self.step_reload(tools, now);
        self.step_pause(tools, now);
        self.refuse_when_given_up(tools);
        self.step_scale(now);
        self.step_probe(now);
        self.step_awaited(tools, now);
        Ok(())
    }

    /// Before the daemon ends by itself: settles the operations that this end decides.
    pub fn step_last(&mut self, tools: &Tools, now: Instant) {
        self.finish_explaining();
        self.step_reload(tools, now);
        self.step_awaited(tools, now);
    }
}
