//! What a keeper's server has in the place of its listening sockets, and which of its system calls are answered for that.

use std::str::FromStr;

use super::options;
use crate::sys::seccomp_filter::Rule;

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
const SHUTDOWN: Rule = Rule::NotifiedUnless(libc::SYS_shutdown, libc::SHUT_WR);

/// A ring accepts unseen. As where the kernel has none, programs do without.
const NO_RINGS: Rule = Rule::Fails(libc::SYS_io_uring_setup, libc::ENOSYS);

const FOR_QUEUES: [Rule; 9] = [
    Rule::Notified(libc::SYS_bind),
    Rule::Notified(libc::SYS_listen),
    Rule::Notified(libc::SYS_accept),
    Rule::Notified(libc::SYS_accept4),
    Rule::Notified(libc::SYS_getsockname),
    SHUTDOWN,
    options::SET,
    options::READ,
    NO_RINGS,
];

/// A listener tells its address and options itself. Whether accept(2) on it waits is each worker's own: the socket is the others',
/// too.
const FOR_LISTENERS: [Rule; 8] = [
    Rule::Notified(libc::SYS_bind),
    Rule::Notified(libc::SYS_listen),
    Rule::Notified(libc::SYS_accept),
    Rule::Notified(libc::SYS_accept4),
    Rule::NotifiedIf(libc::SYS_fcntl, libc::F_SETFL),
    Rule::NotifiedIf(libc::SYS_ioctl, libc::FIONBIO as i32),
    SHUTDOWN,
    NO_RINGS,
];

impl Gives {
    /// A word of the keeper's arguments.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(gives, _)| *gives == self).map_or("", |(_, word)| word)
    }

    /// What becomes of system calls.
    pub fn rules(self) -> &'static [Rule] {
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
