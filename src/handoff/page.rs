//! The counters page of a relay worker, from both sides.

use std::io;
use std::ops::AddAssign;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::page::{ROW_WORDS, ROWS, header, latency, row, upstream};
use crate::sys::mmap::SharedPage;

/// The most connections that one process can have open (the kernel's ceiling on descriptors): a page that
/// claims more is not believed.
pub(super) const MAX_OPEN: u64 = 1 << 30;

/// A worker's counters as its peer wrote them, each checked for range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections received, ever.
    pub received: u64,
    /// Received and not yet closed.
    pub open: u64,
    /// Bytes from and to clients.
    pub bytes_in: u64,
    /// See `bytes_in`.
    pub bytes_out: u64,
    /// Connections reset because no upstream could be reached.
    pub unreachable: u64,
    /// Sockets lost to a full descriptor table; 0 unless something else eats the worker's descriptors.
    pub truncated: u64,
    /// How long hand-offs took: [`latency::bucket`]s, none of them cumulative.
    pub latencies: [u64; latency::BUCKETS],
    /// Their sum in nanoseconds.
    pub latency_ns: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { received, open, bytes_in, bytes_out, unreachable, truncated, latencies, latency_ns } = other;
        let pairs = [
            (&mut self.received, received),
            (&mut self.open, open),
            (&mut self.bytes_in, bytes_in),
            (&mut self.bytes_out, bytes_out),
            (&mut self.unreachable, unreachable),
            (&mut self.truncated, truncated),
            (&mut self.latency_ns, latency_ns),
        ];
        let latencies = self.latencies.iter_mut().zip(latencies);
        pairs.into_iter().chain(latencies).for_each(|(mine, theirs)| *mine = mine.saturating_add(theirs));
    }
}

/// The counters page of one worker generation.
#[derive(Debug)]
pub struct CountersPage(SharedPage);

