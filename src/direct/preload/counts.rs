//! This process's row on the counters page.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

use super::abi::page::{PAGE_BYTES, ROW_WORDS, ROWS, addresses, header, latency, moving, room, row};
use super::arch::{nr, pid, syscall6};
use super::identity::Identity;
use super::{next, raw};

/// A counters page that is mapped.
#[derive(Clone, Copy)]
pub struct Page(usize);

impl Page {
    /// Never 0.
    pub fn address(self) -> usize {
        self.0
    }
}

/// Where the page of this process's worker is mapped (all its stand-ins share one); 0 before there is one.
static PAGE: AtomicUsize = AtomicUsize::new(0);
static FILE: Identity = Identity::none();

/// A page that is zeroed at fork: word 0 is the pid of the process that this memory belongs to, word 1 its row, word 2 its
/// generation. 0 before it is needed.
static PROCESS: AtomicUsize = AtomicUsize::new(0);
const OWNER: usize = 0;
const ROW: usize = 1;
const GENERATION: usize = 2;

/// Maps a counters page, unless the system refuses. One that is mapped already is mapped once: a server may bind again and
/// again.
pub fn map(fd: i32) -> Option<Page> {
    let known = PAGE.load(Acquire);
    if known != 0 && FILE.is_at(fd) {
        return Some(Page(known));
    }
    let at = map_shared(fd, PAGE_BYTES)?;
    FILE.remember(fd);
    Some(Page(at))
}

/// The address of a new mapping of so many bytes that processes share.
pub fn map_shared(fd: i32, bytes: usize) -> Option<usize> {
    // SAFETY: a new shared mapping (read and write) at an address of the kernel's choice disturbs nothing.
    let at = unsafe { syscall6(nr::MMAP, [0, bytes, 3, 1, fd as usize, 0]) };
    if (-4095..=0).contains(&at) { None } else { Some(at as usize) }
}

/// Memory of so many bytes that comes from the master, mapped at most once.
pub struct Shared<const BYTES: usize>(AtomicUsize);

impl<const BYTES: usize> Shared<BYTES> {
    pub const fn none() -> Self {
        Self(AtomicUsize::new(0))
    }

    #[inline(always)]
    pub fn is_mapped(&self) -> bool {
        self.0.load(Acquire) != 0
    }

    /// Maps a file of the master's, unless one is mapped; whether one is.
    pub fn map(&self, fd: i32) -> bool {
        if !self.is_mapped()
            && fd >= 0
            && let Some(at) = map_shared(fd, BYTES)
        {
            self.0.store(at, Release);
        }
        self.is_mapped()
    }

    /// `None` before it is mapped.
    #[inline(always)]
    pub fn words(&self) -> Option<&'static [AtomicU64]> {
        let at = self.0.load(Acquire);
        if at == 0 {
            return None;
        }
        // SAFETY: the mapping is BYTES long (the file is sealed against shrinking), never unmapped, and every access on all
        // sides is atomic.
        Some(unsafe { core::slice::from_raw_parts(at as *const AtomicU64, BYTES / 8) })
    }
}

/// A page of its own, for tests.
#[cfg(test)]
pub fn page_of_zeros() -> Option<Page> {
    // SAFETY: a new private mapping at an address of the kernel's choice disturbs nothing.
    let at = unsafe { syscall6(nr::MMAP, [0, PAGE_BYTES, 3, 0x22, usize::MAX, 0]) };
    (at > 0).then_some(Page(at as usize))
}

/// From now on this is the page that counts.
pub fn use_page(page: Page) {
    mark_process();
    PAGE.store(page.0, Release);
}

fn mark_process() {
    const ANONYMOUS_PRIVATE: usize = 0x22;
    const WIPE_ON_FORK: usize = 18;
    if PROCESS.load(Acquire) != 0 {
        return;
    }
    // SAFETY: a new private mapping at an address of the kernel's choice, and advice about it, disturb nothing.
    let at = unsafe { syscall6(nr::MMAP, [0, PAGE_BYTES, 3, ANONYMOUS_PRIVATE, usize::MAX, 0]) };
    if at > 0 {
        // SAFETY: as above.
        unsafe { syscall6(nr::MADVISE, [at as usize, PAGE_BYTES, WIPE_ON_FORK, 0, 0, 0]) };
        PROCESS.store(at as usize, Release);
        ours();
    }
}

