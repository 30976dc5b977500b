//! Policy none: servers accept by themselves, and the master tells them to stop that.

use std::sync::atomic::{Ordering, fence};

use super::{CountersPage, is_alive};
use crate::abi::page::{ROWS, header, row};

impl CountersPage {
    /// The server's processes accept no more.
    pub fn leave(&self) {
        self.0.words()[header::LEAVING].store(1, Ordering::SeqCst);
        // Who is accepting is read after this, as processes read this after they have said that they are.
        fence(Ordering::SeqCst);
    }

    /// Whether the server's processes were told so.
    pub fn is_leaving(&self) -> bool {
        self.0.words()[header::LEAVING].load(Ordering::Relaxed) != 0
    }

    /// A keeper is about to accept a connection, which is not counted yet. Returns whether it may.
    pub fn begins_to_accept(&self) -> bool {
        self.set_accepting(true);
        self.0.words()[header::LEAVING].load(Ordering::SeqCst) == 0
    }

    /// Whether a keeper has connections that are not counted yet.
    pub fn set_accepting(&self, accepting: bool) {
        self.word(0, row::ACCEPTING).store(u64::from(accepting), Ordering::SeqCst);
    }

    /// Whether each process that receives connections has a row.
    pub fn has_all(&self) -> bool {
        self.rows().count() < ROWS
    }

    /// Whether a process that is alive is accepting a connection just now, which it has not counted yet.
    pub fn is_accepting(&self) -> bool {
        let accepting = |at: usize| {
            let pid = self.word(at, row::PID).load(Ordering::Acquire);
            self.word(at, row::ACCEPTING).load(Ordering::SeqCst) != 0 && is_alive(pid)
        };
        self.rows().any(accepting)
    }
}
