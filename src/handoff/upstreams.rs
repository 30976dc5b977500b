//! The table that a service's relay workers share about its upstreams: the turn, which are down, how many connections each has,
//! and their weights. Words are written by workers (weights by the master), so every value is checked when it is read.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::page::{CountersPage, MAX_OPEN};
use crate::abi::page::upstream as counter;
use crate::sys::mmap::SharedPage;
use crate::sys::reason;

/// How long an upstream is skipped after its first failure; doubled after each further one.
pub const FIRST_SKIP: Duration = Duration::from_millis(100);
pub const MAX_SKIP: Duration = Duration::from_secs(15);
/// The error of a name without an address; larger than every errno.
pub const UNRESOLVED: i32 = 4096;

/// Words of a row; row 0 is the header: the turn, then the virtual time of weighted turns.
const ROW: usize = 16;
/// End of the skip time in nanoseconds of the monotonic clock; 0 while the upstream is up or was never tried.
const UNTIL: usize = 0;
/// Time of the last attempt while it is down.
const TRIED: usize = 1;
/// Consecutive failures.
const FAILURES: usize = 2;
/// The last error's errno and time.
const ERRNO: usize = 3;
const ERROR_AT: usize = 4;
/// Failed attempts since the start.
const ERRORS: usize = 5;
/// Connections open or being opened, of all workers.
const OPEN: usize = 6;
/// The weight plus one; 0: that of the configuration. Written by the master.
const WEIGHT: usize = 7;
/// When its last turn ended, in virtual time.
const FINISH: usize = 8;

/// How long a failed address is skipped. Times are nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skip {
    /// End of the skip time; 0 unless the last attempt failed.
    pub until: u64,
    /// Time of the last attempt.
    pub tried: u64,
    /// Consecutive failures.
    pub failures: u64,
}

impl Skip {
    pub fn is_down(self) -> bool {
        self.until != 0
    }

    pub fn failed(self, now: u64) -> Self {
        // Attempts that were begun together and failed together count once.
        let together = self.is_down() && now.saturating_sub(self.tried) < ns(FIRST_SKIP) / 2;
        let failures = if together { self.failures.max(1) } else { self.failures.saturating_add(1) };
        let skip = ns(FIRST_SKIP).saturating_mul(1 << (failures - 1).min(10)).min(ns(MAX_SKIP));
        Self { until: now.saturating_add(skip), tried: now, failures }
    }

    /// One attempt begins: no others until it has had time to end.
    pub fn trying(self, now: u64) -> Self {
        Self { until: self.until.max(now.saturating_add(ns(FIRST_SKIP))), tried: now, ..self }
    }
}

pub fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An upstream's health as its workers see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// The last attempt failed; with several addresses, the last attempt at each.
    pub down: bool,
    /// Failed attempts since the start.
    pub errors: u64,
    pub errno: Option<i32>,
    /// Time of the last error: nanoseconds of the monotonic clock.
    pub error_at: u64,
}

impl Health {
    pub fn error(&self) -> Option<String> {
        self.errno.map(|errno| match errno {
            UNRESOLVED => "the name does not resolve".to_owned(),
            errno => reason(&io::Error::from_raw_os_error(errno)),
        })
    }
}

/// The table: a row per upstream, in the order of the configuration.
#[derive(Debug)]
pub struct UpstreamTable(Words);

#[derive(Debug)]
enum Words {
    Shared(SharedPage),
    /// For a worker that shares its upstream with no other.
    Own(Box<[AtomicU64]>),
}

