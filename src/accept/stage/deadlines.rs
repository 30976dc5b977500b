//! When the time of connections in the stage is over, and which of them go first where there are too many.

use std::collections::BTreeSet;
use std::time::Instant;

use super::steps::Step;

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

    /// A place whose deadline is over.
    pub fn due(&self, now: Instant) -> Option<usize> {
        self.0.first().filter(|(at, _)| *at <= now).map(|(_, place)| *place)
    }
}

/// The order in which connections make room for others: those that have sent nothing, then those whose key is
/// looked for, who only lose that, then the others, and of each the one that came first. A long wait for a first byte is not to cost a connection with a shorter deadline its place.
#[derive(Debug, Default)]
pub struct Evictions(BTreeSet<(Rank, Instant, usize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Silent,
    Keyless,
    Other,
}

impl Rank {
    fn of(step: Step) -> Self {
        match step {
            Step::FirstByte => Self::Silent,
            Step::Key => Self::Keyless,
            Step::Header | Step::Client | Step::Session => Self::Other,
        }
    }
}

impl Evictions {
    pub(super) fn insert(&mut self, step: Step, since: Instant, place: usize) {
        self.0.insert((Rank::of(step), since, place));
    }

    pub(super) fn remove(&mut self, step: Step, since: Instant, place: usize) {
        self.0.remove(&(Rank::of(step), since, place));
    }

    /// The place of the next one.
    pub fn next(&self) -> Option<usize> {
        self.0.first().map(|(_, _, place)| *place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_silent_make_room_first_then_those_without_a_key_and_the_oldest_of_each_before_the_others() {
        let (start, mut evictions) = (Instant::now(), Evictions::default());
        let came = [Step::Session, Step::Header, Step::FirstByte, Step::FirstByte, Step::Key, Step::Key, Step::Header];
        let at = |place| start + Duration::from_secs(place);
        for (place, step) in came.into_iter().enumerate() {
            evictions.insert(step, at(place as u64), place);
        }
        // It has sent its header, and nothing after that.
        evictions.remove(Step::Header, at(1), 1);
        evictions.insert(Step::FirstByte, at(1), 1);
        let mut order = Vec::new();
        while let Some(place) = evictions.next() {
            let step = if place == 1 { Step::FirstByte } else { came[place] };
            evictions.remove(step, at(place as u64), place);
            order.push(place);
        }
        assert_eq!(order, [1, 2, 3, 4, 5, 0, 6]);
    }
}
