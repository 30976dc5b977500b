//! How a service ends: readiness off, backlog taken, connections finished, servers told, the rest killed.

use std::time::{Duration, Instant};

/// Of the stop time, connections have this part to end; the rest is for the servers' own ends.
const DRAIN_SHARE: f64 = 0.75;
/// Services that come after this one have this part of the stop time to end before it.
pub const OTHERS_SHARE: f64 = 0.5;

/// The steps of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The listeners stay open for the stop delay.
    Delay,
    /// The backlog is being taken, connections end.
    Drain,
    /// Time for connections is up: relay workers are killed, servers told.
    Told,
    /// All time is up: everything is killed.
    Killed,
}

/// A stop under way.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Where it is.
    pub step: Step,
    listen_until: Instant,
    drain_until: Instant,
    end: Instant,
}

impl Stop {
    /// Begins at `now`.
    pub fn new(now: Instant, delay: Duration, timeout: Duration) -> Self {
        let listen_until = now + delay;
        let drain_until = listen_until + timeout.mul_f64(DRAIN_SHARE);
        Self { step: Step::Delay, listen_until, drain_until, end: listen_until + timeout }
    }

    /// The next step, if it is due.
    pub fn due(&mut self, now: Instant) -> Option<Step> {
        let (at, next) = self.next()?;
        if now < at {
            return None;
        }
        self.step = next;
        Some(next)
    }

    fn next(&self) -> Option<(Instant, Step)> {
        match self.step {
            Step::Delay => Some((self.listen_until, Step::Drain)),
            Step::Drain => Some((self.drain_until, Step::Told)),
            Step::Told => Some((self.end, Step::Killed)),
            Step::Killed => None,
        }
    }

    /// Whether the listeners are closed, or are being closed.
    pub fn closes(&self) -> bool {
        self.step != Step::Delay
    }

    /// When the next step is due.
    pub fn next_due(&self) -> Option<Instant> {
        Some(self.next()?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_come_in_order_and_within_the_time() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut stop = Stop::new(now, second, 8 * second);
        assert_eq!(stop.due(now), None);
        let at = |seconds: f64| now + second.mul_f64(seconds);
        for (seconds, step) in [(1.0, Step::Drain), (7.0, Step::Told), (9.0, Step::Killed)] {
            assert_eq!(stop.due(at(seconds - 0.1)), None);
            assert_eq!(stop.due(at(seconds)), Some(step));
        }
        assert_eq!(stop.next_due(), None);
    }
}
