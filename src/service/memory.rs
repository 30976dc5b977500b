//! `--max-memory`: workers that have grown too large are replaced.

use std::time::{Duration, Instant};

use tracing::warn;

use super::Context;
use crate::config::{ServiceConfig, memory};
use crate::slot::Slot;
use crate::slot::lifecycle::{Backoff, Phase};
use crate::worker::Worker;

/// How often it is looked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct MemoryWatch {
    looked: Option<Instant>,
}

impl MemoryWatch {
    /// Looks at all workers, when it is time.
    pub fn step(
        &mut self,
        config: &ServiceConfig,
        slots: &mut [Slot],
        stopping: bool,
        context: &Context,
        now: Instant,
    ) -> Option<Instant> {
        let limit = config.limits.max_memory.filter(|_| !stopping)?;
        if let Some(due) = self.looked.map(|at| at + POLL_INTERVAL).filter(|due| now < *due) {
            return Some(due);
        }
        self.looked = Some(now);
        let mut due = now + POLL_INTERVAL;
        let memory = |slot: &Slot| slot.current.as_ref().map_or(0, Worker::memory);
        let all: u64 = slots.iter().map(memory).sum();
        for (at, slot) in slots.iter_mut().enumerate() {
            let bytes = memory(slot);
            if bytes <= limit || !matches!(slot.lifecycle.phase, Phase::Online { .. }) || !slot.retiring.is_empty() {
                continue;
            }
            let megabytes = |bytes: u64| bytes >> 20;
            let reason = format!("memory {} MiB is above --max-memory {} MiB", megabytes(bytes), megabytes(limit));
            // A successor may grow as far; where both do not fit, the old one goes first.
            let fits = memory::limit().is_none_or(|container| all.saturating_add(limit) <= container);
            warn!(name: "recycling", service = %config.name, slot = at, successor_first = fits, "{reason}: replaced");
            slot.begin_replace(&Backoff::of(&config.limits), now);
            slot.history.replace_reason = Some(reason);
            if !fits {
                slot.stop_first = true;
                slot.retiring.iter_mut().for_each(|old| old.drain(context, now));
            }
            due = now;
        }
        Some(due)
    }
}
