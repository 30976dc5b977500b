//! What workers were given, for a daemon's record.

use std::time::Instant;

use super::WorkerSet;
use crate::accept::line::{Held, Ticket};
use crate::accept::orders::WorkerId;

impl WorkerSet {
    /// What the program before gave a worker.
    pub fn was_given(&mut self, id: WorkerId, sent: u64, taken_back: u64, now: Instant) {
        if let Some(at) = self.position(id) {
            self.workers[at].was_given(sent, taken_back, now);
            self.changed();
        }
    }

    /// Connections in workers' lines.
    pub fn all_in_line(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.workers.iter().flat_map(|worker| &worker.line).map(|(ticket, held)| (*ticket, held))
    }
}
