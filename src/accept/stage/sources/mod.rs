//! `--source-conns` and `--source-rate`: what each source has open, and how fast it comes.
//!
//! A source is an IPv4 address or a /64 of IPv6. The table is bounded: where there is no place for one more source, the smallest
//! of those at hand is forgotten, and begins anew when it comes again. So nobody is refused because the table is full.
//!
//! No worker reports what it closes. A connection is noted when it comes, and once a source seems to have as many as it may,
//! the kernel is asked which of them are still open. What that may cost is bounded as well: see `checks.rs`.

mod checks;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::sys::sock_open::{BATCH, Ends};
use checks::{Allowance, Budget};

/// The table's sets; a source may be in one of them.
const SETS: usize = 4096;
/// Sources in a set, at most.
const WAYS: usize = 16;
/// Connections noted for all sources, at most.
const MAX_NOTED: usize = 1 << 18;
/// The size of a source that nobody comes from is halved each time this is over.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// As many connections may come at once as in this time at the allowed rate.
const BURST: Duration = Duration::from_secs(1);

/// What a source may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceLimits {
    /// Connections at a time.
    pub conns: Option<u32>,
    /// Connections per second.
    pub rate: Option<u32>,
}

impl SourceLimits {
    pub fn any(&self) -> bool {
        self.conns.is_some() || self.rate.is_some()
    }
}

/// The limit that a source has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    Conns,
    Rate,
}

/// An answer of the kernel's: which connections are open.
pub(super) type Open<'a> = &'a mut dyn FnMut(&[Ends]) -> io::Result<[bool; BATCH]>;

#[derive(Debug)]
struct Source {
    key: u128,
    /// Connections that were open when they were last looked at.
    noted: Vec<Ends>,
    /// When the next connection would come at the allowed rate.
    due: Instant,
    /// When the last connection came.
    seen: Instant,
    allowance: Allowance,
}

/// The sources of a service's connections.
#[derive(Debug)]
pub(super) struct Sources {
    sets: Vec<Vec<Source>>,
    /// Nobody outside can choose addresses that share a set.
    hasher: RandomState,
    /// Connections noted in all.
    noted: usize,
    max_noted: usize,
    /// The set in which the next source is forgotten when too many connections are noted.
    hand: usize,
    budget: Budget,
}

/// The source of an address: all of IPv4, half of IPv6.
fn key(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
    }
}

impl Source {
    fn new(key: u128, now: Instant) -> Self {
        Self { key, noted: Vec::new(), due: now, seen: now, allowance: Allowance::new(now) }
    }

    /// Notes a connection. Memory grows by half of what is noted.
    fn note(&mut self, ends: Ends) {
        if self.noted.len() == self.noted.capacity() {
            self.noted.reserve_exact(self.noted.len() / 2 + 1);
        }
        self.noted.push(ends);
        self.allowance.earn(self.noted.len());
    }

    /// Gives back memory of connections that are over: a source could make others pay for the most that it ever had.
    fn shrink(&mut self) {
        if self.noted.capacity() > self.noted.len() + self.noted.len() / 2 {
            self.noted.shrink_to(self.noted.len() + self.noted.len() / 4);
        }
    }

    /// How much would be forgotten with it.
    fn size(&self, now: Instant, rate: Option<u32>) -> usize {
        let ahead = self.due.saturating_duration_since(now).as_secs_f64() * f64::from(rate.unwrap_or(0));
        let halves = now.saturating_duration_since(self.seen).as_secs() / HALF_LIFE.as_secs();
        ahead.ceil() as usize + (self.noted.len() >> halves.min(31))
    }

    fn is_too_fast(&self, rate: u32, now: Instant) -> bool {
        self.due > now + (BURST - Duration::from_secs(1) / rate.max(1))
    }
}

impl Sources {
    pub fn new(now: Instant) -> Self {
        Self::bounded(SETS, MAX_NOTED, now)
    }

    fn bounded(sets: usize, max_noted: usize, now: Instant) -> Self {
        let sets = std::iter::repeat_with(Vec::new).take(sets).collect();
        Self { sets, hasher: RandomState::new(), noted: 0, max_noted, hand: 0, budget: Budget::new(now) }
    }

    /// A connection came. Notes it, unless its source has as much as it may. `ends`: where connections at a time are limited.
    ///
    /// # Errors
    /// When the kernel does not say what is open; `NotFound`: it does not know the one that came. That is not noted then, and
    /// the others stay: it may have been reset already.
    pub fn comes(
        &mut self,
        ip: IpAddr,
        ends: Option<Ends>,
        limits: SourceLimits,
        now: Instant,
        open: Open<'_>,
    ) -> io::Result<Option<Reached>> {
        let key = key(ip);
        let set = self.hasher.hash_one(key) as usize % self.sets.len();
        let at = match self.sets[set].iter().position(|source| source.key == key) {
            Some(at) => at,
            None => self.place(set, Source::new(key, now), limits.rate, now),
        };
        let source = &mut self.sets[set][at];
        source.seen = now;
        if limits.rate.is_some_and(|rate| source.is_too_fast(rate, now)) {
            return Ok(Some(Reached::Rate));
        }
        if let Some((ends, conns)) = ends.zip(limits.conns) {
            let full = |source: &Source| source.noted.len() >= conns as usize;
            if full(source) {
                let Source { noted, allowance, .. } = source;
                let had = noted.len();
                let checked = allowance.check(noted, ends, &mut self.budget, now, open);
                self.noted -= (had - source.noted.len()).min(self.noted);
                source.shrink();
                checked?;
            }
            if full(source) {
                return Ok(Some(Reached::Conns));
            }
            source.note(ends);
            self.noted += 1;
        }
        if let Some(rate) = limits.rate {
            source.due = source.due.max(now) + Duration::from_secs(1) / rate.max(1);
        }
        self.make_room(set, key, limits.rate, now);
        Ok(None)
    }

    /// Puts a source into its set, in place of the smallest one if that is full.
    fn place(&mut self, set: usize, source: Source, rate: Option<u32>, now: Instant) -> usize {
        if self.sets[set].len() >= WAYS {
            self.forget_smallest(set, None, rate, now);
        }
        self.sets[set].push(source);
        self.sets[set].len() - 1
    }

    /// Forgets the smallest source of a set, among equals the one that was quiet for longest; not this one.
    fn forget_smallest(&mut self, set: usize, spare: Option<u128>, rate: Option<u32>, now: Instant) {
        let candidates = self.sets[set].iter().enumerate().filter(|(_, source)| Some(source.key) != spare);
        if let Some((at, _)) = candidates.min_by_key(|(_, source)| (source.size(now, rate), source.seen)) {
            let forgotten = self.sets[set].swap_remove(at);
            self.noted -= forgotten.noted.len().min(self.noted);
        }
    }

    /// Forgets sources while too many connections are noted, the smallest of one set after the other; not the one that came.
    fn make_room(&mut self, set: usize, key: u128, rate: Option<u32>, now: Instant) {
        let mut looks = 0;
        while self.noted > self.max_noted && looks < self.sets.len() {
            looks += 1;
            self.hand = (self.hand + 1) % self.sets.len();
            self.forget_smallest(self.hand, (self.hand == set).then_some(key), rate, now);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
