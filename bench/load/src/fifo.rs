//! An ideal queue: one line for all servers, first come first served, and a free server takes the first one at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The waits that such a queue would have had with these arrivals, in their order, and these service times.
/// All times are in nanoseconds.
pub fn ideal_waits(servers: usize, requests: &[(u64, u64)]) -> Vec<u64> {
    let mut free_at: BinaryHeap<_> = (0..servers).map(|_| Reverse(0)).collect();
    let serve = |&(arrival, service): &(u64, u64)| {
        let Reverse(free) = free_at.pop().unwrap_or_default();
        let begin = arrival.max(free);
        free_at.push(Reverse(begin + service));
        begin - arrival
    };
    requests.iter().map(serve).collect()
}

/// Mean, and the value that 99 of 100 do not exceed.
pub fn mean_and_p99(waits: &[u64]) -> (f64, f64) {
    let mut sorted = waits.to_vec();
    sorted.sort_unstable();
    let mean = sorted.iter().sum::<u64>() as f64 / sorted.len().max(1) as f64;
    let p99 = sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    (mean, p99 as f64)
}

#[cfg(test)]
mod tests {
    use super::{ideal_waits, mean_and_p99};

    #[test]
    fn a_free_server_means_no_wait() {
        assert_eq!(ideal_waits(2, &[(0, 10), (1, 10), (10, 5), (20, 5)]), [0, 0, 0, 0]);
    }

    #[test]
    fn one_server_is_one_line() {
        assert_eq!(ideal_waits(1, &[(0, 10), (3, 10), (4, 1), (50, 1)]), [0, 7, 16, 0]);
    }

    #[test]
    fn the_first_server_that_is_free_takes_the_first_one_that_waits() {
        // Busy until 100 and 10: the third one starts at 10, the fourth at 15, and nobody waits for the long one.
        assert_eq!(ideal_waits(2, &[(0, 100), (0, 10), (2, 5), (3, 5)]), [0, 0, 8, 12]);
    }

    #[test]
    fn in_the_long_run_as_theory_says() {
        // M/M/1 at 50 %: the mean wait is the mean service time.
        let mut seed = 1_u64;
        let mut exponential = |mean: f64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (-mean * (1.0 - (seed >> 11) as f64 / (1_u64 << 53) as f64).ln()) as u64
        };
        let mut at = 0;
        let mut next = |_| {
            at += exponential(2_000_000.0);
            (at, exponential(1_000_000.0))
        };
        let requests: Vec<_> = (0..400_000).map(&mut next).collect();
        let (mean, _) = mean_and_p99(&ideal_waits(1, &requests));
        assert!((0.95..1.05).contains(&(mean / 1_000_000.0)), "{mean}");
    }

    #[test]
    fn quantiles() {
        let waits: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(mean_and_p99(&waits), (100.5, 198.0));
        assert_eq!(mean_and_p99(&[]), (0.0, 0.0));
    }
}
