//! Another process's memory and open files, without opening its files in /proc. Each call takes the right to trace it, and a
//! container's profile may forbid it (`EPERM`, `ENOSYS`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::cvt;

/// KCMP_FILE (linux/kcmp.h)
const FILE: libc::c_long = 0;

/// Reads the memory of a thread.
///
/// # Errors
/// As process_vm_readv(2); `EFAULT` for memory that is not there, also in part.
pub fn read_memory(thread: u32, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    let own = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let theirs = libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() };
    // SAFETY: the kernel writes to `bytes` alone, which lives through the call; the other address is of the other process.
    let read = cvt!(unsafe { libc::process_vm_readv(thread as i32, &raw const own, 1, &raw const theirs, 1, 0) })?;
    if read as usize == bytes.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Writes to two places in the memory of a thread.
///
/// # Errors
/// As process_vm_writev(2); `EFAULT` for memory that is not there or read-only, also in part.
pub fn write_memory(thread: u32, places: [(u64, &[u8]); 2]) -> io::Result<()> {
    let own = places.map(|(_, bytes)| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    let theirs = places.map(|(at, bytes)| libc::iovec { iov_base: at as *mut _, iov_len: bytes.len() });
    // SAFETY: the kernel only reads our side, whose bytes live through the call; the other addresses are of the other process.
    let written = cvt!(unsafe { libc::process_vm_writev(thread as i32, own.as_ptr(), 2, theirs.as_ptr(), 2, 0) })?;
    let all = places.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    if written as usize == all { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
}

/// Whether a thread has this open file of ours at its descriptor `fd`.
///
/// # Errors
/// As kcmp(2); `EBADF` when nothing is open there.
pub fn has_file(thread: u32, fd: i32, ours: BorrowedFd<'_>) -> io::Result<bool> {
    let (own, fd) = (std::process::id(), libc::c_long::from(fd));
    let ours = libc::c_long::from(ours.as_raw_fd());
    // SAFETY: the call takes five integers.
    let order = cvt!(unsafe { libc::syscall(libc::SYS_kcmp, own, thread, FILE, ours, fd) })?;
    Ok(order == 0)
}
