//! The doorbell: tells the master, while clients wait for room in this worker, that a connection was closed or received. A
//! futex in shared memory: a descriptor could be closed by the server.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

use super::abi::page::bell::RINGS;
use super::arch::{nr, syscall6};
use super::{counts, raw};

/// Where the bell's page is mapped; 0 before it came.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// Maps the bell's page that came with a reply (-1: none did), once, and closes the descriptor.
pub fn hang(fd: i32) {
    if fd < 0 {
        return;
    }
    if PAGE.load(Acquire) == 0
        && let Some(at) = counts::map_shared(fd)
    {
        PAGE.store(at, Release);
    }
    raw::close(fd);
}

/// A message was received from a queue.
pub fn received() {
    if PAGE.load(Relaxed) != 0 && counts::is_receive_awaited() {
        ring();
    }
}

/// Wakes the master. Costs a system call.
pub fn ring() {
    const FUTEX_WAKE: usize = 1;
    // All that wait: one alone may be another server, which has the memory, too.
    const ALL: usize = i32::MAX as usize;
    let page = PAGE.load(Acquire);
    if page != 0 {
        // SAFETY: the page is mapped, never unmapped, and sealed against shrinking; all accesses are atomic.
        let rings = unsafe { &*(page as *const AtomicU64).add(RINGS) };
        rings.fetch_add(1, SeqCst);
        // The lower half of the counter lies first on the machines that we serve.
        // SAFETY: the kernel does not write to the word.
        unsafe { syscall6(nr::FUTEX, [rings as *const AtomicU64 as usize, FUTEX_WAKE, ALL, 0, 0, 0]) };
    }
}
