//! `--drain-idle move`: what the server reads from its connections and writes to them, so that it is known which of them another
//! server can go on with. Without that option no connection is watched.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};

use super::arch::{nr, syscall6};
use super::exchange::Exchange;
use super::journal::{TcpInfo, info_state, state, tcp_info};
use super::transfer::{MSG_ERRQUEUE, Part};
use super::{counts, moving, raw, table};

/// A connection that is watched. All zeroes is one of nobody.
pub struct Watched {
    /// The process that received it, and which one of that pid.
    pub owner: AtomicU32,
    generation: AtomicU32,
    /// The listener that it came from.
    pub listener: AtomicU32,
    /// 1: a PROXY header named its ends.
    pub translated: AtomicU32,
    /// Calls of threads that are reading or writing. (That of a thread that was cancelled stays.)
    pub inside: AtomicU32,
    /// 1 while it is about to be given away: who begins to read or write waits.
    pub leaving: AtomicU32,
    /// 1: it can never go on elsewhere.
    lost: AtomicU32,
    /// 1 while a thread uses `exchange`.
    busy: AtomicU32,
    exchange: UnsafeCell<MaybeUninit<Exchange>>,
}

// SAFETY: `exchange` is used only by the thread that has set `busy`.
unsafe impl Sync for Watched {}

/// Where those of all descriptors are; 0 before one is needed.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// Makes room for them; whether there is some.
fn prepare() -> bool {
    const BYTES: usize = table::TRACKED * size_of::<Watched>();
    const ANONYMOUS_PRIVATE_NORESERVE: usize = 0x4022;
    if ALL.load(Acquire) == 0 {
        // SAFETY: a new private mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe { syscall6(nr::MMAP, [0, BYTES, 3, ANONYMOUS_PRIVATE_NORESERVE, usize::MAX, 0]) };
        // Another thread may have been faster; its mapping stays.
        if at > 0 {
            let _ = ALL.compare_exchange(0, at as usize, AcqRel, Relaxed);
        }
    }
    ALL.load(Acquire) != 0
}

/// Whether a connection was ever watched.
#[inline]
pub fn is_used() -> bool {
    ALL.load(Relaxed) != 0
}

fn at(fd: i32) -> Option<&'static Watched> {
    let (all, fd) = (ALL.load(Acquire), usize::try_from(fd).ok().filter(|&fd| fd < table::TRACKED)?);
    // SAFETY: `prepare` mapped TRACKED of these, for good; zeroes are valid, and all shared access is atomic.
    (all != 0).then(|| unsafe { &*(all as *const Watched).add(fd) })
}

/// The connection at a descriptor, if it is watched.
pub fn known(fd: i32) -> Option<&'static Watched> {
    if table::is_watched(fd) { at(fd) } else { None }
}

/// Begins to watch a connection that has just been received, if that is wanted and possible. `is_new`: no byte was read from it
/// or written to it, which saves the kernel's counts.
pub fn begin(fd: i32, listener: u32, is_new: bool) -> bool {
    counts::watches() && prepare() && begin_watching(fd, listener, is_new)
}

#[cold]
fn begin_watching(fd: i32, listener: u32, is_new: bool) -> bool {
    let Some(watched) = at(fd).filter(|_| moving::is_ready()) else { return false };
    let so_far = if is_new { Some(SoFar { read: 0, written: 0 }) } else { so_far(fd) };
    let Some(so_far) = so_far else { return false };
    if watched.busy.swap(1, Acquire) != 0 {
        return false;
    }
    // SAFETY: `busy` was not set.
    unsafe { (*watched.exchange.get()).write(Exchange::new(so_far.read, so_far.written)) };
    watched.owner.store(counts::own_pid(), Relaxed);
    watched.generation.store(counts::generation(), Relaxed);
    watched.listener.store(listener, Relaxed);
    for word in [&watched.translated, &watched.leaving, &watched.lost] {
        word.store(0, Relaxed);
    }
    watched.busy.store(0, Release);
    true
}

/// A PROXY header has named a connection's ends; `known`: they are on record.
pub fn translated(fd: i32, is_known: bool) {
    if let Some(watched) = known(fd) {
        watched.translated.store(1, Relaxed);
        watched.lost.store(u32::from(!is_known), Relaxed);
    }
}

/// A connection has another descriptor, or something happened to it that cannot be followed.
pub fn lose(fd: i32) {
    if let Some(watched) = known(fd) {
        watched.lost.store(1, Relaxed);
    }
}

