//! How many connections the server has open. It closes them unseen, so the kernel is asked from time to time which of them some
//! process still has: the number is an estimate.

use std::os::fd::BorrowedFd;

use crate::sys::sock::PeerAddress;
use crate::sys::sock_open::{BATCH, Ends, Kernel};

/// The most connections that are remembered; more count as closed.
const MAX_NOTED: usize = 65_536;

/// Connections that the server had open when the kernel was asked last, and those since.
#[derive(Debug, Default)]
pub struct Open {
    connections: Vec<Ends>,
    /// There are new ones since the last look.
    new: bool,
}

impl Open {
    /// Remembers a connection. Returns whether it is the only one; `None` where it cannot be remembered.
    pub fn note(&mut self, socket: BorrowedFd<'_>, client: &PeerAddress) -> Option<bool> {
        let ends = Ends::of(socket, client).filter(|_| self.connections.len() < MAX_NOTED)?;
        self.connections.push(ends);
        self.new = true;
        Some(self.connections.len() == 1)
    }

    /// Forgets the connection that was remembered last.
    pub fn forget_last(&mut self) {
        self.connections.pop();
    }

    /// For a look: all of them, and whether there are new ones.
    pub fn take(&mut self) -> (Vec<Ends>, bool) {
        (std::mem::take(&mut self.connections), std::mem::take(&mut self.new))
    }

    /// Those of them that are still open. Returns whether there are any.
    pub fn put_back(&mut self, open: Vec<Ends>) -> bool {
        self.connections.extend(open);
        !self.connections.is_empty()
    }
}

/// Takes out of a list of connections those that no process has any more, and returns how many; all where the kernel does not say.
pub fn take_closed(connections: &mut Vec<Ends>) -> u64 {
    let before = connections.len();
    let Ok(mut kernel) = Kernel::open() else {
        connections.clear();
        return before as u64;
    };
    let mut open = Vec::with_capacity(before);
    for batch in connections.chunks(BATCH) {
        if let Ok(answers) = kernel.are_open(batch) {
            open.extend(batch.iter().zip(answers).filter_map(|(ends, open)| open.then_some(*ends)));
        }
    }
    *connections = open;
    (before - connections.len()) as u64
}
