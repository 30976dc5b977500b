//! `--max-memory`: workers that have grown too large are replaced.

use std::time::{Duration, Instant};

use tracing::warn;

use super::lifecycle::Phase;
use super::{Context, Service};
use crate::config::memory;
use crate::worker::Worker;

/// How often it is looked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// Looks at all workers, when it is time.
    pub(super) fn check_memory(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let limit = self.config.limits.max_memory?;
        if self.stop.is_some() {
            return None;
        }
        if let Some(due) = self.memory_looked.map(|at| at + POLL_INTERVAL).filter(|due| now < *due) {
            return Some(due);
        }
        self.memory_looked = Some(now);
        let mut due = now + POLL_INTERVAL;
        let all: u64 = self.slots.iter().filter_map(|slot| slot.current.as_ref()).map(Worker::memory).sum();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            let bytes = slot.current.as_ref().map_or(0, Worker::memory);
            if bytes <= limit || !matches!(slot.lifecycle.phase, Phase::Online { .. }) || !slot.retiring.is_empty() {
                continue;
            }
            let megabytes = |bytes: u64| bytes >> 20;
            let reason = format!("memory {} MiB is above --max-memory {} MiB", megabytes(bytes), megabytes(limit));
            // A successor may grow as far; where both do not fit, the old one goes first.
            let fits = memory::limit().is_none_or(|container| all.saturating_add(limit) <= container);
            warn!(service = %self.config.name, slot = at, successor_first = fits, "{reason}: replaced");
            self.replace_one(at, fits, reason, context, now);
            due = now;
        }
        Some(due)
    }
}
