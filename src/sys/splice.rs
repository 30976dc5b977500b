//! splice(2) between sockets and pipes: bytes move without passing through this process.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};

/// Moves at most `len` bytes from `from` to `to`, one of which is a pipe; never blocks.
///
/// # Errors
/// `WouldBlock` means "source empty" or "target full": the caller counts the bytes in its pipe to tell them apart.
/// SPLICE_F_MORE is not used: it would hold back the tail of a message.
pub fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, len, flags)?)
}

/// A non-blocking pipe: reading end, writing end, and capacity in bytes, which may be less than `size`
/// (pipe-user-pages-soft).
pub fn pipe(size: usize) -> io::Result<(OwnedFd, OwnedFd, usize)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let wanted = i32::try_from(size).unwrap_or(i32::MAX);
    let capacity = match fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted)) {
        Ok(granted) => granted,
        Err(_) => fcntl(&write, FcntlArg::F_GETPIPE_SZ)?,
    };
    Ok((read, write, capacity.max(0) as usize))
}
