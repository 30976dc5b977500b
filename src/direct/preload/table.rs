//! What the library knows of descriptors: which are stand-ins, which are connections that it handed to the server.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::*};

use super::abi::attach::ADDRESS_BYTES;
use super::address::Address;
use super::arch::pid;
use super::counts::{self, Page};
use super::identity::Identity;
use super::{raw, watched};

#[path = "connections.rs"]
mod connections;
#[path = "leave.rs"]
mod leave;
#[path = "marks.rs"]
mod marks;
use connections::is_connection;
pub use connections::{closing, going, gone, is_watched, received, shown_family};
pub use leave::leave;
pub use marks::{has_shared, is_marked, join, join_marked, mark};

/// Descriptors up to here are tracked; a server with more open files has its connections counted as long as it lives.
pub const TRACKED: usize = 65_536;
/// Stand-ins that one process may have.
pub const STAND_INS: usize = 64;

/// A tracked descriptor: 0 unknown, 1..=STAND_INS a stand-in, MARKED one that another process made and this one has not
/// asked the master for; the others are in `connections.rs`.
static KINDS: [AtomicU32; TRACKED] = [const { AtomicU32::new(0) }; TRACKED];
const MARKED: u32 = STAND_INS as u32 + 1;

/// What stands in a listening socket's place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The worker's queue.
    Queue,
    /// The listening socket that all workers share (policy none).
    Listener,
}

/// A listening socket's stand-in.
pub struct StandIn {
    /// The listener's number at the master.
    pub listener: AtomicU32,
    /// The process that bound it: closing it in a child that inherited it ends nothing.
    owner: AtomicU32,
    /// 1 once the server was seen to wait in accept(2), not in a poll before it.
    waits: AtomicU32,
    /// 1: [`Stands::Listener`].
    shared: AtomicU32,
    /// 1: it is about to become [`Stands::Queue`], or has become that.
    leaving: AtomicU32,
    /// Under [`Stands::Listener`]: 1 when the server wants it non-blocking. The shared socket itself always is.
    nonblock: AtomicU32,
    /// Threads of this process that wait in accept(2).
    pub waiting: AtomicU32,
    /// 1 before listen(2) and after shutdown(2).
    shut: AtomicU32,
    /// 1 after shutdown(2): the master has nothing more to do with it.
    ended: AtomicU32,
    /// The queue, while an idle socket is in its place; -1: to be asked for.
    parked: AtomicI32,
    parked_file: Identity,
    /// The queue's sending end, so that the queue never ends; -1: none.
    keep: AtomicI32,
    /// The file behind `keep`, and the one that stands in the server's place.
    kept: Identity,
    file: Identity,
    /// What is to be in that one's place in a moment, or was a moment ago.
    other_file: Identity,
    /// Where the counters page is mapped; 0 while the place is free.
    page: AtomicUsize,
    /// The address that the server bound, in words.
    address: [AtomicU32; ADDRESS_BYTES / 4],
    address_len: AtomicU32,
}

static PLACES: [StandIn; STAND_INS] = [const {
    StandIn {
        listener: AtomicU32::new(0),
        owner: AtomicU32::new(0),
        waits: AtomicU32::new(0),
        shared: AtomicU32::new(0),
        leaving: AtomicU32::new(0),
        nonblock: AtomicU32::new(0),
        waiting: AtomicU32::new(0),
        shut: AtomicU32::new(0),
        ended: AtomicU32::new(0),
        parked: AtomicI32::new(-1),
        parked_file: Identity::none(),
        keep: AtomicI32::new(-1),
        kept: Identity::none(),
        file: Identity::none(),
        other_file: Identity::none(),
        page: AtomicUsize::new(0),
        address: [const { AtomicU32::new(0) }; ADDRESS_BYTES / 4],
        address_len: AtomicU32::new(0),
    }
}; STAND_INS];

impl StandIn {
    fn is_used(&self) -> bool {
        self.page.load(Acquire) != 0
    }

    pub fn waits(&self) -> bool {
        self.waits.load(Relaxed) != 0
    }

    pub fn waits_from_now(&self) {
        self.waits.store(1, Relaxed);
    }

    /// After shutdown(2) always as for a queue: an idle socket is there.
    pub fn stands(&self) -> Stands {
        if self.shared.load(Acquire) != 0 && !self.has_ended() { Stands::Listener } else { Stands::Queue }
    }

