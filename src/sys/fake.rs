//! In tests, on their own thread: processes that do not run, and a time that does not pass by itself.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::signal::Signal;

/// What the code under test has done to processes.
#[derive(Debug)]
pub enum Act {
    /// `None` for a process that all slots share. A relay worker has a channel.
    Start {
        pid: u32,
        slot: Option<u32>,
        channel: Option<OwnedFd>,
    },
    Signal(u32, Signal),
}

struct Stage {
    now: Instant,
    next_pid: u32,
    start_fails: bool,
    acts: Vec<Act>,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

/// From now on this thread starts and signals nothing.
pub fn begin(now: Instant) {
    // No kernel gives such pids.
    let stage = Stage { now, next_pid: 1 << 30, start_fails: false, acts: Vec::new() };
    STAGE.with_borrow_mut(|current| *current = Some(stage));
}

fn staged<T>(act: impl FnOnce(&mut Stage) -> T) -> Option<T> {
    STAGE.with_borrow_mut(|stage| stage.as_mut().map(act))
}

pub fn set(now: Instant, start_fails: bool) {
    staged(|stage| (stage.now, stage.start_fails) = (now, start_fails));
}

/// What was done since the last time.
pub fn acts() -> Vec<Act> {
    staged(|stage| std::mem::take(&mut stage.acts)).unwrap_or_default()
}

pub fn now() -> Option<Instant> {
    staged(|stage| stage.now)
}

pub fn start(slot: Option<u32>, channel: Option<OwnedFd>) -> Option<io::Result<u32>> {
    staged(|stage| {
        if stage.start_fails {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let pid = stage.next_pid;
        stage.next_pid += 1;
        stage.acts.push(Act::Start { pid, slot, channel });
        Ok(pid)
    })
}

pub fn is_staged() -> bool {
    staged(|_| ()).is_some()
}

pub fn signal(pid: u32, signal: Signal) {
    staged(|stage| stage.acts.push(Act::Signal(pid, signal)));
}
