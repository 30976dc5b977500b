//! A bounded pool of pipes for splice(2).

use std::os::fd::{AsFd, OwnedFd};

use crate::sys::splice;

/// Asked for per pipe; the kernel may grant less.
const PIPE_BYTES: usize = 256 * 1024;
/// A pipe smaller than this is no gain over copying (an unprivileged user past pipe-user-pages-soft gets one page).
const USEFUL_BYTES: usize = 64 * 1024;
/// Pipes that may exist at once; more streams than this are copied.
const MAX_PIPES: usize = 128;
/// Empty pipes kept for the next stream.
const KEPT: usize = 16;

/// See [`Pipes::refusals`].
const REFUSALS: u32 = 1000;

/// A pipe between two sockets.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it: the only way to tell "source empty" from "pipe full".
    held: usize,
    capacity: usize,
}

/// What a splice did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spliced {
    /// So many bytes moved; 0 when filling means end of file.
    Moved(usize),
    /// The kernel would block.
    Blocked,
}

impl Pipe {
    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves bytes from a socket into the pipe.
    ///
    /// # Errors
    /// As splice(2), without `EAGAIN`.
    pub fn fill(&mut self, from: &OwnedFd) -> std::io::Result<Spliced> {
        let spliced = blocked(splice::move_bytes(from.as_fd(), self.write.as_fd(), self.capacity))?;
        if let Spliced::Moved(n) = spliced {
            self.held += n;
        }
        Ok(spliced)
    }

    /// Moves bytes from the pipe into a socket.
    ///
    /// # Errors
    /// As splice(2), without `EAGAIN`.
    pub fn drain(&mut self, to: &OwnedFd) -> std::io::Result<Spliced> {
        let spliced = blocked(splice::move_bytes(self.read.as_fd(), to.as_fd(), self.held))?;
        if let Spliced::Moved(n) = spliced {
            self.held = self.held.saturating_sub(n);
        }
        Ok(spliced)
    }
}

fn blocked(result: std::io::Result<usize>) -> std::io::Result<Spliced> {
    match result {
        Ok(n) => Ok(Spliced::Moved(n)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Spliced::Blocked),
        Err(error) => Err(error),
    }
}

/// The pool.
#[derive(Debug)]
pub struct Pipes {
    /// Pipes that may exist at once.
    most: usize,
    free: Vec<Pipe>,
    existing: usize,
    /// After a refusal by the system, so many requests are answered without asking it again.
    refusals: u32,
}

impl Pipes {
    /// An empty pool of at most `most` pipes.
    pub fn new(most: usize) -> Self {
        Self { most: most.min(MAX_PIPES), free: Vec::new(), existing: 0, refusals: 0 }
    }

    /// A pipe, unless there are too many or the system has none: then the stream is copied.
    pub fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.existing >= self.most || self.refusals > 0 {
            self.refusals = self.refusals.saturating_sub(1);
            return None;
        }
        match splice::pipe(PIPE_BYTES) {
            Ok((read, write, capacity)) if capacity >= USEFUL_BYTES => {
                self.existing += 1;
                Some(Pipe { read, write, held: 0, capacity })
            }
            _ => {
                self.refusals = REFUSALS;
                None
            }
        }
    }

    /// Gives a pipe back. One that is not empty is closed: its bytes must not reach another stream.
    pub fn put(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.free.len() < KEPT {
            self.free.push(pipe);
        } else {
            self.existing = self.existing.saturating_sub(1);
        }
    }

    /// Descriptors that the pool may come to use.
    pub const fn most_descriptors() -> usize {
        2 * MAX_PIPES
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_used_again() {
        let mut pipes = Pipes::new(MAX_PIPES);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"secret").unwrap();
        let mut pipe = pipes.take().unwrap();
        assert_eq!(pipe.fill(&theirs.into()).unwrap(), Spliced::Moved(6));
        pipes.put(pipe);
        assert_eq!(pipes.take().unwrap().held(), 0);
    }

    #[test]
    fn the_pool_is_bounded_and_comes_back() {
        let mut pipes = Pipes::new(MAX_PIPES);
        let all: Vec<_> = std::iter::from_fn(|| pipes.take()).collect();
        assert_eq!(all.len(), MAX_PIPES);
        all.into_iter().for_each(|pipe| pipes.put(pipe));
        assert!(pipes.take().is_some());
    }
}