impl UpstreamTable {
    /// A table for the workers of a service, and the descriptor to pass to each of them.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let (page, fd) = SharedPage::create()?;
        Ok((Self(Words::Shared(page)), fd))
    }

    /// Maps the table behind a descriptor from [`UpstreamTable::create`].
    pub fn attach(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Words::Shared(SharedPage::map(fd)?)))
    }

    /// A table that is not shared.
    pub fn own() -> Self {
        Self(Words::Own((0..ROW * (1 + counter::MAX)).map(|_| AtomicU64::new(0)).collect()))
    }

    fn word(&self, at: usize, place: usize) -> &AtomicU64 {
        &self.words()[ROW * (1 + at % counter::MAX) + place % ROW]
    }

    fn words(&self) -> &[AtomicU64] {
        match &self.0 {
            Words::Shared(page) => page.words(),
            Words::Own(words) => words,
        }
    }

    fn header(&self) -> &AtomicU64 {
        &self.words()[0]
    }

    /// Where the next search for an upstream begins.
    pub fn turn(&self) -> usize {
        usize::try_from(self.header().load(Relaxed)).unwrap_or(0)
    }

    /// Moves the turn on, unless another worker has done so since it was read.
    pub fn take_turn(&self, seen: usize, next: usize) -> bool {
        self.header().compare_exchange(seen as u64, next as u64, Relaxed, Relaxed).is_ok()
    }

    /// The weight that was set at run time or by the configuration of the master; `None`: none was.
    pub fn weight(&self, at: usize) -> Option<u16> {
        let weight = self.word(at, WEIGHT).load(Relaxed).checked_sub(1)?;
        u16::try_from(weight).ok().filter(|&weight| weight <= counter::MAX_WEIGHT)
    }

    /// Sets a weight, 0 to 256.
    pub fn set_weight(&self, at: usize, weight: u16) {
        self.word(at, WEIGHT).store(u64::from(weight) + 1, Relaxed);
    }

    /// The virtual time, and when the last turn of an upstream ended in it. Only their difference means something.
    pub fn virtual_time(&self, at: usize) -> (u64, u64) {
        (self.words()[1].load(Relaxed), self.word(at, FINISH).load(Relaxed))
    }

    /// Gives an upstream a turn, unless another worker has done so since `seen` was read: it ends at `finish`, and the
    /// time goes on from `now` to `start`.
    pub fn take_weighted_turn(&self, at: usize, seen: u64, finish: u64, (now, start): (u64, u64)) -> bool {
        let taken = self.word(at, FINISH).compare_exchange(seen, finish, Relaxed, Relaxed).is_ok();
        if taken && start != now {
            let _ = self.words()[1].compare_exchange(now, start, Relaxed, Relaxed);
        }
        taken
    }

    /// Connections open or being opened, of all workers.
    pub fn open(&self, at: usize) -> u64 {
        let open = self.word(at, OPEN).load(Relaxed);
        // A wrapped counter (more closed than opened), or garbage.
        if open > MAX_OPEN { 0 } else { open }
    }

    pub fn opened(&self, at: usize) {
        self.word(at, OPEN).fetch_add(1, Relaxed);
    }

    /// `count` connections ended.
    pub fn closed(&self, at: usize, count: u64) {
        self.word(at, OPEN).fetch_sub(count, Relaxed);
    }

    /// End of the skip time; 0 while it is up.
    pub fn until(&self, at: usize, now: u64) -> u64 {
        // Whatever another worker writes here, an upstream is skipped for no longer than after a failure.
        self.word(at, UNTIL).load(Relaxed).min(now.saturating_add(ns(MAX_SKIP)))
    }

    pub fn skip(&self, at: usize, now: u64) -> Skip {
        let word = |place| self.word(at, place).load(Relaxed);
        Skip { until: self.until(at, now), tried: word(TRIED).min(now), failures: word(FAILURES) }
    }

    /// An attempt begins at an upstream that is down.
    pub fn trying(&self, at: usize, now: u64) {
        let skip = self.skip(at, now);
        let next = skip.trying(now);
        self.word(at, TRIED).store(next.tried, Relaxed);
        self.extend(at, skip.until, next.until);
    }

    /// The upstream has another address: if it is down, it may be tried at once.
    pub fn moved(&self, at: usize, now: u64) {
        self.extend(at, self.until(at, now), 1);
    }

    /// Changes the end of the skip time unless the upstream came up or failed since it was read.
    fn extend(&self, at: usize, seen: u64, until: u64) {
        if seen != 0 {
            let _ = self.word(at, UNTIL).compare_exchange(seen, until, Relaxed, Relaxed);
        }
    }

    pub fn error(&self, at: usize, errno: i32, now: u64) {
        self.word(at, ERRORS).fetch_add(1, Relaxed);
        self.word(at, ERRNO).store(u64::try_from(errno).unwrap_or(0), Relaxed);
        self.word(at, ERROR_AT).store(now, Relaxed);
    }

    /// Marks it down. Returns whether it was up before.
    pub fn set_down(&self, at: usize, skip: Skip) -> bool {
        self.word(at, TRIED).store(skip.tried, Relaxed);
        self.word(at, FAILURES).store(skip.failures, Relaxed);
        self.word(at, UNTIL).swap(skip.until.max(1), Relaxed) == 0
    }

    /// Marks it up. Returns whether it was down before.
    pub fn set_up(&self, at: usize) -> bool {
        if self.word(at, UNTIL).load(Relaxed) == 0 {
            return false;
        }
        self.word(at, FAILURES).store(0, Relaxed);
        self.word(at, UNTIL).swap(0, Relaxed) != 0
    }

    pub fn health(&self, at: usize) -> Health {
        let word = |place| self.word(at, place).load(Relaxed);
        let errno = i32::try_from(word(ERRNO)).ok().filter(|errno| (1..=UNRESOLVED).contains(errno));
        Health { down: word(UNTIL) != 0, errors: word(ERRORS), errno, error_at: word(ERROR_AT) }
    }
}

