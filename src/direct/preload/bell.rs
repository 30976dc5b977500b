//! Doorbells: tell the master, while it waits for it, that something was written into shared memory: by --worker-conns that a
//! connection was closed or received, by the access log a record. A futex: a descriptor could be closed by the server.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

use super::abi::page::{PAGE_BYTES, bell::RINGS};
use super::arch::{nr, syscall6};
use super::{counts, raw};

/// Where a bell's page is mapped; 0 before it came.
pub struct Bell(AtomicUsize);

/// Rung, while clients wait for room in this worker, when a connection was closed.
pub static ROOM: Bell = Bell::new();

impl Bell {
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Maps the bell's page that came with a reply (-1: none did), once, and closes the descriptor.
    pub fn hang(&self, fd: i32) {
        if fd < 0 {
            return;
        }
        if self.0.load(Acquire) == 0
            && let Some(at) = counts::map_shared(fd, PAGE_BYTES)
        {
            self.0.store(at, Release);
        }
        raw::close(fd);
    }

    /// A message was received from a queue.
    pub fn received(&self) {
        if self.0.load(Relaxed) != 0 && counts::is_receive_awaited() {
            self.ring();
        }
    }

    /// Wakes the master. Costs a system call.
    pub fn ring(&self) {
        const FUTEX_WAKE: usize = 1;
        // All that wait: one alone may be another server, which has the memory, too.
        const ALL: usize = i32::MAX as usize;
        let page = self.0.load(Acquire);
        if page != 0 {
            // SAFETY: the page is mapped, never unmapped, and sealed against shrinking; all accesses are atomic.
            let rings = unsafe { &*(page as *const AtomicU64).add(RINGS) };
            rings.fetch_add(1, SeqCst);
            // The lower half of the counter lies first on the machines that we serve.
            // SAFETY: the kernel does not write to the word.
            unsafe { syscall6(nr::FUTEX, [rings as *const AtomicU64 as usize, FUTEX_WAKE, ALL, 0, 0, 0]) };
        }
    }
}
