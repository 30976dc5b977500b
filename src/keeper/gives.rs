//! What a keeper's server has in the place of its listening sockets, and which of its system calls are answered for that.

use std::str::FromStr;

use crate::sys::seccomp::Notified::{self, Always, With, Without};

/// What comes in the place of a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// The receiving end of a queue, into which the master puts connections.
    Queues,
    /// Policy none: the listening socket that all workers share.
    Listeners,
}

const WORDS: [(Gives, &str); 2] = [(Gives::Queues, "queues"), (Gives::Listeners, "listeners")];

/// shutdown(2) of the sending direction is no matter of a listener's, and of most connections.
const SHUTDOWN: Notified = Without(libc::SYS_shutdown, libc::SHUT_WR as u32);

const FOR_QUEUES: [Notified; 6] = [
    Always(libc::SYS_bind),
    Always(libc::SYS_listen),
    Always(libc::SYS_accept),
    Always(libc::SYS_accept4),
    Always(libc::SYS_getsockname),
    SHUTDOWN,
];

/// A listener tells its address itself. Whether accept(2) on it waits is each worker's own: the socket is the others', too.
const FOR_LISTENERS: [Notified; 7] = [
    Always(libc::SYS_bind),
    Always(libc::SYS_listen),
    Always(libc::SYS_accept),
    Always(libc::SYS_accept4),
    With(libc::SYS_fcntl, libc::F_SETFL as u32),
    With(libc::SYS_ioctl, libc::FIONBIO as u32),
    SHUTDOWN,
];

impl Gives {
    /// A word of the keeper's arguments.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(gives, _)| *gives == self).map_or("", |(_, word)| word)
    }

    /// The system calls that are answered.
    pub fn notified(self) -> &'static [Notified] {
        match self {
            Self::Queues => &FOR_QUEUES,
            Self::Listeners => &FOR_LISTENERS,
        }
    }
}

impl FromStr for Gives {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        WORDS.iter().find(|(_, own)| *own == word).map(|(gives, _)| *gives).ok_or(())
    }
}
