//! `--max-memory`: workers that have grown too large are replaced.

use std::time::{Duration, Instant};

use tracing::warn;

use super::lifecycle::Phase;
use super::{Service, SlotProcesses, Tools};
use crate::config::memory;
use crate::sys::process::{rss_bytes, tree};

/// How often it is looked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// Looks at all workers, when it is time.
    pub(super) fn check_memory(&mut self, tools: &Tools, now: Instant) {
        let Some(limit) = self.config.limits.max_memory else { return };
        if self.stop.is_some() || self.memory_looked.is_some_and(|at| now.duration_since(at) < POLL_INTERVAL) {
            return;
        }
        self.memory_looked = Some(now);
        let all: u64 = self.slots.iter().map(SlotProcesses::tree_bytes).sum();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            let bytes = slot.tree_bytes();
            if bytes <= limit || !matches!(slot.life.phase, Phase::Online { .. }) || !slot.retiring.is_empty() {
                continue;
            }
            let megabytes = |bytes: u64| bytes >> 20;
            let reason = format!("memory {} MiB is above --max-memory {} MiB", megabytes(bytes), megabytes(limit));
            // A successor may grow as far; where both do not fit, the old one goes first.
            let fits = memory::limit().is_none_or(|container| all.saturating_add(limit) <= container);
            warn!(service = %self.config.name, slot = at, successor_first = fits, "{reason}: replaced");
            self.replace_one(at, fits, reason, tools, now);
        }
    }

    /// When to look again.
    pub(super) fn memory_deadline(&self) -> Option<Instant> {
        self.config.limits.max_memory?;
        self.memory_looked.map(|at| at + POLL_INTERVAL)
    }
}

impl SlotProcesses {
    /// Resident memory of its worker and everything below it.
    fn tree_bytes(&self) -> u64 {
        let relay = self.relay.as_ref().map_or(0, |relay| rss_bytes(relay.pid));
        relay + self.server.as_ref().map_or(0, |server| tree(server.pid).into_iter().map(rss_bytes).sum())
    }
}
