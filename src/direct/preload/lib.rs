//! The preload library: stands in front of libc's socket calls and puts the worker's queue in place of the server's own
//! listening socket.
//!
//! No allocation, no output, no dependency but `__errno_location`; raw system calls; safe in signal handlers and after
//! fork. Serves glibc and musl.
#![cfg_attr(not(test), no_std)]
#![allow(unsafe_code)]

#[path = "../../abi/mod.rs"]
#[allow(dead_code)]
mod abi;
mod accept;
mod address;
mod arch;
mod bell;
mod bind;
mod client;
mod close;
mod connect;
mod counts;
mod epolls;
#[path = "../../exchange/mod.rs"]
#[allow(dead_code)]
mod exchange;
mod identity;
mod idle;
mod inherited;
mod journal;
mod lease;
mod message;
mod moving;
mod next;
mod raw;
mod sockopt;
mod table;
mod transfer;
mod translations;
mod watched;

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

/// Sets errno and returns -1, as libc's wrappers do.
fn fail(errno: i32) -> i32 {
    // SAFETY: libc returns the calling thread's errno, valid as long as the thread.
    unsafe { *__errno_location() = errno };
    -1
}

fn errno() -> i32 {
    // SAFETY: as in `fail`.
    unsafe { *__errno_location() }
}

/// A raw system call's result as libc's wrappers give it.
fn libc_result(result: isize) -> i32 {
    if (-4095..0).contains(&result) { fail(-result as i32) } else { result as i32 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable by construction: no indexing without a check, no unwrap.
    arch::exit_group(70)
}

/// Referred to by core, never called (panics abort).
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
