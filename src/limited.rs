//! Rate limits for what peers can cause: warnings, at most one a second of each kind, and looks at /proc.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// One kind of warning.
#[derive(Debug, Default)]
pub struct Limited {
    last: Option<Instant>,
    suppressed: u64,
}

impl Limited {
    /// If one may be written now, returns the number suppressed since the last one.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// A token bucket: so many a second, and as many at once after a pause.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub fn full(rate: f64, now: Instant) -> Self {
        Self { rate, left: rate, at: now }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is one again.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if self.left < 1.0 {
            return Err(now + Duration::from_secs_f64((1.0 - self.left) / self.rate));
        }
        self.left -= 1.0;
        Ok(())
    }

    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.rate
    }

    fn refill(&mut self, now: Instant) {
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * self.rate).min(self.rate);
        self.at = now;
    }
}

/// A bucket for each user.
#[derive(Debug)]
pub struct OfUsers {
    rate: f64,
    /// The most users that are counted.
    most: usize,
    buckets: HashMap<u32, Bucket>,
}

impl OfUsers {
    pub fn new(rate: f64, most: usize) -> Self {
        Self { rate, most, buckets: HashMap::new() }
    }

    /// Takes one from a user's bucket.
    ///
    /// # Errors
    /// When there is one again; `None` when there are too many users.
    pub fn take(&mut self, uid: u32, now: Instant) -> Result<(), Option<Instant>> {
        if self.buckets.len() >= self.most && !self.buckets.contains_key(&uid) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= self.most {
                return Err(None);
            }
        }
        let rate = self.rate;
        self.buckets.entry(uid).or_insert_with(|| Bucket::full(rate, now)).take(now).map_err(Some)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_rate_of_its_own_and_only_so_many_are_counted() {
        let (mut users, start) = (OfUsers::new(10.0, 2), Instant::now());
        assert_eq!((0..100).filter(|_| users.take(1, start).is_ok()).count(), 10);
        assert_eq!(users.take(2, start), Ok(()));
        assert_eq!(users.take(3, start), Err(None));
        let later = start + Duration::from_millis(150);
        assert_eq!((users.take(1, later), users.take(3, later)), (Ok(()), Ok(())), "the second has none to wait for");
        assert!(users.take(1, later).is_err_and(|at| at.is_some_and(|at| at > later)));
    }

    #[test]
    fn one_a_second_passes_and_the_others_are_counted() {
        let (mut limited, start) = (Limited::default(), Instant::now());
        assert_eq!(limited.pass(start), Some(0));
        for n in 1..10 {
            assert_eq!(limited.pass(start + INTERVAL / 10 * n), None);
        }
        assert_eq!(limited.pass(start + INTERVAL), Some(9));
        assert_eq!(limited.pass(start + INTERVAL * 3), Some(0));
    }
}
