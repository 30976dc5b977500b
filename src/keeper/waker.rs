//! What the main thread of a keeper waits for.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{FIRST_STAND_IN, WAKE};

/// The main thread's epoll instance.
#[derive(Debug)]
pub struct Waker {
    epoll: Epoll,
    wake: EventFd,
}

impl Waker {
    /// # Errors
    /// As epoll_create1(2) and eventfd(2).
    pub fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self { epoll, wake })
    }

    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, fd: impl AsFd, source: u64) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source))
    }

    /// Watches a stand-in's file from its next [`Waker::await_file`] on.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn add_file(&self, file: &OwnedFd, at: usize) -> nix::Result<()> {
        self.epoll.add(file, EpollEvent::new(EpollFlags::EPOLLONESHOT, FIRST_STAND_IN + at as u64))
    }

    /// Has the main thread look once at a stand-in that has something, also if that is there already.
    pub fn await_file(&self, file: &OwnedFd, at: usize) {
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, FIRST_STAND_IN + at as u64);
        // Cannot fail for what was added.
        let _ = self.epoll.modify(file, &mut event);
    }

    /// The number of events, 0 after the time-out.
    pub fn wait(&self, events: &mut [EpollEvent], timeout: EpollTimeout) -> usize {
        self.epoll.wait(events, timeout).unwrap_or(0)
    }

    /// Takes note of a wake-up.
    pub fn awake(&self) {
        let _ = self.wake.read();
    }

    pub fn wake(&self) {
        let _ = self.wake.write(1);
    }
}
