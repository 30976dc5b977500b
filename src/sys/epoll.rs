//! What mio has no interest for, on its own epoll descriptor: EPOLLEXCLUSIVE (of all processes that watch a listener, only
//! one wakes up), and EPOLLRDHUP alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::cvt;

/// Adds `fd`, level-triggered and exclusive, with mio's layout of `token`.
pub fn add_exclusive(poll: &mio::Poll, fd: BorrowedFd<'_>, token: mio::Token) -> io::Result<()> {
    let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32, u64: token.0 as u64 };
    // SAFETY: `event` lives through the call; both descriptors are open while borrowed.
    cvt!(unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) })?;
    Ok(())
}

/// Adds `fd`, edge-triggered, for the end of its peer's side and for errors alone: what it sends wakes no one up.
pub fn add_hangup(poll: &mio::Poll, fd: BorrowedFd<'_>, token: mio::Token) -> io::Result<()> {
    let mut event = libc::epoll_event { events: (libc::EPOLLRDHUP | libc::EPOLLET) as u32, u64: token.0 as u64 };
    // SAFETY: as above.
    cvt!(unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) })?;
    Ok(())
}

/// Removes `fd` from the poll's set.
pub fn remove(poll: &mio::Poll, fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: EPOLL_CTL_DEL takes no event since Linux 2.6.9.
    cvt!(unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut()) })?;
    Ok(())
}
