//! What the library knows of descriptors: which are stand-ins, which are connections that it handed to the server.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

use super::abi::attach::ADDRESS_BYTES;
use super::abi::page::{PAGE_BYTES, ROW_WORDS, ROWS, header, row};
use super::arch::{nr, pid, syscall6};

/// Descriptors up to here are tracked; a server with more open files has its connections counted as long as it lives.
pub const TRACKED: usize = 65_536;
/// Stand-ins that one process may have.
pub const STAND_INS: usize = 32;

/// A tracked descriptor: 0 unknown, 1..=STAND_INS a stand-in, CONNECTION and up a connection with its number.
static KINDS: [AtomicU32; TRACKED] = [const { AtomicU32::new(0) }; TRACKED];
const CONNECTION: u32 = 1 << 31;

/// A listening socket's stand-in.
pub struct StandIn {
    /// The listener's number at the master.
    pub listener: AtomicU32,
    /// The process that bound it: closing it in a child that inherited it ends nothing.
    owner: AtomicU32,
    /// 1 once the server was seen to wait in accept(2), not in a poll before it.
    waits: AtomicU32,
    /// Where the counters page is mapped; 0 while the place is free.
    page: AtomicUsize,
    /// The address for getsockname(2), in words.
    address: [AtomicU32; ADDRESS_BYTES / 4],
}

static PLACES: [StandIn; STAND_INS] = [const {
    StandIn {
        listener: AtomicU32::new(0),
        owner: AtomicU32::new(0),
        waits: AtomicU32::new(0),
        page: AtomicUsize::new(0),
        address: [const { AtomicU32::new(0) }; ADDRESS_BYTES / 4],
    }
}; STAND_INS];

/// The page of this process's worker (all its stand-ins share one), for connections.
static PAGE: AtomicUsize = AtomicUsize::new(0);

impl StandIn {
    /// Whether the server waits in accept(2).
    pub fn waits(&self) -> bool {
        self.waits.load(Relaxed) != 0
    }

    /// It does.
    pub fn waits_from_now(&self) {
        self.waits.store(1, Relaxed);
    }

    /// The bound address.
    pub fn address(&self) -> [u8; ADDRESS_BYTES] {
        let mut bytes = [0; ADDRESS_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(&self.address) {
            chunk.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        bytes
    }
}

fn kind(fd: i32) -> Option<&'static AtomicU32> {
    usize::try_from(fd).ok().and_then(|fd| KINDS.get(fd))
}

/// The stand-in at a descriptor.
pub fn stand_in(fd: i32) -> Option<&'static StandIn> {
    let place = kind(fd)?.load(Acquire);
    if place == 0 || place & CONNECTION != 0 { None } else { PLACES.get(place as usize - 1) }
}

/// Makes a descriptor a stand-in; `None` when there are too many.
pub fn put_stand_in(fd: i32, listener: u32, page: usize, address: &[u8; ADDRESS_BYTES]) -> Option<()> {
    let slot = kind(fd)?;
    for (at, place) in PLACES.iter().enumerate() {
        if place.page.compare_exchange(0, page, AcqRel, Relaxed).is_ok() {
            place.listener.store(listener, Relaxed);
            place.owner.store(pid(), Relaxed);
            place.waits.store(0, Relaxed);
            mark_process();
            for (word, chunk) in place.address.iter().zip(address.chunks_exact(4)) {
                word.store(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]), Relaxed);
            }
            PAGE.store(page, Release);
            slot.store(at as u32 + 1, Release);
            return Some(());
        }
    }
    None
}

/// A copy of a stand-in (dup and its like) is one, too.
pub fn copy(from: i32, to: i32) {
    if let (Some(from), Some(to)) = (kind(from), kind(to)) {
        let value = from.load(Acquire);
        to.store(if value & CONNECTION != 0 { 0 } else { value }, Release);
    }
}

/// A page that is zeroed at fork, with the pid of the process that this memory belongs to; 0 before it is needed.
static PROCESS: AtomicUsize = AtomicUsize::new(0);

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

