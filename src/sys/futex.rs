//! futex(2) on a counter in memory that processes share.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU64;

/// The word that the kernel looks at: the lower half, which lies first on the machines that we serve.
fn address(counter: &AtomicU64) -> *const u32 {
    std::ptr::from_ref(counter).cast()
}

/// Sleeps until somebody calls [`wake`], unless the lower half of `counter` differs from `seen`. May return early.
pub fn wait(counter: &AtomicU64, seen: u32) {
    let forever = std::ptr::null::<libc::timespec>();
    // SAFETY: the word lives as long as `counter`, which is borrowed; the kernel only reads it.
    unsafe { libc::syscall(libc::SYS_futex, address(counter), libc::FUTEX_WAIT, seen, forever) };
}

/// Wakes all that wait on `counter`: one alone may be somebody else who has the memory.
pub fn wake(counter: &AtomicU64) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, address(counter), libc::FUTEX_WAKE, libc::c_int::MAX) };
}