    /// Whether the server wants its accept(2) not to wait; only for [`Stands::Listener`].
    pub fn nonblock(&self) -> bool {
        self.nonblock.load(Relaxed) != 0
    }

    pub fn set_nonblock(&self, on: bool) {
        self.nonblock.store(u32::from(on), Relaxed);
    }

    /// Whether it does not listen yet, or was shut down.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Acquire) != 0
    }

    /// Marks it as shut down; `false` when it was already.
    pub fn shut(&self) -> bool {
        self.shut.swap(1, AcqRel) == 0
    }

    pub fn listens(&self) {
        self.shut.store(0, Release);
    }

    /// The queue's sending end, unless the server has closed it.
    pub fn sending_end(&self) -> Option<i32> {
        let keep = self.keep.load(Relaxed);
        (keep >= 0 && self.kept.is_at(keep)).then_some(keep)
    }

    /// Whether the descriptor still is what we put there.
    pub fn is_at(&self, fd: i32) -> bool {
        self.file.is_at(fd) || self.other_file.is_at(fd)
    }

    /// This file is about to be put at its descriptors, one after the other.
    pub fn will_be(&self, file: i32) {
        self.other_file.remember(file);
    }

    /// This file is at all of its descriptors.
    pub fn is_now(&self, file: i32) {
        self.file.remember(file);
        self.other_file.remember(-1);
    }

    /// Keeps the queue for later.
    pub fn park(&self, queue: i32) {
        self.parked_file.remember(queue);
        self.parked.store(queue, Relaxed);
    }

    /// The queue that was kept, unless the server has closed it.
    pub fn unpark(&self) -> Option<i32> {
        let parked = self.parked.swap(-1, AcqRel);
        (parked >= 0 && self.parked_file.is_at(parked)).then_some(parked)
    }

    /// Marks it as ended for the master.
    pub fn end(&self) {
        self.ended.store(1, Release);
    }

    /// Whether shutdown(2) has ended it for the master.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Acquire) != 0
    }

    /// The address that the server bound.
    pub fn address(&self) -> Address {
        let mut bytes = [0; ADDRESS_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(&self.address) {
            chunk.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
        Address { bytes, len: self.address_len.load(Relaxed) }
    }
}

fn kind(fd: i32) -> Option<&'static AtomicU32> {
    usize::try_from(fd).ok().and_then(|fd| KINDS.get(fd))
}

/// The stand-in at a descriptor.
pub fn stand_in(fd: i32) -> Option<&'static StandIn> {
    let place = kind(fd)?.load(Acquire);
    if place == 0 || is_connection(place) { None } else { PLACES.get(place as usize - 1) }
}

/// Whether a descriptor is marked as a stand-in: one load and one comparison, for calls that every descriptor gets.
#[inline(always)]
pub fn is_stand_in(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Relaxed).wrapping_sub(1) < MARKED)
}

/// The same, or a connection that is watched.
#[inline(always)]
pub fn is_looked_at(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Relaxed) as i32 > 0)
}

pub struct New<'a> {
    pub listener: u32,
    pub page: Page,
    pub keep: i32,
    pub stands: Stands,
    pub nonblock: bool,
    pub listens: bool,
    pub address: &'a Address,
}

/// Makes a descriptor a stand-in; `None` when there are too many.
pub fn put_stand_in(fd: i32, new: &New<'_>) -> Option<&'static StandIn> {
    let slot = kind(fd)?;
    for (at, place) in PLACES.iter().enumerate() {
        if place.page.compare_exchange(0, new.page.address(), AcqRel, Relaxed).is_ok() {
            place.listener.store(new.listener, Relaxed);
            place.owner.store(pid(), Relaxed);
            place.waits.store(0, Relaxed);
            place.shared.store(u32::from(new.stands == Stands::Listener), Relaxed);
            place.leaving.store(0, Relaxed);
            place.nonblock.store(u32::from(new.nonblock), Relaxed);
            place.shut.store(u32::from(!new.listens), Relaxed);
            place.ended.store(0, Relaxed);
            place.parked.store(-1, Relaxed);
            place.other_file.remember(-1);
            place.keep.store(new.keep, Relaxed);
            place.kept.remember(new.keep);
            place.file.remember(fd);
            for (word, chunk) in place.address.iter().zip(new.address.bytes.chunks_exact(4)) {
                word.store(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]), Relaxed);
            }
            place.address_len.store(new.address.len, Relaxed);
            counts::use_page(new.page);
            slot.store(at as u32 + 1, Release);
            return Some(place);
        }
    }
    None
}

