//! A timer that interrupts the blocking system calls of one thread.
//!
//! A server keeps copies of the sockets that it passes: it can make an accept(2) of ours wait (O_NONBLOCK belongs to the open
//! file), and a close(2) (SO_LINGER).
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::cvt;

/// Does nothing by default, and here: it only ends a wait.
const SIGNAL: Signal = Signal::SIGURG;

/// A close that may block is interrupted this often.
const LONGEST: Duration = Duration::from_millis(2);

/// Closes what a server can make block: when it is interrupted, close(2) goes on without us.
pub fn impatiently(close: impl FnOnce()) {
    thread_local!(static TIMER: Option<Interrupter> = Interrupter::new().ok());
    TIMER.with(|timer| {
        let every = |interval| timer.iter().for_each(|timer| timer.every(interval));
        every(LONGEST);
        close();
        every(Duration::ZERO);
    })
}

/// The timer. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Interrupter(libc::timer_t);

extern "C" fn nothing(_: libc::c_int) {}

impl Interrupter {
    /// A timer that does not run yet, for the calling thread.
    ///
    /// # Errors
    /// As sigaction(2) and timer_create(2).
    pub fn new() -> io::Result<Self> {
        // Not SA_RESTART: an accept(2) would wait on.
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is safe at any point of any thread; nobody else handles this signal.
        unsafe { sigaction(SIGNAL, &action) }?;
        let mut timer = std::ptr::null_mut();
        // SAFETY: sigevent is plain data for which zeroes are valid; both pointers are to locals that outlive the call.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL as libc::c_int;
            event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
            cvt!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer))?;
        }
        Ok(Self(timer))
    }

    /// Interrupts the thread at this interval from now on; zero ends that.
    pub fn every(&self, interval: Duration) {
        let time = libc::timespec { tv_sec: interval.as_secs() as _, tv_nsec: interval.subsec_nanos() as _ };
        let times = libc::itimerspec { it_interval: time, it_value: time };
        // SAFETY: the timer exists as long as this value; the times live through the call. It fails for no valid time.
        unsafe { libc::timer_settime(self.0, 0, &raw const times, std::ptr::null_mut()) };
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used any more.
        unsafe { libc::timer_delete(self.0) };
    }
}
