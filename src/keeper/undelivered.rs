//! What was done for calls that a signal may have interrupted before the answer was there: the kernel has their threads call
//! again.

use std::collections::VecDeque;

use super::master::Reply;
use crate::abi::attach::ADDRESS_BYTES;
use crate::sys::seccomp::Call;

/// The most of each kind that are remembered: those whose threads do not call again are forgotten in their turn.
const MAX: usize = 16;

#[derive(Debug, Default)]
pub struct Undelivered {
    /// Successful calls.
    done: VecDeque<Call>,
    /// Sockets that are bound, by their inodes, whose stand-ins could not be put in their places any more.
    bound: VecDeque<(u64, Bound)>,
}

/// The result of a bind(2).
#[derive(Debug)]
pub struct Bound {
    /// As the server has written it.
    pub address: [u8; ADDRESS_BYTES],
    /// Of the server's socket before the master had it, as open(2) has them.
    pub flags: i32,
    pub reply: Reply,
}

impl Undelivered {
    /// A successful call. Whether its answer has arrived is not known: the next listen(2) shows it of a bind(2).
    pub fn note(&mut self, call: &Call) {
        self.done.truncate(MAX - 1);
        self.done.push_front(*call);
    }

    /// listen(2) on a descriptor: what was bound there is known to the server.
    pub fn listens(&mut self, fd: u64) {
        self.done.retain(|call| call.number != libc::SYS_bind || call.arguments[0] as i32 != fd as i32);
    }

    /// Whether this call is one that was successful before.
    pub fn take(&mut self, call: &Call) -> bool {
        // What comes after these is of no matter, and need not be the same.
        let count = if call.number == libc::SYS_bind { 3 } else { 2 };
        let same = |other: &Call| {
            (other.thread, other.number, &other.arguments[..count])
                == (call.thread, call.number, &call.arguments[..count])
        };
        self.done.iter().position(same).and_then(|at| self.done.remove(at)).is_some()
    }

    pub fn note_bound(&mut self, inode: u64, bound: Bound) {
        self.bound.truncate(MAX - 1);
        self.bound.push_front((inode, bound));
    }

    pub fn take_bound(&mut self, inode: u64, address: &[u8; ADDRESS_BYTES]) -> Option<Bound> {
        let at = self.bound.iter().position(|(own, bound)| *own == inode && bound.address == *address)?;
        self.bound.remove(at).map(|(_, bound)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_once_and_the_latest_are() {
        let call = |thread| Call { id: 1, thread, number: libc::SYS_bind, arguments: [3, 4, 16, 0, 0, 0] };
        let mut undelivered = Undelivered::default();
        (0..=MAX as u32).for_each(|thread| undelivered.note(&call(thread)));
        assert!(!undelivered.take(&call(0)), "the eldest of too many");
        let again = Call { id: 2, arguments: [3, 4, 16, 7, 8, 9], ..call(1) };
        assert!(undelivered.take(&again) && !undelivered.take(&again));
        assert!(!undelivered.take(&Call { number: libc::SYS_listen, ..call(2) }));
        undelivered.listens(3);
        assert!(!undelivered.take(&call(2)), "a second bind(2)");
    }
}
