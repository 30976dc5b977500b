//! accept(2) never blocks for long, whatever a socket's flags say.
//!
//! O_NONBLOCK belongs to the open file, which other processes share: the server that bound the socket, or the one that
//! passed it to us. If one of them clears it, accept(2) would wait for the next client, and all services with it.

use std::time::Duration;

use crate::sys::interrupt::Interrupter;

/// The longest wait in accept(2).
const MAX_WAIT: Duration = Duration::from_millis(50);

/// A timer that runs while connections come, so that it costs no system call per connection.
#[derive(Debug)]
pub(super) struct Alarm {
    /// `None` where the system has no timers for threads.
    interrupter: Option<Interrupter>,
    runs: bool,
    /// Connections accepted since the start when it last rang in a wait for events.
    accepted: u64,
}

impl Alarm {
    /// An alarm for the calling thread.
    pub fn new() -> Self {
        Self { interrupter: Interrupter::new().ok(), runs: false, accepted: 0 }
    }

    /// Starts the timer. To be called before accept(2).
    pub fn run(&mut self) {
        if !self.runs {
            self.set(MAX_WAIT);
        }
    }

    /// A wait for events was interrupted: stops the timer unless connections came since the last time.
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