impl CountersPage {
    /// A fresh page and the descriptor that goes to the worker.
    ///
    /// # Errors
    /// As memfd_create(2) and mmap(2).
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let (page, fd) = SharedPage::create()?;
        Ok((Self(page), fd))
    }

    /// The worker's view of a page that it was given.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn attach(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(SharedPage::map(fd)?))
    }

    /// One word of process row `index` (0 is the first process).
    pub fn word(&self, index: usize, place: usize) -> &AtomicU64 {
        let at = (1 + index % ROWS) * ROW_WORDS + place % ROW_WORDS;
        &self.0.words()[at]
    }

    /// Adds to a word of the first row; the relay worker is its only writer.
    pub fn add(&self, place: usize, n: u64) {
        add(self.word(0, place), n);
    }

    /// Adds to a word of an upstream's; the relay worker is its only writer.
    pub fn add_upstream(&self, at: usize, place: usize, n: u64) {
        add(self.upstream_word(at, place), n);
    }

    pub(super) fn upstream_word(&self, at: usize, place: usize) -> &AtomicU64 {
        &self.0.words()[upstream::FIRST + (at % upstream::MAX) * upstream::WORDS + place % upstream::WORDS]
    }

    /// Says how many clients wait for an upstream.
    pub fn set_waiting(&self, count: usize) {
        self.word(0, row::WAITING).store(count as u64, Ordering::Relaxed);
    }

    /// Clients that wait for an upstream.
    pub fn waiting(&self) -> u64 {
        self.word(0, row::WAITING).load(Ordering::Relaxed).min(MAX_OPEN)
    }

    /// Counts hand-offs that took so long. A relay worker is the only writer of its page.
    pub fn record_latency(&self, handoffs: u64, ns: u64) {
        let words = self.0.words();
        for (place, n) in
            [(latency::FIRST + latency::bucket(ns), handoffs), (latency::SUM, ns.saturating_mul(handoffs))]
        {
            words[place].store(words[place].load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Says up to which number the master has closed its copies of the sockets that it sent.
    pub fn release(&self, number: u64) {
        self.0.words()[header::RELEASED].store(number, Ordering::Release);
    }

    /// Whether processes that close a stand-in which they inherited are to say so.
    pub fn report_closes(&self, on: bool) {
        self.0.words()[header::CLOSES].store(u64::from(on), Ordering::SeqCst);
    }

    /// Whether all that was sent to a server is counted as received. Where some was taken back it never is.
    pub fn all_received(&self) -> bool {
        self.received_and_open().0 == self.0.words()[header::RELEASED].load(Ordering::Acquire)
    }

    /// The rows in use: a relay worker has one, a server as many as it has processes that received something.
    fn rows(&self) -> impl Iterator<Item = usize> {
        (0..ROWS).take_while(|&at| self.word(at, row::PID).load(Ordering::Relaxed) != 0)
    }

    fn open_in(&self, at: usize) -> u64 {
        let closed = self.word(at, row::CLOSED).load(Ordering::Acquire);
        let received = self.word(at, row::RECEIVED).load(Ordering::Acquire);
        received.saturating_sub(closed).min(MAX_OPEN)
    }

    /// Connections open.
    pub fn open(&self) -> u64 {
        self.rows().map(|at| self.open_in(at)).sum()
    }

    /// Whether what is open is an estimate: a process passes connections on to its children.
    pub fn is_estimate(&self) -> bool {
        self.0.words()[header::ESTIMATE].load(Ordering::Relaxed) != 0
    }

    /// Connections received, ever (those that were lost to a full descriptor table included), and those open.
    pub fn received_and_open(&self) -> (u64, u64) {
        self.rows().fold((0, 0), |(received, open): (u64, u64), at| {
            let word = |place| self.word(at, place).load(Ordering::Acquire);
            let (closed, lost, taken) = (word(row::CLOSED), word(row::TRUNCATED), word(row::RECEIVED));
            let open_here = taken.saturating_sub(closed).min(MAX_OPEN);
            (received.wrapping_add(taken).wrapping_add(lost), open + open_here)
        })
    }

    /// Connections open in processes that are alive: a row goes with its process.
    pub fn open_alive(&self) -> u64 {
        let alive = |at: &usize| {
            let pid = self.word(*at, row::PID).load(Ordering::Relaxed);
            std::path::Path::new(&format!("/proc/{pid}")).exists()
        };
        self.rows().filter(alive).map(|at| self.open_in(at)).sum()
    }

    /// All counters, over all rows.
    pub fn counts(&self) -> Counts {
        let get = |place| self.rows().map(|at| self.word(at, place).load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
        let behind = |place: usize| self.0.words()[place].load(Ordering::Relaxed);
        Counts {
            latencies: std::array::from_fn(|at| behind(latency::FIRST + at)),
            latency_ns: behind(latency::SUM),
            received: get(row::RECEIVED),
            open: self.open(),
            bytes_in: get(row::BYTES_IN),
            bytes_out: get(row::BYTES_OUT),
            unreachable: get(row::UNREACHABLE),
            truncated: get(row::TRUNCATED),
        }
    }
}

/// A plain load and store: with one writer there is nothing to lose, and a locked add costs more.
fn add(word: &AtomicU64, n: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn both_sides_see_the_same_words_and_nonsense_is_bounded() {
        let (ours, fd) = CountersPage::create().unwrap();
        let theirs = CountersPage::attach(fd.as_fd()).unwrap();
        theirs.add(row::PID, 1);
        theirs.add(row::RECEIVED, 5);
        theirs.add(row::CLOSED, 2);
        assert_eq!(ours.open(), 3);
        theirs.add(row::CLOSED, u64::MAX / 2);
        assert_eq!(ours.open(), 0, "more closed than received is nonsense, not a huge number");
        theirs.add(row::RECEIVED, u64::MAX - 10);
        assert!(ours.open() <= MAX_OPEN);
    }

    #[test]
    fn a_latency_is_counted_in_the_bucket_below_whose_bound_it_is() {
        let (page, _fd) = CountersPage::create().unwrap();
        let mut expected = [0; latency::BUCKETS];
        for (ns, bucket) in [(0, 0), (8_191, 0), (8_192, 1), (16_384, 2), (500_000_000, 16), (u64::MAX / 4, 17)] {
            assert_eq!(latency::bucket(ns), bucket, "{ns}");
            assert!(bucket + 1 == latency::BUCKETS || ns < latency::bound(bucket));
            page.record_latency(2, ns);
            expected[bucket] += 2;
            assert_eq!(page.counts().latencies, expected, "{ns}");
        }
        let mut sum = page.counts();
        assert_eq!(sum.latencies.iter().sum::<u64>(), 12);
        sum += page.counts();
        assert_eq!(sum.latencies.iter().sum::<u64>(), 24);
    }

    #[test]
    fn the_page_cannot_be_shrunk_under_the_other_side() {
        let (_ours, fd) = CountersPage::create().unwrap();
        assert!(nix::unistd::ftruncate(&fd, 0).is_err());
    }
}