/// A copy of a stand-in (dup and its like) is one, too. Copies of a connection are not counted.
pub fn copy(from: i32, to: i32) {
    watched::lose(from);
    if let (Some(from), Some(to)) = (kind(from), kind(to)) {
        let value = from.load(Acquire);
        if is_connection(value) {
            counts::estimate();
        }
        to.store(if is_connection(value) { 0 } else { value }, Release);
    }
}

/// Whether anything is known of a descriptor.
pub fn knows(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Acquire) != 0)
}

/// Calls `each` with every descriptor of a stand-in.
pub fn each_fd(stand_in: &'static StandIn, mut each: impl FnMut(i32)) {
    let Some(at) = PLACES.iter().position(|place| core::ptr::eq(place, stand_in)) else { return };
    for (fd, _) in KINDS.iter().enumerate().filter(|(_, kind)| kind.load(Acquire) == at as u32 + 1) {
        each(fd as i32);
    }
}

/// A descriptor is none of a stand-in's any more, which has others.
pub fn forget(fd: i32) {
    if let Some(kind) = kind(fd) {
        kind.store(0, Release);
    }
}

/// Gives up a stand-in that has no descriptor any more and that the master does not know.
pub fn release(stand_in: &StandIn) {
    let keep = stand_in.keep.swap(-1, AcqRel);
    if keep >= 0 && stand_in.kept.is_at(keep) {
        raw::close(keep);
    }
    if let Some(queue) = stand_in.unpark() {
        raw::close(queue);
    }
    stand_in.page.store(0, Release);
}

/// The listener at a port where a thread of this process waits in accept(2) of a queue.
pub fn awaited_at(port: u16) -> Option<u32> {
    let awaited = |place: &&StandIn| {
        place.is_used() && place.waiting.load(Acquire) > 0 && place.stands() == Stands::Queue && !place.is_shut()
    };
    let is_there = |address: Address| address.is_ip() && address.port() == port;
    let at = PLACES.iter().filter(awaited).find(|place| is_there(place.address()))?;
    Some(at.listener.load(Relaxed))
}

/// The first descriptor in `from..=to` of which anything is known.
pub fn first_known(from: u32, to: u32) -> Option<i32> {
    let end = (to as usize).saturating_add(1).min(TRACKED);
    let known = KINDS.get((from as usize).min(end)..end)?;
    let at = known.iter().position(|kind| kind.load(Relaxed) != 0)?;
    Some((from as usize + at) as i32)
}

/// Whether this is the last descriptor of its stand-in, in the process that bound it: closing it ends it.
pub fn is_last(fd: i32) -> bool {
    stand_in(fd).is_some_and(|stand_in| stand_in.owner.load(Relaxed) == pid()) && is_last_here(fd)
}

/// Whether this is the last descriptor of its stand-in in this process.
fn is_last_here(fd: i32) -> bool {
    let Some(place) = kind(fd).map(|kind| kind.load(Acquire)) else { return false };
    KINDS.iter().filter(|kind| kind.load(Relaxed) == place).count() == 1
}

/// Forgets a stand-in's descriptor. The listener's number when the master is to know of it: when it was the last one in
/// the process that bound it (or in another one, where that matters), and no other stand-in of this process is for the
/// same listener.
pub fn remove_stand_in(fd: i32) -> Option<u32> {
    let last = is_last(fd) || (is_last_here(fd) && counts::closes_matter());
    let slot = kind(fd)?;
    let place = slot.swap(0, AcqRel);
    let stand_in = PLACES.get((place as usize).checked_sub(1)?)?;
    if KINDS.iter().any(|other| other.load(Relaxed) == place) {
        return None;
    }
    let listener = stand_in.listener.load(Relaxed);
    release(stand_in);
    let another = |place: &StandIn| place.is_used() && place.listener.load(Relaxed) == listener;
    (last && !PLACES.iter().any(another)).then_some(listener)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
