//! What the control thread waits on: every descriptor in its epoll has a [`Source`].

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Token};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A signal has arrived.
    Signals,
    /// The accept thread has sent a report, or the admin thread a question.
    Waker,
    /// A client connects to the control socket.
    ControlListener,
    /// A client of the control socket, by its number.
    ControlClient(u32),
    /// A preload library connects to the attach socket.
    AttachListener,
    /// A connection of a preload library, or the end of a process with a lease, by its number.
    Attached(u32),
    /// Some server's NOTIFY_SOCKET: the next step reads all of them.
    Notify,
    /// The channel of the relay worker with this pid.
    Relay(u32),
    /// The IPC channel of the server with this pid.
    Node(u32),
}

/// The kind of a source is above these bits of its token, its number or pid in them.
const NUMBER_BITS: u32 = 32;

impl From<Source> for Token {
    fn from(source: Source) -> Self {
        let (kind, number) = match source {
            Source::Signals => (0, 0),
            Source::Waker => (1, 0),
            Source::ControlListener => (2, 0),
            Source::ControlClient(number) => (3, number),
            Source::AttachListener => (4, 0),
            Source::Attached(number) => (5, number),
            Source::Notify => (6, 0),
            Source::Relay(pid) => (7, pid),
            Source::Node(pid) => (8, pid),
        };
        Self(kind << NUMBER_BITS | number as usize)
    }
}

impl Source {
    /// The source of a token; `None` for one that was made by nobody.
    pub fn of(Token(token): Token) -> Option<Self> {
        let number = token as u32;
        Some(match token >> NUMBER_BITS {
            0 => Self::Signals,
            1 => Self::Waker,
            2 => Self::ControlListener,
            3 => Self::ControlClient(number),
            4 => Self::AttachListener,
            5 => Self::Attached(number),
            6 => Self::Notify,
            7 => Self::Relay(number),
            8 => Self::Node(number),
            _ => return None,
        })
    }

    fn interest(self) -> Interest {
        match self {
            Self::ControlClient(_) | Self::Node(_) => Interest::READABLE | Interest::WRITABLE,
            _ => Interest::READABLE,
        }
    }
}

/// Adds descriptors to the control thread's epoll.
#[derive(Debug, Clone)]
pub struct Registry(Arc<mio::Registry>);

impl Registry {
    /// Those of this epoll.
    ///
    /// # Errors
    /// As dup(2).
    pub fn new(registry: &mio::Registry) -> io::Result<Self> {
        Ok(Self(Arc::new(registry.try_clone()?)))
    }

    /// Reports events of a descriptor, edge-triggered, until its last copy is closed.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, source: Source, fd: impl AsFd) -> io::Result<()> {
        self.0.register(&mut SourceFd(&fd.as_fd().as_raw_fd()), source.into(), source.interest())
    }

    /// Reports none any more.
    pub fn unwatch(&self, fd: impl AsFd) {
        // Fails only for a descriptor that is not watched.
        let _ = self.0.deregister(&mut SourceFd(&fd.as_fd().as_raw_fd()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_a_token_of_its_own() {
        let numbered = |number| {
            [Source::ControlClient(number), Source::Attached(number), Source::Relay(number), Source::Node(number)]
        };
        let single = [Source::Signals, Source::Waker, Source::ControlListener, Source::AttachListener, Source::Notify];
        let all: Vec<Source> = single.into_iter().chain([0, 1, u32::MAX].into_iter().flat_map(numbered)).collect();
        for (at, source) in all.iter().enumerate() {
            assert_eq!(Source::of(Token::from(*source)), Some(*source));
            assert!(all[..at].iter().all(|other| Token::from(*other) != Token::from(*source)));
        }
        assert_eq!(Source::of(Token(usize::MAX)), None);
    }
}