/// What the kernel has counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SoFar {
    /// Bytes that were read, without those that wait.
    pub read: u64,
    /// Bytes that were written, whether or not they were sent.
    pub written: u64,
}

/// What was read from a connection and written to it; `None`: it is none of TCP, or its end has begun.
pub fn so_far(fd: i32) -> Option<SoFar> {
    let mut queued = raw::queued_bytes(fd);
    // Something may come in between.
    for _ in 0..4 {
        let info = tcp_info(fd).filter(|info| info_state(info) == state::ESTABLISHED)?;
        let again = raw::queued_bytes(fd);
        if again == queued {
            return of_info(&info, u64::try_from(queued).ok()?);
        }
        queued = again;
    }
    None
}

/// Before Linux 4.19 the kernel does not count what was sent: then that is 0.
fn of_info(info: &TcpInfo, queued: u64) -> Option<SoFar> {
    let [received, sent, again, unsent] = [info[16], info[25], info[26], u64::from(info[18] as u32)];
    Some(SoFar { read: received.checked_sub(queued)?, written: sent.checked_sub(again)?.checked_add(unsent)? })
}

impl Watched {
    /// Whether this process received it; not one that has it by fork, or borrows this memory.
    pub fn is_own(&self) -> bool {
        self.owner.load(Relaxed) == super::arch::pid() && self.generation.load(Relaxed) == counts::generation()
    }

    /// Whether a look at what the kernel has counted is worth it: no thread uses it, and the last request was answered.
    pub fn may_move(&self) -> bool {
        let mut at_rest = false;
        if self.lost.load(Acquire) == 0 && self.inside.load(SeqCst) == 0 {
            self.with(|exchange| at_rest = exchange.is_at_rest());
        }
        at_rest
    }

    /// Whether nothing keeps another server from going on with it, and everything that the kernel has counted was seen.
    pub fn is_at_rest(&self, so_far: SoFar) -> bool {
        let mut result = false;
        self.with(|exchange| {
            result = exchange.is_at_rest() && (exchange.read, exchange.written) == (so_far.read, so_far.written);
        });
        result && self.lost.load(Acquire) == 0
    }

    /// Two threads at once: nobody knows in which order, and it is lost.
    fn with(&self, act: impl FnOnce(&mut Exchange)) {
        if self.busy.swap(1, Acquire) != 0 {
            self.lost.store(1, Release);
            return;
        }
        // SAFETY: `busy` was not set, and `begin_watching` has written it before the descriptor was known as watched.
        act(unsafe { (*self.exchange.get()).assume_init_mut() });
        self.busy.store(0, Release);
    }
}