/// A worker's counters for one upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UpstreamCounts {
    /// Connections open or being opened.
    pub open: u64,
    /// Connections established since the start.
    pub connections: u64,
    /// Bytes from clients to it.
    pub bytes_in: u64,
    /// Bytes from it to clients.
    pub bytes_out: u64,
}

impl std::ops::AddAssign for UpstreamCounts {
    fn add_assign(&mut self, other: Self) {
        self.open = self.open.saturating_add(other.open);
        self.connections = self.connections.saturating_add(other.connections);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }
}

impl CountersPage {
    /// The worker's counters for an upstream.
    pub fn upstream(&self, at: usize) -> UpstreamCounts {
        let word = |place| self.upstream_word(at, place).load(Relaxed);
        UpstreamCounts {
            open: word(counter::ATTEMPTS).saturating_sub(word(counter::ENDED)).min(MAX_OPEN),
            connections: word(counter::CONNECTIONS),
            bytes_in: word(counter::BYTES_IN),
            bytes_out: word(counter::BYTES_OUT),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn all_workers_see_one_state_and_one_turn() {
        let (master, fd) = UpstreamTable::create().unwrap();
        let [a, b] = [(); 2].map(|()| UpstreamTable::attach(fd.as_fd()).unwrap());
        assert!(a.set_down(3, Skip::default().failed(SECOND)));
        assert!(!b.set_down(3, b.skip(3, 2 * SECOND).failed(2 * SECOND)), "it was down already");
        assert_eq!(a.skip(3, 2 * SECOND).failures, 2);
        a.error(3, libc::ECONNREFUSED, SECOND);
        assert_eq!(
            master.health(3),
            Health { down: true, errors: 1, errno: Some(libc::ECONNREFUSED), error_at: SECOND }
        );
        assert!(b.set_up(3) && !a.set_up(3));
        assert!(!master.health(3).down);
        let turn = a.turn();
        assert!(b.take_turn(turn, 1));
        assert!(!a.take_turn(turn, 1), "another worker has had it");
    }

    #[test]
    fn nonsense_is_bounded() {
        let (table, now) = (UpstreamTable::own(), 100 * SECOND);
        for place in 0..ROW {
            table.word(7, place).store(u64::MAX, Relaxed);
        }
        assert_eq!(table.open(7), 0);
        assert_eq!(table.skip(7, now).until, now + ns(MAX_SKIP));
        assert_eq!(table.skip(7, now).failed(now).until, now + ns(MAX_SKIP));
        assert_eq!(table.health(7).error(), None);
        assert_eq!(table.weight(7), None);
        table.set_weight(7, 256);
        assert_eq!(table.weight(7), Some(256));
        table.header().store(u64::MAX, Relaxed);
        let _ = table.turn();
        table.closed(8, 3);
        assert_eq!(table.open(8), 0, "more closed than opened");
        assert_eq!(table.open(usize::MAX), table.open(usize::MAX % counter::MAX));
    }
}
