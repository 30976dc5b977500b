//! `--max-age` and `--max-served`: workers are replaced in time, each after its successor has proved itself, so that what a
//! server leaks does not add up.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::accept::orders::WorkerId;
use crate::config::ServiceConfig;
use crate::slot::Slot;
use crate::slot::lifecycle::{Backoff, Phase};
use crate::slot::rollout::RetireStage;

/// The longest pause after successors that failed, as a multiple of `--backoff`'s longest.
const LONGEST_PAUSE: u32 = 40;

/// Why a worker is recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Age,
    Served,
}

/// Workers recycled so far, by cause.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recycled {
    pub age: u64,
    pub served: u64,
}

/// What is known of one slot.
#[derive(Debug, Default)]
struct Record {
    /// The generation that has had its number of connections.
    served: Option<u64>,
    /// The generation that is making room, and why.
    under_way: Option<(u64, Cause)>,
    /// Successors in a row that failed.
    failures: u32,
    /// Not before then, after one failed.
    again: Option<Instant>,
}

/// The recycling of a service's workers.
#[derive(Debug, Default)]
pub struct Recycling {
    /// By slot.
    records: Vec<Record>,
    /// Moves the jitter of all slots, so that copies of a service on several machines differ.
    seed: u64,
    pub recycled: Recycled,
}

/// Another one in every daemon.
#[cfg(not(test))]
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[cfg(test)]
pub fn seed() -> u64 {
    0
}

impl Recycling {
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// The seed of the jitter.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How much of the jitter a worker has, of 2^32: evenly spread over slots by the golden ratio, so that those started
    /// together are not due together.
    fn part(&self, slot: usize, generation: u64) -> u64 {
        let steps = (slot as u64).wrapping_add(generation.wrapping_mul(7919));
        self.seed.wrapping_add(steps.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 32
    }

    /// The share of its limit that a worker is granted, in millionths.
    fn share(&self, config: &ServiceConfig, slot: usize, generation: u64) -> u64 {
        let jitter = u64::from(config.limits.recycle_jitter) * 10_000;
        1_000_000 - ((jitter * self.part(slot, generation)) >> 32)
    }

    /// How long a worker may be online; at least as long as a successor has to be before it counts.
    fn max_age(&self, config: &ServiceConfig, slot: usize, generation: u64) -> Option<Duration> {
        let share = self.share(config, slot, generation) as u32;
        let age = config.limits.max_age? / 1_000_000 * share;
        Some(age.max(config.limits.min_uptime))
    }

    /// How many connections a worker may get.
    pub fn max_served(&self, config: &ServiceConfig, worker: WorkerId) -> Option<u64> {
        let share = self.share(config, worker.slot as usize, worker.generation);
        Some((u64::from(config.limits.max_served?) * share / 1_000_000).max(1))
    }

    /// The accept thread has given a worker as many connections as it may get.
    pub fn served(&mut self, worker: WorkerId, slots: usize) {
        let at = worker.slot as usize;
        if at < slots {
            self.records.resize_with(self.records.len().max(at + 1), Record::default);
            self.records[at].served = Some(worker.generation);
        }
    }

    /// Replaces workers whose time has come. `busy`: an operation replaces or stops workers.
    pub fn step(&mut self, config: &ServiceConfig, slots: &mut [Slot], busy: bool, now: Instant) -> Option<Instant> {
        let limits = &config.limits;
        if limits.max_age.is_none() && limits.max_served.is_none() {
            self.records.clear();
            return None;
        }
        self.records.resize_with(slots.len(), Record::default);
        for (at, slot) in slots.iter().enumerate() {
            self.settle(config, at, slot, now);
        }
        if busy {
            return None;
        }
        let mut due: Vec<(Instant, usize, Cause)> = Vec::new();
        let mut next: Option<Instant> = None;
        for (at, slot) in slots.iter().enumerate() {
            let (Some(worker), Phase::Online { since }) = (&slot.current, slot.lifecycle.phase) else { continue };
            let (record, generation) = (&self.records[at], worker.id.generation);
            // Who drains a slot may want to look at its process.
            if slot.drain || !slot.has_drained() {
                continue;
            }
            let served = (record.served == Some(generation)).then_some((since, Cause::Served));
            let aged = self.max_age(config, at, generation).map(|age| (since + age, Cause::Age));
            let Some((when, cause)) = served.or(aged) else { continue };
            let when = record.again.map_or(when, |again| when.max(again));
            match when <= now {
                true => due.push((when, at, cause)),
                false => next = Some(next.map_or(when, |next| next.min(when))),
            }
        }
        due.sort_unstable_by_key(|(when, at, _)| (*when, *at));
        let under_way = slots.iter().filter(|slot| !slot.retiring.is_empty()).count();
        let room = (limits.max_surge as usize).saturating_sub(under_way);
        // The end of those under way is an event; the clock changes nothing.
        for &(_, at, cause) in due.iter().take(room) {
            self.begin(config, at, &mut slots[at], cause, now);
            next = Some(now);
        }
        next
    }

    fn begin(&mut self, config: &ServiceConfig, at: usize, slot: &mut Slot, cause: Cause, now: Instant) {
        let Some(worker) = &slot.current else { return };
        let (pid, generation) = (worker.receiver(), worker.id.generation);
        let limits = &config.limits;
        let why = match cause {
            Cause::Age => {
                format!("--max-age {}", humantime::format_duration(limits.max_age.unwrap_or_default()))
            }
            Cause::Served => format!("--max-served {}", limits.max_served.unwrap_or_default()),
        };
        info!(name: "recycling", service = %config.name, slot = at, pid, reason = why, "recycling worker");
        self.records[at].under_way = Some((generation, cause));
        slot.begin_replace(&Backoff::of(limits), now);
        slot.history.replace_reason = Some(format!("recycled: {why}"));
    }

    /// Looks what became of a replacement.
    fn settle(&mut self, config: &ServiceConfig, at: usize, slot: &Slot, now: Instant) {
        let record = &mut self.records[at];
        let Some((generation, cause)) = record.under_way else { return };
        let is_old = |id: WorkerId| id.generation == generation;
        let serves = |stage| stage == RetireStage::Serving;
        if slot.retiring.iter().any(|old| is_old(old.worker.id) && serves(old.stage)) {
            return;
        }
        record.under_way = None;
        if !slot.current.as_ref().is_some_and(|current| is_old(current.id)) {
            let ended = matches!(slot.lifecycle.phase, Phase::Stopping | Phase::Gone);
            (record.failures, record.again) = (0, None);
            match cause {
                _ if ended => {}
                Cause::Age => self.recycled.age += 1,
                Cause::Served => self.recycled.served += 1,
            }
            return;
        }
        let (_, longest) = config.limits.backoff;
        let pause = longest.saturating_mul(1 << record.failures.min(10)).min(longest * LONGEST_PAUSE);
        if record.failures == 0 {
            let reason = slot.history.reason.as_deref().unwrap_or_default();
            warn!(name: "recycling-failed", service = %config.name, slot = at,
                "worker not recycled: {reason}; it stays, and the next attempt is in {}",
                humantime::format_duration(pause)
            );
        }
        record.failures += 1;
        record.again = Some(now + pause);
    }
}
