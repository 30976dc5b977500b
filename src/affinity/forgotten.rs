//! Sessions that are over, for some time: a request of one need not wait for a report that never comes.

use std::collections::HashSet;

/// At least so many of the last ones are known, and twice as many at most (9 bytes each, rounded up to a power of two).
const MAX: usize = 65_536;

/// Digests in two sets: when the younger one is full, it takes the place of the older one.
#[derive(Debug)]
pub struct Forgotten {
    younger: HashSet<u64>,
    older: HashSet<u64>,
    max: usize,
}

impl Default for Forgotten {
    fn default() -> Self {
        Self { younger: HashSet::new(), older: HashSet::new(), max: MAX }
    }
}

impl Forgotten {
    pub fn add(&mut self, session: u64) {
        if self.younger.len() >= self.max {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(session);
    }

    pub fn contains(&self, session: u64) -> bool {
        self.younger.contains(&session) || self.older.contains(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_known_and_there_is_a_bound() {
        let mut forgotten = Forgotten { max: 4, ..Forgotten::default() };
        for last in 0..100 {
            forgotten.add(last);
            forgotten.add(last);
            assert!((last.saturating_sub(3)..=last).all(|session| forgotten.contains(session)), "{last}");
            assert!(forgotten.younger.len() + forgotten.older.len() <= 8);
            assert!(!forgotten.contains(last + 1) && (last < 8 || !forgotten.contains(last - 8)));
        }
    }
}
