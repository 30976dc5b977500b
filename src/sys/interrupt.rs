//! A timer that interrupts the blocking system calls of one thread.
//!
//! A server has copies of the sockets that it passes to us, so it can make our accept(2) block (O_NONBLOCK belongs to the
//! open file) and our close(2), too (SO_LINGER).
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::cvt;

/// Ignored by default and here; it only ends a wait.
const SIGNAL: Signal = Signal::SIGURG;

/// Interval of interrupts during a close.
const CLOSE_INTERVAL: Duration = Duration::from_millis(2);

/// Runs a close that a server can make block. Once interrupted, the kernel finishes it in the background.
pub fn impatiently(close: impl FnOnce()) {
    thread_local!(static TIMER: Option<Interrupter> = Interrupter::new().ok());
    TIMER.with(|timer| {
        let every = |interval| timer.iter().for_each(|timer| timer.every(interval));
        every(CLOSE_INTERVAL);
        close();
        every(Duration::ZERO);
    })
}

/// A timer for the thread that made it.
#[derive(Debug)]
pub struct Interrupter(libc::timer_t);

extern "C" fn nothing(_: libc::c_int) {}

impl Interrupter {
    /// A stopped timer for the calling thread.
    pub fn new() -> io::Result<Self> {
        // Not SA_RESTART: an accept(2) would wait on.
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is safe at any point of any thread; no other code handles this signal.
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

    /// Interrupts the thread at this interval; zero stops the timer.
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
