//! The doorbell: a worker rings it when it has closed or received a connection while clients wait for room in a worker. It is
//! a futex in shared memory and no descriptor, because servers close descriptors that they do not know.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use crate::abi::page::bell::RINGS;
use crate::sys::futex;
use crate::sys::mmap::SharedPage;

/// The master's side.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell whose rings call `rung` on a thread of its own; several at once may be one call.
    ///
    /// # Errors
    /// When memory or a thread cannot be had.
    pub fn hang(rung: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (page, fd) = SharedPage::create()?;
        Self::listen(page, fd, rung)
    }

    /// The same with the memory of a bell that workers have already.
    ///
    /// # Errors
    /// As [`Bell::hang`].
    pub fn hang_again(fd: OwnedFd, rung: impl Fn() + Send + 'static) -> io::Result<Self> {
        Self::listen(SharedPage::map(fd.as_fd())?, fd, rung)
    }

    fn listen(page: SharedPage, fd: OwnedFd, rung: impl Fn() + Send + 'static) -> io::Result<Self> {
        let mut heard = page.words()[RINGS].load(SeqCst) as u32;
        thread::Builder::new().name("bell".into()).spawn(move || {
            let rings = &page.words()[RINGS];
            loop {
                futex::wait(rings, heard);
                let now = rings.load(SeqCst) as u32;
                if now != heard {
                    heard = now;
                    rung();
                }
            }
        })?;
        Ok(Self(fd))
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A relay worker's side.
#[derive(Debug, Clone)]
pub struct BellRope(Arc<SharedPage>);

impl BellRope {
    /// Maps the memory behind a [`Bell`].
    ///
    /// # Errors
    /// As mmap(2).
    pub fn attach(bell: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(SharedPage::map(bell)?)))
    }

    pub fn ring(&self) {
        let rings = &self.0.words()[RINGS];
        rings.fetch_add(1, SeqCst);
        futex::wake(rings);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "bell_tests.rs"]
mod tests;