/// A call that reads from a connection or writes to it.
pub struct Inside(&'static Watched);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

/// A call on a watched connection is about to be made; `Err`: it went away, and its close(2) does not end. `None`: it is none.
pub fn enter(fd: i32) -> Option<Result<Inside, ()>> {
    let watched = known(fd)?;
    let inside = begin_call(watched);
    if watched.leaving.load(SeqCst) == 0 { Some(Ok(inside)) } else { enter_later(fd, inside) }
}

fn begin_call(watched: &'static Watched) -> Inside {
    watched.inside.fetch_add(1, SeqCst);
    Inside(watched)
}

/// The connection is about to be given away: it may stay after all, and once it is closed another file may have its number,
/// before that is known here.
#[cold]
fn enter_later(fd: i32, mut inside: Inside) -> Option<Result<Inside, ()>> {
    const YIELDS: u32 = 1000;
    const MOST_MS: u32 = 2000;
    for turn in 0..YIELDS + MOST_MS {
        // In a child of a process that was about to give it away nobody does.
        if inside.0.leaving.load(SeqCst) == 0 || inside.0.owner.load(Relaxed) != super::arch::pid() {
            return Some(Ok(inside));
        }
        drop(inside);
        if turn < YIELDS {
            raw::yield_now()
        } else {
            raw::sleep_ms(1)
        }
        inside = begin_call(known(fd)?);
    }
    Some(Err(()))
}

const MSG_OOB: i32 = 1;
const MSG_PEEK: i32 = 2;
const MSG_TRUNC: i32 = 0x20;
const MSG_ZEROCOPY: i32 = 0x0400_0000;
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// `n` bytes at an address, which a call has just read or written.
///
/// # Safety
/// They lie there.
unsafe fn bytes<'a>(at: usize, n: usize) -> &'a [u8] {
    // SAFETY: by the caller's word.
    unsafe { core::slice::from_raw_parts(at as *const u8, n) }
}

/// Calls `each` with the first `n` bytes of these parts.
///
/// # Safety
/// `count` parts lie there, and so many bytes in them.
unsafe fn each_part(parts: *const Part, count: usize, n: usize, mut each: impl FnMut(&[u8])) {
    let mut left = n;
    for at in 0..count {
        if left == 0 {
            break;
        }
        // SAFETY: by the caller's word.
        let (start, len) = unsafe { ((*parts.add(at)).at, (*parts.add(at)).len) };
        let len = len.min(left);
        if len > 0 {
            // SAFETY: as above.
            each(unsafe { bytes(start, len) });
        }
        left -= len;
    }
}

/// The parts of a `struct msghdr`.
///
/// # Safety
/// One lies there.
unsafe fn parts_of(message: usize) -> (*const Part, usize) {
    let words = message as *const usize;
    // SAFETY: behind name (8 bytes) and its length (4, and a gap) it has the parts and their number.
    unsafe { (*words.add(2) as *const Part, *words.add(3)) }
}

/// What a call has done, by its result `n`.
///
/// # Safety
/// Of all of these: the call with these arguments has returned `n`.
impl Inside {
    pub unsafe fn read(&self, n: isize, to: usize, flags: i32) {
        let Some(n) = self.moved(n, flags & !MSG_PEEK) else { return };
        if flags & MSG_PEEK == 0 {
            // SAFETY: the kernel has written so many bytes there.
            self.0.with(|exchange| exchange.has_read(unsafe { bytes(to, n) }));
        }
    }

    pub unsafe fn read_parts(&self, n: isize, parts: *const Part, count: usize, flags: i32) {
        let Some(n) = self.moved(n, flags & !MSG_PEEK) else { return };
        if flags & MSG_PEEK == 0 {
            // SAFETY: the kernel has written so many bytes into these parts.
            self.0.with(|exchange| unsafe { each_part(parts, count, n, |part| exchange.has_read(part)) });
        }
    }

    pub unsafe fn read_message(&self, n: isize, message: usize, flags: i32) {
        if n > 0 {
            // SAFETY: recvmsg(2) has succeeded with it.
            unsafe {
                let (parts, count) = parts_of(message);
                self.read_parts(n, parts, count, flags);
            }
        }
    }

    pub unsafe fn written(&self, n: isize, from: usize, flags: i32) {
        if let Some(n) = self.moved(n, flags) {
            // SAFETY: the kernel has read so many bytes there.
            self.0.with(|exchange| exchange.has_written(unsafe { bytes(from, n) }));
        }
    }

    pub unsafe fn written_parts(&self, n: isize, parts: *const Part, count: usize, flags: i32) {
        if let Some(n) = self.moved(n, flags) {
            // SAFETY: the kernel has read so many bytes from these parts.
            self.0.with(|exchange| unsafe { each_part(parts, count, n, |part| exchange.has_written(part)) });
        }
    }

    pub unsafe fn written_message(&self, n: isize, message: usize, flags: i32) {
        if n > 0 {
            // SAFETY: sendmsg(2) has succeeded with it.
            unsafe {
                let (parts, count) = parts_of(message);
                self.written_parts(n, parts, count, flags);
            }
        }
    }

    /// sendfile(2).
    pub unsafe fn written_unseen(&self, n: isize) {
        if let Some(n) = self.moved(n, 0) {
            self.0.with(|exchange| exchange.has_written_unseen(n as u64));
        }
    }

    /// A call that is not followed.
    pub unsafe fn unknown(&self, n: isize) {
        if n > 0 {
            self.0.lost.store(1, Release);
        }
    }

    /// How many bytes, if some went in the usual way.
    fn moved(&self, n: isize, flags: i32) -> Option<usize> {
        let n = usize::try_from(n).ok().filter(|&n| n > 0)?;
        if flags & (MSG_OOB | MSG_TRUNC | MSG_ERRQUEUE | MSG_ZEROCOPY | MSG_FASTOPEN) != 0 {
            self.0.lost.store(1, Release);
            return None;
        }
        Some(n)
    }
}

#[cfg(test)]
#[path = "watched_tests.rs"]
mod tests;
