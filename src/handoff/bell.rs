//! The doorbell: a worker rings it when it has closed a connection while clients wait for room in a worker. It is a futex
//! in shared memory and no descriptor, because servers close descriptors that they do not know.

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
        thread::Builder::new().name("bell".into()).spawn(move || {
            let rings = &page.words()[RINGS];
            let mut heard = 0;
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
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn every_ring_is_heard() {
        let (heard, hears) = channel();
        let bell = Bell::hang(move || heard.send(()).unwrap()).unwrap();
        let rope = BellRope::attach(bell.as_fd()).unwrap();
        for _ in 0..100 {
            rope.ring();
            hears.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }

    #[test]
    fn somebody_else_who_waits_takes_no_ring() {
        let (heard, hears) = channel();
        let bell = Bell::hang(move || heard.send(()).unwrap()).unwrap();
        let rope = BellRope::attach(bell.as_fd()).unwrap();
        const RUNG: u64 = 100;
        for _ in 0..8 {
            let memory = BellRope::attach(bell.as_fd()).unwrap();
            thread::spawn(move || {
                let rings = &memory.0.words()[RINGS];
                while let now @ ..RUNG = rings.load(SeqCst) {
                    futex::wait(rings, now as u32);
                }
            });
        }
        for _ in 0..RUNG {
            rope.ring();
            hears.recv_timeout(Duration::from_secs(20)).unwrap();
        }
    }
}
