//! accept(2) never blocks for long, whatever a socket's flags say.
//!
//! O_NONBLOCK belongs to the open file, and others have that, too: the server that bound the socket, whoever passed it to
//! us. One of them that clears it would have the accept thread wait for a next client, and all services with it.

use std::time::Duration;

use crate::sys::interrupt::Interrupter;

/// A wait in accept(2) ends at the latest after so long.
const LONGEST: Duration = Duration::from_millis(50);

/// The timer: it runs while connections come, and costs no system call per connection.
#[derive(Debug)]
pub(super) struct Alarm {
    /// `None`: this system has no timers for threads.
    interrupter: Option<Interrupter>,
    runs: bool,
    /// Connections accepted ever when it last rang in a wait for events.
    accepted: u64,
}

impl Alarm {
    /// For the calling thread.
    pub fn new() -> Self {
        Self { interrupter: Interrupter::new().ok(), runs: false, accepted: 0 }
    }

    /// Before accept(2).
    pub fn run(&mut self) {
        if !self.runs {
            self.set(LONGEST);
        }
    }

    /// A wait for events was interrupted: without new connections since the last time it is not needed any more.
    pub fn rang(&mut self, accepted: u64) {
        if self.runs && self.accepted == accepted {
            self.set(Duration::ZERO);
        }
        self.accepted = accepted;
    }

    fn set(&mut self, interval: Duration) {
        self.runs = interval > Duration::ZERO;
        self.interrupter.iter().for_each(|timer| timer.every(interval));
    }
}