fn process(place: usize) -> Option<&'static AtomicU32> {
    let page = PROCESS.load(Acquire);
    // SAFETY: the page was mapped by `mark_process` and is never unmapped; both places lie within it; all accesses are
    // atomic.
    if page == 0 { None } else { Some(unsafe { &*(page as *const AtomicU32).add(place) }) }
}

/// Whether this memory is the calling process's own. A child of vfork borrows its parent's until it calls exec: what it
/// closes says nothing about the parent's descriptors.
pub fn ours() -> bool {
    let Some(cell) = process(OWNER) else { return true };
    let pid = pid();
    match cell.load(Acquire) {
        // Fresh memory: the first look after a fork.
        0 => {
            cell.store(pid, Release);
            true
        }
        owner => owner == pid,
    }
}

/// This process's pid, without a system call where [`ours`] has looked since the last fork. For what only the process itself
/// does: a child of vfork is taken for its parent.
pub fn own_pid() -> u32 {
    process(OWNER).map(|cell| cell.load(Relaxed)).filter(|&owner| owner != 0).unwrap_or_else(pid)
}

/// Tells a process from the one that it was forked from, where both have the same pid (in namespaces of their own).
pub fn generation() -> u32 {
    let Some(cell) = process(GENERATION) else { return 0 };
    match cell.load(Relaxed) {
        0 => {
            let new = (now() / 1000) as u32 | 1;
            cell.compare_exchange(0, new, Relaxed, Relaxed).map_or_else(|known| known, |_| new)
        }
        known => known,
    }
}

fn word(row_at: usize, place: usize) -> Option<&'static AtomicU64> {
    let page = PAGE.load(Acquire);
    if page == 0 || row_at > ROWS || place >= ROW_WORDS {
        return None;
    }
    // SAFETY: the mapping is PAGE_BYTES long (the file is sealed against shrinking), never unmapped, and every access on
    // both sides is atomic; the bounds were checked above.
    Some(unsafe { &*(page as *const AtomicU64).add(row_at * ROW_WORDS + place) })
}

/// A word behind the rows, which all processes share.
fn shared_word(place: usize) -> Option<&'static AtomicU64> {
    let page = PAGE.load(Acquire);
    // SAFETY: as in `word`.
    (page != 0 && place < PAGE_BYTES / 8).then(|| unsafe { &*(page as *const AtomicU64).add(place) })
}

/// Up to which number the master has closed its copies.
pub fn released() -> u32 {
    word(0, header::RELEASED).map_or(0, |word| word.load(Acquire)) as u32
}

/// Whether the master is to be told of the close of a stand-in that was inherited.
pub fn closes_matter() -> bool {
    word(0, header::CLOSES).is_some_and(|word| word.load(SeqCst) != 0)
}

/// Whether the master has asked this process's worker to stop.
pub fn is_stopping() -> bool {
    word(0, header::STOPPING).is_some_and(|word| word.load(Acquire) != 0)
}