/// Whether this memory is the calling process's own. A child of vfork borrows its parent's until it calls exec: what it
/// closes says nothing about the parent's descriptors.
pub fn ours() -> bool {
    let page = PROCESS.load(Acquire);
    if page == 0 {
        return true;
    }
    // SAFETY: the page was mapped by `mark_process` and is never unmapped; all accesses are atomic.
    let cell = unsafe { &*(page as *const AtomicU32) };
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

/// Whether anything is known of a descriptor.
pub fn knows(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Acquire) != 0)
}

/// Forgets what is known of a descriptor: it turned out to be another one.
pub fn forget(fd: i32) {
    if let Some(kind) = kind(fd) {
        kind.store(0, Release);
    }
}

/// Forgets a stand-in's descriptor; the listener's number when it was the last one, in the process that bound it.
pub fn remove_stand_in(fd: i32) -> Option<u32> {
    let slot = kind(fd)?;
    let place = slot.swap(0, AcqRel);
    let stand_in = PLACES.get((place as usize).checked_sub(1)?)?;
    if KINDS.iter().any(|other| other.load(Relaxed) == place) {
        return None;
    }
    let (listener, owner) = (stand_in.listener.load(Relaxed), stand_in.owner.load(Relaxed));
    stand_in.page.store(0, Release);
    (owner == pid()).then_some(listener)
}

/// Maps a counters page; 0 when the system refuses.
pub fn map(fd: i32) -> usize {
    // SAFETY: a new shared mapping (read and write) at an address of the kernel's choice disturbs nothing.
    let at = unsafe { syscall6(nr::MMAP, [0, PAGE_BYTES, 3, 1, fd as usize, 0]) };
    if (-4095..=0).contains(&at) { 0 } else { at as usize }
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

/// This process's row, if it has one.
fn own_row() -> Option<usize> {
    let pid = u64::from(pid());
    (1..=ROWS).find(|&at| word(at, row::PID).is_some_and(|owner| owner.load(Relaxed) == pid))
}

/// This process's row, claimed at its first connection. A child that only closes what its parent received needs none.
fn claim_row() -> Option<usize> {
    let pid = u64::from(pid());
    own_row().or_else(|| {
        let claim = |at: &usize| {
            word(*at, row::PID).is_some_and(|owner| owner.compare_exchange(0, pid, AcqRel, Relaxed).is_ok())
        };
        (1..=ROWS).find(claim)
    })
}

fn count(row_at: Option<usize>, place: usize) {
    if let Some(word) = row_at.and_then(|at| word(at, place)) {
        word.fetch_add(1, AcqRel);
    }
}

/// A connection was received at a descriptor.
pub fn received(fd: i32, number: u64) {
    count(claim_row(), row::RECEIVED);
    if let Some(slot) = kind(fd) {
        // Still marked: it was closed where we could not see it.
        if slot.swap(CONNECTION | number as u32, AcqRel) & CONNECTION != 0 {
            count(own_row(), row::CLOSED);
        }
    }
}

/// A descriptor is about to be closed: if it is a connection, counts it, and waits (normally not at all) until the
/// master has closed its copy, since otherwise the client's FIN would come late.
pub fn closing(fd: i32) {
    let Some(slot) = kind(fd) else { return };
    let value = slot.load(Acquire);
    if value & CONNECTION == 0 {
        return;
    }
    slot.store(0, Release);
    for _ in 0..1000 {
        let released = word(0, header::RELEASED).map_or(0, |word| word.load(Acquire)) as u32 & !CONNECTION;
        // Numbers wrap at 31 bits: ahead by less than half is "released".
        if released.wrapping_sub(value & !CONNECTION) & !CONNECTION < CONNECTION / 2 {
            break;
        }
        // SAFETY: sched_yield has no arguments.
        unsafe { syscall6(nr::SCHED_YIELD, [0; 6]) };
    }
    count(own_row(), row::CLOSED);
}
