//! A bounded pool of pipes for splice(2).

use std::os::fd::{AsFd, OwnedFd};

use crate::sys::splice;

/// Requested size of a pipe; the kernel may grant less.
const PIPE_BYTES: usize = 256 * 1024;
/// With a smaller pipe copying is as good (an unprivileged user past pipe-user-pages-soft gets one page).
const MIN_PIPE_BYTES: usize = 64 * 1024;
/// The most pipes at once; further streams are copied.
const MAX_PIPES: usize = 128;
/// The most empty pipes kept for later streams.
const MAX_FREE: usize = 16;

/// Requests answered without a system call after the system refused a pipe.
const REFUSALS: u32 = 1000;

/// A pipe between two sockets.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe: the only way to tell "source empty" from "pipe full".
    held: usize,
    capacity: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spliced {
    /// Bytes moved; 0 when filling means end of file.
    Moved(usize),
    Blocked,
}

impl Pipe {
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves bytes from a socket into the pipe, at most `most` (not 0).
    pub fn fill(&mut self, from: &OwnedFd, most: u64) -> std::io::Result<Spliced> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.capacity);
        let spliced = blocked(splice::move_bytes(from.as_fd(), self.write.as_fd(), most))?;
        if let Spliced::Moved(n) = spliced {
            self.held += n;
        }
        Ok(spliced)
    }

    /// Moves bytes from the pipe into a socket.
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

#[derive(Debug)]
pub struct Pipes {
    /// The most pipes at once.
    max: usize,
    free: Vec<Pipe>,
    existing: usize,
    /// Requests left to be answered without a system call; see [`REFUSALS`].
    refusals: u32,
}

impl Pipes {
    pub fn new(max: usize) -> Self {
        Self { max: max.min(MAX_PIPES), free: Vec::new(), existing: 0, refusals: 0 }
    }

    /// An empty pipe, or `None` if the stream is to be copied.
    pub fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.free.pop() {
            return Some(pipe);
        }
        if self.existing >= self.max || self.refusals > 0 {
            self.refusals = self.refusals.saturating_sub(1);
            return None;
        }
        match splice::pipe(PIPE_BYTES) {
            Ok((read, write, capacity)) if capacity >= MIN_PIPE_BYTES => {
                self.existing += 1;
                Some(Pipe { read, write, held: 0, capacity })
            }
            _ => {
                self.refusals = REFUSALS;
                None
            }
        }
    }

    /// Returns a pipe. A pipe with bytes in it is closed: they must not reach another stream.
    pub fn put(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.free.len() < MAX_FREE {
            self.free.push(pipe);
        } else {
            self.existing = self.existing.saturating_sub(1);
        }
    }

    pub const fn max_descriptors() -> usize {
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
        assert_eq!(pipe.fill(&theirs.into(), u64::MAX).unwrap(), Spliced::Moved(6));
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