/// A thread of this process that is accepting from a listener that all workers share, as the master sees it.
pub struct Accepting(Option<&'static AtomicU64>);

impl Accepting {
    /// To be dropped when the connection, if there was one, is counted. `None`: this worker is to accept no more. (The master
    /// says so and then looks who is accepting, so that it knows of each one that has not seen that.)
    pub fn begin() -> Option<Self> {
        let own = claim_row().and_then(|at| word(at, row::ACCEPTING));
        if let Some(word) = own {
            word.fetch_add(1, SeqCst);
        }
        let accepting = Self(own);
        let leaves = word(0, header::LEAVING).is_some_and(|word| word.load(SeqCst) != 0);
        (!leaves).then_some(accepting)
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if let Some(word) = self.0 {
            word.fetch_sub(1, SeqCst);
        }
    }
}

/// Whether this worker's connections are logged.
pub fn logs() -> bool {
    word(0, header::LOGS).is_some_and(|word| word.load(Acquire) != 0)
}

/// Whether hand-offs to this worker carry the addresses that PROXY headers named.
pub fn translates() -> bool {
    shared_word(addresses::TRANSLATES).is_some_and(|word| word.load(Acquire) != 0)
}

/// Whether what this worker reads and writes is watched.
pub fn watches() -> bool {
    shared_word(moving::WATCHES).is_some_and(|word| word.load(Acquire) != 0)
}

/// Whether connections that are closed between two requests go back to the master.
#[inline]
pub fn moves() -> bool {
    shared_word(moving::MOVES).is_some_and(|word| word.load(Acquire) != 0)
}

/// This process's row, if it has one.
fn own_row() -> Option<usize> {
    let cell = process(ROW);
    if let Some(known) = cell.map(|cell| cell.load(Relaxed) as usize).filter(|&at| at != 0) {
        return Some(known);
    }
    let pid = u64::from(pid());
    let found = (1..=ROWS).find(|&at| word(at, row::PID).is_some_and(|owner| owner.load(Relaxed) == pid));
    if let (Some(cell), Some(found)) = (cell, found) {
        cell.store(found as u32, Relaxed);
    }
    found
}

/// This process's row, claimed at its first connection. A child that only closes what its parent received needs none.
fn claim_row() -> Option<usize> {
    own_row().or_else(|| {
        let pid = u64::from(pid());
        sweep();
        let claim = |from: &dyn Fn(u64) -> bool| {
            (1..=ROWS).find(|&at| {
                word(at, row::PID).is_some_and(|owner| {
                    let before = owner.load(Acquire);
                    from(before) && owner.compare_exchange(before, pid, AcqRel, Relaxed).is_ok()
                })
            })
        };
        // A dead process's row only when there is no other: `received` is a total that never falls.
        let claimed = claim(&|owner| owner == 0).or_else(|| claim(&dead));
        if let Some(word) = claimed.and_then(|at| word(at, row::ACCEPTING)) {
            // The one that is dead may have been accepting.
            word.store(0, SeqCst);
        }
        claimed
    })
}

/// What a dead process had open ended with it.
fn sweep() {
    for at in 1..=ROWS {
        if let (Some(owner), Some(received), Some(closed)) =
            (word(at, row::PID), word(at, row::RECEIVED), word(at, row::CLOSED))
            && dead(owner.load(Acquire))
        {
            closed.store(received.load(Acquire), Release);
        }
    }
}

fn dead(pid: u64) -> bool {
    pid != 0 && raw::is_gone(pid as u32)
}

fn count(row_at: Option<usize>, place: usize) {
    if let Some(word) = row_at.and_then(|at| word(at, place)) {
        word.fetch_add(1, SeqCst);
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let mut now = [0u64; 2];
    const CLOCK_MONOTONIC: i32 = 1;
    // SAFETY: the time goes into the local; it cannot fail.
    unsafe { next::clock_gettime(CLOCK_MONOTONIC, now.as_mut_ptr()) };
    now[0].wrapping_mul(1_000_000_000).wrapping_add(now[1])
}

/// A hand-off came that the master accepted at that time.
pub fn took(accepted: u64) {
    let ns = now().saturating_sub(accepted);
    let page = PAGE.load(Acquire);
    if page != 0 {
        for (place, n) in [(latency::FIRST + latency::bucket(ns), 1), (latency::SUM, ns)] {
            // SAFETY: as in `word`; both places lie behind the rows and within the page.
            unsafe { &*(page as *const AtomicU64).add(place) }.fetch_add(n, Relaxed);
        }
    }
}

pub fn received() {
    let row = claim_row();
    if row.is_none() {
        // More processes than the page has rows.
        estimate();
    }
    count(row, row::RECEIVED);
}

/// One was closed. By a process that never received any: it came by fork, and nobody can say when all its copies are
/// closed. Whether clients wait for that: the master sets the mark and then reads what was closed, so one of the two sees
/// the other's.
#[must_use]
pub fn closed() -> bool {
    let row = own_row();
    if row.is_none() {
        estimate();
    }
    count(row, row::CLOSED);
    room_wanted() >= room::AFTER_CLOSES
}

/// Whether the master waits for this worker to receive, asked after the receive: the kernel's lock on the queue orders that
/// and what the master does, which sets the mark and then asks what is queued.
pub fn is_receive_awaited() -> bool {
    room_wanted() >= room::AFTER_RECEIVES
}

fn room_wanted() -> u64 {
    word(0, header::ROOM_WANTED).map_or(room::NOT_WANTED, |word| word.load(SeqCst))
}

/// A connection's translated addresses found no place.
pub fn lose_addresses() {
    if let Some(lost) = shared_word(addresses::LOST) {
        lost.fetch_add(1, Relaxed);
    }
}

/// Says that what is open is an estimate.
pub fn estimate() {
    if let Some(word) = word(0, header::ESTIMATE) {
        word.store(1, Relaxed);
    }
}
