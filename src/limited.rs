//! Rate limit for warnings that peers can cause: at most one a second of each kind.

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
