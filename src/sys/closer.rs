//! Closes descriptors made by other processes on threads of its own.
//!
//! Such a close can block for as long as the other process likes: a socket with SO_LINGER and unsent data, a file on FUSE.
//! The same is true for a Unix socket of ours that a peer wrote to: descriptors that were never received (or received
//! without room for them) are closed in the thread that closes the socket or receives the message.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::interrupt::Interrupter;

/// The longest close: then it is interrupted, and the kernel finishes it in the background.
const MAX_CLOSE: Duration = Duration::from_millis(2);
/// The most sockets that wait to be closed before new ones are refused; each takes at most `MAX_CLOSE`.
const MAX_SOCKETS: usize = 64;
/// The same for descriptors that were received.
const MAX_RECEIVED: usize = 512;

/// How long the start of a process waits for closes under way. By then their descriptors have left our table.
const BEFORE_A_START: Duration = Duration::from_millis(10);
/// Open [`Foreign`] descriptors, one bit each; higher numbers are not tracked.
static OPEN: [AtomicU64; 1 << 14] = [const { AtomicU64::new(0) }; 1 << 14];

/// Each kind has a thread of its own: the close of a received file can also flush, which cannot always be interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Socket,
    Received,
}

#[derive(Debug)]
struct Lane {
    sender: Sender<OwnedFd>,
    /// Descriptors sent and not yet closed.
    waiting: AtomicUsize,
    /// Held during a close, and while a process is started.
    closing: Mutex<()>,
}

static SOCKETS: OnceLock<Lane> = OnceLock::new();
static RECEIVED: OnceLock<Lane> = OnceLock::new();

impl Kind {
    fn lane(self) -> &'static OnceLock<Lane> {
        match self {
            Self::Socket => &SOCKETS,
            Self::Received => &RECEIVED,
        }
    }

    fn waiting(self) -> usize {
        self.lane().get().map_or(0, |lane| lane.waiting.load(Relaxed))
    }
}

/// Starts the threads. Without them, descriptors are closed where they are dropped.
pub fn start() -> io::Result<()> {
    for (kind, name) in [(Kind::Socket, "closer"), (Kind::Received, "closer-received")] {
        let (sender, receiver) = unbounded();
        if kind.lane().set(Lane { sender, waiting: AtomicUsize::new(0), closing: Mutex::new(()) }).is_ok() {
            thread::Builder::new().name(name.into()).spawn(move || run(kind, &receiver))?;
        }
    }
    Ok(())
}

fn run(kind: Kind, receiver: &Receiver<OwnedFd>) {
    let Some(lane) = kind.lane().get() else { return };
    // Without an interrupter closes take as long as they take.
    let interrupter = Interrupter::new().ok();
    let interrupt = |interval| interrupter.iter().for_each(|timer| timer.every(interval));
    while let Ok(first) = receiver.recv() {
        interrupt(MAX_CLOSE);
        for fd in std::iter::once(first).chain(receiver.try_iter()) {
            lane.close(fd);
        }
        interrupt(Duration::ZERO);
    }
}

impl Lane {
    fn close(&self, fd: OwnedFd) {
        let closing = self.closing.lock();
        mark(&fd, false);
        drop(fd);
        drop(closing);
        self.waiting.fetch_sub(1, Relaxed);
    }
}

fn mark(fd: &OwnedFd, open: bool) {
    let number = fd.as_raw_fd() as usize;
    let Some(word) = OPEN.get(number / 64) else { return };
    let bit = 1 << (number % 64);
    if open {
        word.fetch_or(bit, Relaxed)
    } else {
        word.fetch_and(!bit, Relaxed)
    };
}

/// For a forked child, while its parent holds a [`Pause`]: closes the copies of all [`Foreign`] descriptors. The parent still
/// has them, so this does not block; a copy that is closed later, by exec, could be the last.
pub fn close_copies() {
    for (at, word) in OPEN.iter().enumerate() {
        let mut bits = word.load(Relaxed);
        while bits != 0 {
            let number = at * 64 + bits.trailing_zeros() as usize;
            // SAFETY: this process is about to execute another program and does not use that descriptor again.
            unsafe { libc::close(number as libc::c_int) };
            bits &= bits - 1;
        }
    }
}

/// Keeps the threads from closing anything.
///
/// A new process has copies of all our descriptors until it executes its program. If ours were closed meanwhile, its copy
/// would be the last, and its blocking close would hold up the start.
#[derive(Debug)]
pub struct Pause(#[allow(dead_code)] Vec<MutexGuard<'static, ()>>);

/// Pauses the closes for the start of a process; waits up to [`BEFORE_A_START`] for those under way.
pub fn pause() -> Pause {
    let end = Instant::now() + BEFORE_A_START;
    let lanes = [Kind::Socket, Kind::Received].into_iter().filter_map(|kind| kind.lane().get());
    Pause(lanes.filter_map(|lane| lock_until(&lane.closing, end)).collect())
}

fn lock_until<T>(mutex: &Mutex<T>, end: Instant) -> Option<MutexGuard<'_, T>> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Whether too many sockets wait to be closed to accept unsolicited ones.
pub fn sockets_wait() -> bool {
    Kind::Socket.waiting() >= MAX_SOCKETS
}

/// Whether too many received descriptors wait to be closed to receive more.
pub fn received_wait() -> bool {
    Kind::Received.waiting() >= MAX_RECEIVED
}

/// A descriptor whose close can block. Its drop does not.
#[derive(Debug)]
pub struct Foreign {
    fd: ManuallyDrop<OwnedFd>,
    kind: Kind,
}

impl Foreign {
    /// A socket of ours to which other processes may have sent descriptors.
    pub fn socket(fd: OwnedFd) -> Self {
        mark(&fd, true);
        Self { fd: ManuallyDrop::new(fd), kind: Kind::Socket }
    }

    /// A descriptor that another process sent.
    pub fn received(fd: OwnedFd) -> Self {
        mark(&fd, true);
        Self { fd: ManuallyDrop::new(fd), kind: Kind::Received }
    }

    /// It is no longer one whose drop is looked after.
    pub fn into_owned(self) -> OwnedFd {
        let mut this = ManuallyDrop::new(self);
        mark(&this.fd, false);
        // SAFETY: it is not used after this, and the drop of `self`, which would take it again, is not run.
        unsafe { ManuallyDrop::take(&mut this.fd) }
    }

    /// Closes it now, which blocks if it is the last descriptor of its file and the other process wants that.
    pub fn close_copy(self) {
        drop(self.into_owned());
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: only this drop takes it, and it is not used afterwards.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        match self.kind.lane().get() {
            Some(lane) => {
                lane.waiting.fetch_add(1, Relaxed);
                // The threads end with the process.
                let _ = lane.sender.send(fd);
            }
            None => mark(&fd, false),
        }
    }
}
