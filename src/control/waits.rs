//! How long clients waited in the master that then got a worker, as data.

use serde::{Deserialize, Serialize};

/// A histogram of waits. As JSON `{"counts": […], "sum_s": …}`: bounds are the doublings of a millisecond, and the last bucket
/// has none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Plain", into = "Plain")]
pub struct WaitState {
    /// Upper bounds in seconds, each with the waits above the one before.
    pub buckets: Vec<(f64, u64)>,
    /// In seconds.
    pub sum: f64,
}

#[derive(Serialize, Deserialize)]
struct Plain {
    counts: Vec<u64>,
    sum_s: f64,
}

impl From<WaitState> for Plain {
    fn from(WaitState { buckets, sum }: WaitState) -> Self {
        Self { counts: buckets.into_iter().map(|(_, count)| count).collect(), sum_s: sum }
    }
}

impl From<Plain> for WaitState {
    fn from(Plain { counts, sum_s }: Plain) -> Self {
        let last = counts.len().saturating_sub(1);
        let bound = |at: usize| if at == last { f64::INFINITY } else { 2_f64.powi(at as i32) / 1e3 };
        Self { buckets: counts.into_iter().enumerate().map(|(at, count)| (bound(at), count)).collect(), sum: sum_s }
    }
}

impl WaitState {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The bound in seconds below which this part of all waits is; infinite where the last bucket is needed.
    pub fn below(&self, part: f64) -> f64 {
        let (wanted, mut seen) = ((self.count() as f64 * part).ceil() as u64, 0_u64);
        let reaches = |(_, count): &&(f64, u64)| {
            seen = seen.saturating_add(*count);
            seen >= wanted
        };
        self.buckets.iter().find(reaches).map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_control_socket_and_tells_below_what_a_part_is() {
        let waits: WaitState = serde_json::from_str(r#"{"counts":[5,0,4,1],"sum_s":0.5}"#).unwrap();
        assert_eq!(waits.buckets, [(0.001, 5), (0.002, 0), (0.004, 4), (f64::INFINITY, 1)]);
        assert_eq!(serde_json::to_string(&waits).unwrap(), r#"{"counts":[5,0,4,1],"sum_s":0.5}"#);
        assert_eq!((waits.count(), waits.below(0.5), waits.below(0.51)), (10, 0.001, 0.004));
        assert_eq!(waits.below(0.99), f64::INFINITY);
        assert_eq!(WaitState::default().count(), 0);
    }
}
