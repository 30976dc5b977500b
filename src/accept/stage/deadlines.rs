//! When the time of connections in the stage is over.

use std::collections::BTreeSet;
use std::time::Instant;

/// Deadlines with the places of their connections, the next one first.
#[derive(Debug, Default)]
pub struct Deadlines(BTreeSet<(Instant, usize)>);

impl Deadlines {
    pub fn insert(&mut self, at: Instant, place: usize) {
        self.0.insert((at, place));
    }

    pub fn remove(&mut self, at: Instant, place: usize) {
        self.0.remove(&(at, place));
    }

    /// The next deadline.
    pub fn first(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The place whose deadline is the next.
    pub fn place(&self) -> Option<usize> {
        self.0.first().map(|(_, place)| *place)
    }

    /// A place whose deadline is over.
    pub fn due(&self, now: Instant) -> Option<usize> {
        self.0.first().filter(|(at, _)| *at <= now).map(|(_, place)| *place)
    }
}
