//! `--worker-conns`: how much room a worker has, and what makes room again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Worker;
use crate::accept::Context;
use crate::handoff::page::{CountersPage, Rings};

/// How long a hand-off may be neither pending nor counted as received.
const UNCOUNTED: Duration = Duration::from_millis(900);

impl Worker {
    /// How many more connections it may have; `u32::MAX` without a limit. By our own count: what the queue and the page say
    /// together misses a connection between its receive and its count.
    pub fn room(&self) -> u32 {
        let Some(max) = self.limits.connections else { return u32::MAX };
        max.saturating_sub(u32::try_from(self.has()).unwrap_or(u32::MAX))
    }

    /// Connections handed out to it and not counted as closed, with those of this turn.
    pub fn has(&self) -> u64 {
        (self.expected() + self.batched() as u64).saturating_sub(self.page.closed())
    }

    /// Where it counts what it closes, and how many connections it got.
    pub fn account(&self) -> (&Arc<CountersPage>, u64) {
        (&self.page, self.expected())
    }

    /// A process that ends right after a receive has not counted it, and never will: what is neither pending nor counted for
    /// a while is over.
    fn forget_uncounted(&mut self, now: Instant) {
        let received = self.page.received_and_open().0;
        if self.rescues > 0 || self.pending() > 0 || received >= self.expected() {
            self.uncounted = None;
            return;
        }
        match self.uncounted {
            Some((before, since)) if before == received => {
                if now.duration_since(since) >= UNCOUNTED {
                    self.taken_back += self.expected() - received;
                    self.uncounted = None;
                }
            }
            _ => self.uncounted = Some((received, now)),
        }
    }

    /// While it is full and clients wait: sees to it that every end of a connection is noticed.
    pub fn watch_ends(&mut self, now: Instant, cx: &Context) {
        if self.lanes.iter().flatten().any(|lane| lane.queue.is_direct()) {
            self.processes.watch(&self.page, cx);
        }
        self.forget_uncounted(now);
    }

    /// Counts what ended with its processes.
    pub fn settle(&mut self) {
        self.processes.settle(&self.page);
    }

    /// Whether its limit cannot be kept exactly: what is open is an estimate. True once.
    pub fn exceeds_limit(&mut self) -> bool {
        let new = self.estimated && self.limits.connections.is_some() && !self.estimate_reported;
        self.estimate_reported |= new;
        new
    }

    pub fn has_bell(&self) -> bool {
        self.limits.bell
    }

    /// When it rings the bell.
    pub fn rings(&self) -> Rings {
        self.rings
    }

    /// Sets when it rings the bell. Whether it did not ring as often before.
    pub fn ring(&mut self, rings: Rings) -> bool {
        let before = std::mem::replace(&mut self.rings, rings);
        if rings != before {
            self.page.want_room(rings);
        }
        rings > before
    }
}
