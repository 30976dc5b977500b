//! How long clients waited in the master, and why some were given up. The accept thread writes, the control thread reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Why a client that was accepted got no worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShedReason {
    /// No worker took it within the queue timeout.
    QueueTimeout,
    /// As many clients waited as may.
    QueueFull,
    /// It left while it waited.
    ClientLeft,
    /// No worker will come: the service ends, or is given up.
    NoWorker,
}

impl ShedReason {
    pub const ALL: [Self; 4] = [Self::QueueTimeout, Self::QueueFull, Self::ClientLeft, Self::NoWorker];

    /// The reason in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueTimeout => "queue-timeout",
            Self::QueueFull => "queue-full",
            Self::ClientLeft => "client-left",
            Self::NoWorker => "no-worker",
        }
    }
}

/// Clients given up, by reason.
#[derive(Debug, Default)]
pub struct Shed([AtomicU64; ShedReason::ALL.len()]);

impl Shed {
    pub fn add(&self, reason: ShedReason, count: u64) {
        self.0[reason as usize].fetch_add(count, Relaxed);
    }

    pub fn counters(&self) -> impl Iterator<Item = &AtomicU64> {
        self.0.iter()
    }

    pub fn count(&self, reason: ShedReason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }
}

/// The last bucket has no bound.
const BUCKETS: usize = 18;

/// A histogram of the times that clients waited before a worker got them; those that did not wait are not in it.
#[derive(Debug, Default)]
pub struct Waits {
    buckets: [AtomicU64; BUCKETS],
    /// Nanoseconds.
    sum: AtomicU64,
}

impl Waits {
    pub fn record(&self, wait: Duration) {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - ms.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Each bucket's upper bound in seconds (1 ms and its doublings, up to 65.5 s; then none) with the waits in it alone.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bound = |at: usize| if at + 1 == BUCKETS { f64::INFINITY } else { (1_u64 << at) as f64 / 1e3 };
        self.buckets.iter().enumerate().map(|(at, count)| (bound(at), count.load(Relaxed))).collect()
    }

    /// All that it counts.
    pub fn counters(&self) -> impl Iterator<Item = &AtomicU64> {
        self.buckets.iter().chain([&self.sum])
    }

    /// The sum of all waits.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Relaxed))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_the_bucket_below_whose_bound_it_is() {
        for micros in [0, 999, 1_000, 1_999, 2_000, 65_535_000, 65_536_000, u64::MAX / 2_000] {
            let waits = Waits::default();
            let wait = Duration::from_micros(micros);
            waits.record(wait);
            let buckets = waits.buckets();
            let at = buckets.iter().position(|&(_, count)| count == 1).unwrap();
            assert!(wait.as_secs_f64() < buckets[at].0, "{micros}");
            assert!(at == 0 || wait.as_secs_f64() >= buckets[at - 1].0, "{micros}");
            assert_eq!(waits.sum(), wait);
        }
    }
}
