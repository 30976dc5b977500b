//! When the kernel is asked which connections of a source are open, and how many of them. A look-up takes one or two microseconds.
//!
//! Each connection that is noted pays for some look-ups, so a source that closes what it opens is checked as often as it
//! needs: the connections that came last first, since mostly they are the first to end. One that keeps all that it has and
//! goes on trying is checked ten times a second, and all such sources together get a fixed number of look-ups per second.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::Open;
use crate::sys::sock_open::{BATCH, Ends};

/// Look-ups that each connection pays for.
const PAID: usize = 8;
/// Look-ups of the connections that came last.
const NEWEST: usize = 8;
/// Look-ups for one connection that comes, at most.
const MAX_LOOKS: usize = 1024;
/// A source without paid look-ups is checked this often at most.
const INTERVAL: Duration = Duration::from_millis(100);
/// Look-ups per second for all such sources, and how many of them at once.
const RATE: usize = 20_000;
const AT_ONCE: usize = 4096;

/// The look-ups that sources get which have not paid for them.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    since: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    fn take(&mut self, looks: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let earned = (passed.as_secs_f64() * RATE as f64) as usize;
        if earned > 0 {
            (self.left, self.since) = (self.left.saturating_add(earned).min(AT_ONCE), now);
        }
        let enough = self.left >= looks;
        if enough {
            self.left -= looks;
        }
        enough
    }
}

/// What a source's checks may cost.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Look-ups paid for.
    paid: usize,
    /// When it may be checked without.
    next: Instant,
    /// Where among the older connections the next look begins.
    at: usize,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self { paid: 0, next: now, at: 0 }
    }

    /// One more connection was noted: the source has this many.
    pub fn earn(&mut self, noted: usize) {
        self.paid = (self.paid + PAID).min(2 * noted + MAX_LOOKS);
    }

    /// Takes connections that are over out of those of a source, as far as it may be known now. `present`: one that
    /// should be open.
    ///
    /// # Errors
    /// When the kernel does not say; `NotFound` when it does not even know `present`.
    pub fn check(
        &mut self,
        noted: &mut Vec<Ends>,
        present: Ends,
        budget: &mut Budget,
        now: Instant,
        open: Open<'_>,
    ) -> io::Result<()> {
        if now >= self.next && self.paid < noted.len() && budget.take(noted.len().min(MAX_LOOKS), now) {
            self.next = now + INTERVAL;
            self.paid = noted.len().min(MAX_LOOKS);
        }
        let newest = NEWEST.min(noted.len());
        if self.paid < newest {
            return Ok(());
        }
        // Those that came before these, and how many of them were not looked at yet.
        let mut older = noted.len() - newest;
        let (mut left, mut looks) = (older, newest);
        let mut ended = self.look(noted, older..older + newest, older + newest, present, open)?;
        let mut worth = ended * 2 >= newest;
        while left > 0 && looks < MAX_LOOKS && (ended == 0 || worth) {
            self.at = if self.at < older { self.at } else { 0 };
            let count = (BATCH - 1).min(left).min(older - self.at);
            if self.paid < count {
                break;
            }
            let gone = self.look(noted, self.at..self.at + count, older, present, open)?;
            self.at += count - gone;
            (older, left, looks, ended) = (older - gone, left - count, looks + count, ended + gone);
            worth = gone * 2 >= count;
        }
        Ok(())
    }

    /// Takes those out of a range that are over; how many. Their places are filled by the last ones before `end`; those behind it
    /// are few and stay the last.
    fn look(
        &mut self,
        noted: &mut Vec<Ends>,
        range: Range<usize>,
        end: usize,
        present: Ends,
        open: Open<'_>,
    ) -> io::Result<usize> {
        self.paid -= range.len().min(self.paid);
        let mut asked = [present; BATCH];
        let asked = &mut asked[..range.len() + 1];
        asked[1..].copy_from_slice(&noted[range.clone()]);
        let [present, answers @ ..] = open(asked)?;
        if !present {
            // It was reset, or it is in another namespace: nothing can be said of the others, either.
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut kept = range.start;
        for (place, open) in range.clone().zip(answers) {
            if open {
                noted.swap(kept, place);
                kept += 1;
            }
        }
        for (place, last) in (kept..range.end).rev().zip((0..end).rev()) {
            noted.swap(place, last);
            noted.remove(last);
        }
        Ok(range.end - kept)
    }
}
