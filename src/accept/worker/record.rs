//! What a worker was given, for a daemon's record.

use std::time::Instant;

use super::{FirstReceive, Worker};

impl Worker {
    /// Connections that it was given in all, and how many of these were taken back.
    pub fn given(&self) -> (u64, u64) {
        (self.sent, self.taken_back)
    }

    /// It was given connections by the program before; those that are pending are looked for.
    pub fn was_given(&mut self, sent: u64, taken_back: u64, now: Instant) {
        (self.sent, self.taken_back) = (sent, taken_back);
        for lane in self.lanes.iter_mut().flatten() {
            lane.pending = lane.queue.pending();
            lane.sent = lane.pending as u64;
            if lane.pending > 0 {
                lane.ages.push_back((lane.sent, now));
                self.stuck.get_or_insert(now);
            }
        }
        if sent > 0 {
            self.first_receive = FirstReceive::Settled;
        }
    }
}
