//! The counters page of a relay worker or a server, from both sides.

mod accepting;

use std::io;
use std::ops::AddAssign;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::abi::page::{ROW_WORDS, ROWS, addresses, header, latency, moving, room, row, upstream};
use crate::sys::mmap::SharedPage;

/// The most connections that one process can have open (the kernel's ceiling on descriptors): a page that
/// claims more is not believed.
pub(super) const MAX_OPEN: u64 = 1 << 30;

/// When a worker rings the doorbell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Rings {
    #[default]
    Never = room::NOT_WANTED,
    AfterCloses = room::AFTER_CLOSES,
    /// After each close, and after each message that it receives.
    AfterReceives = room::AFTER_RECEIVES,
}

/// A worker's counters, written by its processes, each checked for range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Connections received since the start.
    pub received: u64,
    /// Received and not yet closed.
    pub open: u64,
    /// Bytes from and to clients.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Connections reset because no upstream could be reached.
    pub unreachable: u64,
    /// Sockets lost to a full descriptor table; 0 unless something else eats the worker's descriptors.
    pub truncated: u64,
    /// Connections whose server sees the balancer's address in place of the client's.
    pub addresses_lost: u64,
    /// Hand-offs by latency: [`latency::bucket`]s, not cumulative.
    pub latencies: [u64; latency::BUCKETS],
    /// Sum of the latencies in nanoseconds.
    pub latency_ns: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self { received, open, bytes_in, bytes_out, unreachable, truncated, addresses_lost, latencies, latency_ns } =
            other;
        let pairs = [
            (&mut self.received, received),
            (&mut self.open, open),
            (&mut self.bytes_in, bytes_in),
            (&mut self.bytes_out, bytes_out),
            (&mut self.unreachable, unreachable),
            (&mut self.truncated, truncated),
            (&mut self.addresses_lost, addresses_lost),
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
    /// A new page and the descriptor to pass to the worker.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        let (page, fd) = SharedPage::create()?;
        Ok((Self(page), fd))
    }

    /// Maps the page behind a descriptor from [`CountersPage::create`].
    pub fn attach(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(SharedPage::map(fd)?))
    }

    /// One word of process row `index` (0 is the first process).
    pub fn word(&self, index: usize, place: usize) -> &AtomicU64 {
        let at = (1 + index % ROWS) * ROW_WORDS + place % ROW_WORDS;
        &self.0.words()[at]
    }

    /// Adds to the pid and the received connections of the first row.
    #[cfg(test)]
    pub fn receives(&self, pid: u32, connections: u64) {
        self.add(row::PID, u64::from(pid));
        self.add(row::RECEIVED, connections);
    }

    /// Adds to a word of the first row. Only for the relay worker, its single writer.
    pub fn add(&self, place: usize, n: u64) {
        add(self.word(0, place), n);
    }

    /// Adds to a word of an upstream. Only for the relay worker, its single writer.
    pub fn add_upstream(&self, at: usize, place: usize, n: u64) {
        add(self.upstream_word(at, place), n);
    }

    pub(super) fn upstream_word(&self, at: usize, place: usize) -> &AtomicU64 {
        &self.0.words()[upstream::FIRST + (at % upstream::MAX) * upstream::WORDS + place % upstream::WORDS]
    }

    pub fn set_waiting(&self, count: usize) {
        self.word(0, row::WAITING).store(count as u64, Ordering::Relaxed);
    }

    /// Counts a connection that is closed or only waits for the client's end, once. Only for the relay worker.
    pub fn add_finished(&self) {
        add(&self.0.words()[header::FINISHED], 1);
    }

    /// Clients that wait for an upstream now.
    pub fn waiting(&self) -> u64 {
        self.word(0, row::WAITING).load(Ordering::Relaxed).min(MAX_OPEN)
    }

    /// Counts `handoffs` that took `ns` nanoseconds each. Only for the relay worker, its single writer.
    pub fn record_latency(&self, handoffs: u64, ns: u64) {
        let words = self.0.words();
        add(&words[latency::FIRST + latency::bucket(ns)], handoffs);
        add(&words[latency::SUM], ns.saturating_mul(handoffs));
    }

    /// The master has closed its copies of the sockets up to `number`.
    pub fn release(&self, number: u64) {
        self.0.words()[header::RELEASED].store(number, Ordering::Release);
    }

    /// Whether processes report the close of a stand-in that they inherited.
    pub fn report_closes(&self, on: bool) {
        self.0.words()[header::CLOSES].store(u64::from(on), Ordering::SeqCst);
    }

    /// Whether the worker's processes record their connections for the access log.
    pub fn set_logs(&self, on: bool) {
        self.0.words()[header::LOGS].store(u64::from(on), Ordering::Release);
    }

    /// Whether hand-offs to the worker's processes carry the addresses that PROXY headers named.
    pub fn set_translates(&self, on: bool) {
        self.0.words()[addresses::TRANSLATES].store(u64::from(on), Ordering::Release);
    }

    /// Whether the worker's processes watch what they read and write (`--drain-idle move`).
    pub fn set_watches(&self, on: bool) {
        self.0.words()[moving::WATCHES].store(u64::from(on), Ordering::Release);
    }

    /// Whether connections that the server closes between two requests come back to the master.
    pub fn set_moves(&self, on: bool) {
        self.0.words()[moving::MOVES].store(u64::from(on), Ordering::Release);
    }

    /// The server was asked to stop: from now on it says when it connects to itself.
    pub fn stops(&self) {
        self.0.words()[header::STOPPING].store(1, Ordering::Release);
    }

    /// Says when the worker rings the bell.
    pub fn want_room(&self, rings: Rings) {
        self.0.words()[header::ROOM_WANTED].store(rings as u64, Ordering::SeqCst);
        // What was closed and received is read after this, as workers read this after they have counted a close.
        fence(Ordering::SeqCst);
    }

    /// Whether the bell is to be rung after a close, asked after all closes so far were counted.
    pub fn is_room_wanted(&self) -> bool {
        self.room_wanted() >= room::AFTER_CLOSES
    }

    /// Whether the bell is to be rung after a receive, asked after the receive.
    pub fn is_receive_awaited(&self) -> bool {
        self.room_wanted() >= room::AFTER_RECEIVES
    }

    fn room_wanted(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.0.words()[header::ROOM_WANTED].load(Ordering::SeqCst)
    }

    /// The pids of the processes that have received connections, and whether they have some open.
    pub fn processes(&self) -> impl Iterator<Item = (u32, bool)> + Clone + '_ {
        let word = |at, place| self.word(at, place).load(Ordering::Acquire);
        self.rows().map(move |at| (word(at, row::PID) as u32, word(at, row::CLOSED) < word(at, row::RECEIVED)))
    }

    /// Counts all that a process had open as closed: it has ended.
    pub fn settle(&self, pid: u32) {
        for at in self.rows() {
            let closed = self.word(at, row::CLOSED);
            let before = closed.load(Ordering::Acquire);
            let received = self.word(at, row::RECEIVED).load(Ordering::Acquire);
            if self.word(at, row::PID).load(Ordering::Acquire) == u64::from(pid) && before < received {
                // Fails where another process has settled and taken over the row meanwhile.
                let _ = closed.compare_exchange(before, received, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Connections received and closed since the start, including those lost to a full descriptor table.
    pub fn closed(&self) -> u64 {
        let closed = |at| {
            let word = |place| self.word(at, place).load(Ordering::Acquire);
            // Never more than were received, which is counted before.
            let (closed, lost) = (word(row::CLOSED), word(row::TRUNCATED));
            closed.min(word(row::RECEIVED)).wrapping_add(lost)
        };
        self.rows().map(closed).fold(0, u64::wrapping_add)
    }

    /// Whether a server has counted everything sent to it as received; never again once something was taken back.
    pub fn all_received(&self) -> bool {
        self.received_and_open().0 == self.0.words()[header::RELEASED].load(Ordering::Acquire)
    }

    /// The rows in use: one for a relay worker, one for each process of a server that has received something.
    fn rows(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..ROWS).take_while(|&at| self.word(at, row::PID).load(Ordering::Relaxed) != 0)
    }

    pub fn open(&self) -> u64 {
        self.received_and_open().1
    }

    /// From now on `open` is an estimate.
    pub fn set_estimate(&self) {
        self.0.words()[header::ESTIMATE].store(1, Ordering::Relaxed);
    }

    /// Whether `open` is an estimate: processes of the server close connections that others received.
    pub fn is_estimate(&self) -> bool {
        self.0.words()[header::ESTIMATE].load(Ordering::Relaxed) != 0
    }

    /// Connections received since the start, including those lost to a full descriptor table, and connections open.
    pub fn received_and_open(&self) -> (u64, u64) {
        self.rows().fold((0, 0), |(received, open): (u64, u64), at| {
            let word = |place| self.word(at, place).load(Ordering::Acquire);
            let (closed, lost, taken) = (word(row::CLOSED), word(row::TRUNCATED), word(row::RECEIVED));
            (received.wrapping_add(taken).wrapping_add(lost), open + open_of(taken, closed))
        })
    }

    /// As [`CountersPage::received_and_open`], without the open connections that only wait for the client's end.
    pub fn received_and_unfinished(&self) -> (u64, u64) {
        let finished = self.0.words()[header::FINISHED].load(Ordering::Acquire);
        if finished == 0 {
            return self.received_and_open();
        }
        // Only a relay worker counts these, and it has one row.
        let word = |place| self.word(0, place).load(Ordering::Acquire);
        let (lost, taken) = (word(row::TRUNCATED), word(row::RECEIVED));
        (taken.wrapping_add(lost), open_of(taken, finished))
    }

    /// Connections open in processes that are still alive.
    pub fn open_alive(&self) -> u64 {
        let alive = |at: &usize| is_alive(self.word(*at, row::PID).load(Ordering::Relaxed));
        let word = |at, place| self.word(at, place).load(Ordering::Acquire);
        let open = |at| {
            let closed = word(at, row::CLOSED);
            open_of(word(at, row::RECEIVED), closed)
        };
        self.rows().filter(alive).map(open).sum()
    }

    /// All counters, summed over the rows.
    pub fn counts(&self) -> Counts {
        let get = |place| self.rows().map(|at| self.word(at, place).load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
        let word = |place: usize| self.0.words()[place].load(Ordering::Relaxed);
        Counts {
            latencies: std::array::from_fn(|at| word(latency::FIRST + at)),
            latency_ns: word(latency::SUM),
            received: get(row::RECEIVED),
            open: self.open(),
            bytes_in: get(row::BYTES_IN),
            bytes_out: get(row::BYTES_OUT),
            unreachable: get(row::UNREACHABLE),
            truncated: get(row::TRUNCATED),
            addresses_lost: word(addresses::LOST),
        }
    }
}

fn is_alive(pid: u64) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn open_of(received: u64, closed: u64) -> u64 {
    received.saturating_sub(closed).min(MAX_OPEN)
}

/// A plain load and store: with a single writer it loses nothing, and a locked add costs more.
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

    /// The master marks and then reads what was closed; a worker counts a close and then reads the mark. In whatever order
    /// these happen, the master sees the close or the worker the mark.
    #[test]
    fn no_close_goes_unnoticed_in_any_order() {
        for order in 0..16_u32 {
            if order.count_ones() != 2 {
                continue;
            }
            let (page, _) = CountersPage::create().unwrap();
            page.add(row::PID, 1);
            page.add(row::RECEIVED, 1);
            let (mut masters, mut workers) = (0, 0);
            let (mut seen, mut rings) = (false, false);
            for step in 0..4 {
                let master = order >> step & 1 == 1;
                match (master, masters, workers) {
                    (true, 0, _) => page.want_room(Rings::AfterCloses),
                    (true, ..) => seen = page.closed() == 1,
                    (false, _, 0) => page.add(row::CLOSED, 1),
                    (false, ..) => rings = page.is_room_wanted(),
                }
                *(if master { &mut masters } else { &mut workers }) += 1;
            }
            assert!(seen || rings, "{order:04b}");
        }
    }
}
