//! `--accept-rate`: what comes faster waits in the backlog.

use std::time::{Duration, Instant};

/// Connections that may be accepted at once, as the time in which they come at the allowed rate.
const BURST: Duration = Duration::from_millis(50);

/// A bucket of tokens, kept as the time when the next connection is due at the allowed rate.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Option<Instant>,
    /// This pause is counted.
    counted: bool,
}

impl Pace {
    /// Whether a connection that comes now has to wait.
    pub fn is_reached(&self, now: Instant) -> bool {
        self.until().is_some_and(|at| at > now)
    }

    /// The time from which the next connection may be accepted.
    pub fn until(&self) -> Option<Instant> {
        self.next.map(|next| next - BURST)
    }

    /// Whether a client waits in this pause, as `waits` says: true once.
    pub fn makes_wait(&mut self, waits: impl FnOnce() -> bool) -> bool {
        let new = !self.counted && waits();
        self.counted |= new;
        new
    }

    /// Whether a client was seen to wait in this pause.
    pub fn somebody_waits(&self) -> bool {
        self.counted
    }

    /// A connection was accepted, where `rate` a second are allowed.
    pub fn count(&mut self, rate: u32, now: Instant) {
        let due = self.next.map_or(now, |next| next.max(now));
        self.counted = false;
        self.next = Some(due + Duration::from_secs(1) / rate.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections accepted in `seconds` where one waits at any time and the accept thread looks every `look`.
    fn accepted(rate: u32, seconds: u64, look: Duration) -> u64 {
        let (start, mut pace, mut count) = (Instant::now() + BURST, Pace::default(), 0);
        let mut now = start;
        while now < start + Duration::from_secs(seconds) {
            while !pace.is_reached(now) {
                pace.count(rate, now);
                count += 1;
            }
            now = pace.until().map_or(now, |at| at.max(now + look));
        }
        count
    }

    #[test]
    fn in_the_long_run_exactly_the_rate_is_accepted_and_first_a_short_burst() {
        for rate in [1, 7, 1_000, 100_000] {
            for look in [0, 1, 20] {
                let count = accepted(rate, 10, Duration::from_millis(look));
                let burst = u64::from(rate) / 20 + 1;
                let whole = u64::from(rate) * 10;
                assert!((whole..=whole + burst + 1).contains(&count), "{rate} {look} ms: {count}");
            }
        }
    }

    #[test]
    fn a_pause_counts_once_and_only_if_somebody_waits() {
        let (now, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..3 {
            pace.count(1, now);
            let looks = [false, true, true, false].map(|waits| pace.makes_wait(|| waits));
            assert_eq!(looks, [false, true, false, false]);
        }
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        pace.count(10, start);
        let later = start + Duration::from_secs(60);
        let at_once = std::iter::from_fn(|| {
            let free = !pace.is_reached(later);
            pace.count(10, later);
            free.then_some(())
        });
        assert_eq!(at_once.count(), 1);
    }
}
