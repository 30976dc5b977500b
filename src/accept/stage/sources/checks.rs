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
/// Look-ups per second for all such sources.
const RATE: u32 = 20_000;
/// Those of this time are kept for later.
const KEPT: Duration = Duration::from_millis(200);
/// Look-ups that a source gets at a time while others wait for theirs.
const FEW: usize = 32;

/// The look-ups that sources get which have not paid for them. Each source that wants some has its turn, however often or early the
/// others come.
#[derive(Debug)]
pub(super) struct Budget {
    /// When the next ones are due; in the past: some are left.
    next: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self { next: now.checked_sub(KEPT).unwrap_or(now) }
    }

    /// Look-ups for a source that wants this many: how many it gets, and when.
    fn reserve(&mut self, wanted: usize, now: Instant) -> (usize, Instant) {
        let time = |looks: usize| Duration::from_secs(looks as u64) / RATE;
        let begin = self.next.max(now.checked_sub(KEPT).unwrap_or(now));
        let looks = if begin + time(wanted) <= now { wanted } else { wanted.min(FEW) };
        self.next = begin + time(looks);
        (looks, begin.max(now))
    }
}

/// What a source's checks may cost.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Look-ups paid for or given, and not made yet.
    paid: usize,
    /// Those that it will be given.
    reserved: usize,
    /// When these are given; without any, when it may want some again.
    next: Instant,
    /// Where among the older connections the next look begins.
    at: usize,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self { paid: 0, reserved: 0, next: now, at: 0 }
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
        let wanted = noted.len().min(MAX_LOOKS).saturating_sub(self.paid);
        if self.reserved == 0 && wanted > 0 && now >= self.next {
            (self.reserved, self.next) = budget.reserve(wanted, now);
        }
        if self.reserved > 0 && now >= self.next {
            self.paid += std::mem::take(&mut self.reserved);
            self.next = now + INTERVAL;
        }
        let newest = NEWEST.min(noted.len());
        // However few there are at a time, the older ones have their turn, too.
        if self.paid < (2 * newest).min(noted.len()) {
            return Ok(());
        }
        // Those that came before these, and how many of them were not looked at yet.
        let mut older = noted.len() - newest;
        let (mut left, mut looks) = (older, newest);
        let mut ended = self.look(noted, older..older + newest, older + newest, present, open)?;
        let mut worth = ended * 2 >= newest;
        while left > 0 && self.paid > 0 && looks < MAX_LOOKS && (ended == 0 || worth) {
            self.at = if self.at < older { self.at } else { 0 };
            let count = (BATCH - 1).min(left).min(older - self.at).min(self.paid);
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
