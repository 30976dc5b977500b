//! Where a relay worker's connections come from: the master's queues and, under `none`, the listeners.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use super::journal::Origin;
use super::sessions::Sessions;
use crate::handoff::{Client, QueueRx, Reception};
use crate::sys::{epoll, sock};

/// Tokens from here on are queues and listeners; session tokens have the top bit clear.
const QUEUES: usize = 1 << 63;
const LISTENERS: usize = QUEUES | 1 << 62;
/// nginx re-adds its listener this often: EPOLLEXCLUSIVE wakes the last one added first, and without this one
/// worker would take most.
const READD_EVERY: u32 = 16;
/// Connections taken per turn before sessions are served.
const BUDGET: usize = 64;
/// Delay until accept(2) is called again after memory or descriptors ran out.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Descriptors for anything but sessions, pipes and listeners: epoll, channel, standard streams and so on.
const FIXED: usize = 32;

/// The most connections and pipes of a worker with this file limit.
pub fn capacity(nofile: u64, listeners: usize) -> (usize, usize) {
    let limit = usize::try_from(nofile).unwrap_or(usize::MAX).min(1 << 24);
    let pipes = (limit / 8).min(super::pipes::Pipes::max_descriptors());
    let sessions = limit.saturating_sub(FIXED + 2 * listeners + pipes) / 2;
    (sessions.max(1), pipes / 2)
}

struct Queue {
    rx: QueueRx,
    ready: bool,
    closed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// The master has not said yet that it listens.
    Off,
    On,
    /// Near the file limit, or after an error; watched again later.
    Paused,
    /// It listens no more, and never again for this worker.
    Ended,
}

struct Listener {
    socket: OwnedFd,
    watch: Watch,
    ready: bool,
    accepts: u32,
}

/// The queues and listeners of a worker.
pub struct Intake {
    queues: Vec<Queue>,
    listeners: Vec<Listener>,
    /// The most sockets in one message.
    batch: usize,
    /// The most sessions.
    capacity: usize,
    retry: Option<Instant>,
    received: Vec<OwnedFd>,
    /// The clients of these, where PROXY headers are read.
    translated: Vec<Option<Client>>,
    full: bool,
}

impl Intake {
    /// Watches the queues.
    pub fn new(
        poll: &Poll,
        queues: Vec<QueueRx>,
        listeners: Vec<OwnedFd>,
        batch: usize,
        capacity: usize,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        for (at, queue) in queues.iter().enumerate() {
            poll.registry().register(
                &mut SourceFd(&queue.as_fd().as_raw_fd()),
                Token(QUEUES | at),
                Interest::READABLE,
            )?;
        }
        let queue = |rx| Queue { rx, ready: false, closed: false };
        let listener = |socket| Listener { socket, watch: Watch::Off, ready: false, accepts: 0 };
        Ok(Self {
            queues: queues.into_iter().map(queue).collect(),
            listeners: listeners.into_iter().map(listener).collect(),
            batch,
            capacity,
            retry: None,
            received: Vec::new(),
            translated: Vec::new(),
            full: false,
        })
    }

    /// If a token is one of ours, notes that it is readable and returns true.
    pub fn event(&mut self, Token(token): Token) -> bool {
        if token & LISTENERS == LISTENERS {
            if let Some(listener) = self.listeners.get_mut(token & !LISTENERS) {
                listener.ready = true;
            }
            return true;
        }
        if token & QUEUES != 0 {
            if let Some(queue) = self.queues.get_mut(token & !QUEUES) {
                queue.ready = true;
            }
            return true;
        }
        false
    }

    /// Begins to accept, or begins again after a pause.
    pub fn serve(&mut self, poll: &Poll) -> io::Result<()> {
        let idle = |listener: &Listener| matches!(listener.watch, Watch::Off | Watch::Paused);
        for (at, listener) in self.listeners.iter_mut().enumerate().filter(|(_, listener)| idle(listener)) {
            epoll::add_exclusive(poll, listener.socket.as_fd(), Token(LISTENERS | at))?;
            listener.watch = Watch::On;
        }
        Ok(())
    }

    /// Leaves the listeners to the master and the other workers.
    pub fn stop_listening(&mut self, poll: &Poll) {
        for listener in self.listeners.drain(..).filter(|listener| listener.watch == Watch::On) {
            let _ = epoll::remove(poll, listener.socket.as_fd());
        }
    }

    /// Whether no more connections will come.
    pub fn ended(&self) -> bool {
        self.listeners.is_empty() && self.queues.iter().all(|queue| queue.closed)
    }

    pub fn full(&self) -> bool {
        self.full
    }

    fn room(&self, sessions: &Sessions) -> bool {
        sessions.len() + self.batch <= self.capacity
    }

    /// Takes new connections while there is room. Whether there was a message in a queue.
    ///
    /// # Errors
    /// When a queue cannot be read or a listener cannot be watched: the worker is useless then.
    pub fn take(&mut self, poll: &Poll, sessions: &mut Sessions, now: Instant) -> io::Result<bool> {
        if self.retry.is_some_and(|at| at <= now) && self.room(sessions) {
            self.retry = None;
            self.serve(poll)?;
        }
        let (mut budget, mut received) = (BUDGET, false);
        for at in 0..self.queues.len() {
            while budget > 0 && self.queues[at].ready && self.room(sessions) {
                match self.queues[at].rx.receive(&mut self.received, &mut self.translated)? {
                    Reception::Message { lost, accepted } => {
                        received = true;
                        if lost > 0 {
                            sessions.count_lost(lost);
                        }
                        if !self.received.is_empty() {
                            sessions.count_taken(self.received.len(), accepted);
                        }
                        budget = budget.saturating_sub(self.received.len().max(1));
                        for (n, socket) in self.received.drain(..).enumerate() {
                            let client = self.translated.get(n).and_then(Option::as_ref);
                            sessions.open(poll, socket, Origin { listener: at, accepted, client }, now);
                        }
                        self.translated.clear();
                    }
                    Reception::Empty => self.queues[at].ready = false,
                    Reception::Closed => {
                        self.queues[at].ready = false;
                        self.queues[at].closed = true;
                    }
                }
            }
        }
        self.accept(poll, sessions, now, budget)?;
        // With hysteresis, so that a worker near its limit does not report it again and again.
        self.full = match self.full {
            false => !self.room(sessions),
            true => sessions.len() > self.capacity / 2,
        };
        Ok(received)
    }

    fn accept(&mut self, poll: &Poll, sessions: &mut Sessions, now: Instant, mut budget: usize) -> io::Result<()> {
        for at in 0..self.listeners.len() {
            while budget > 0 && self.listeners[at].ready && self.listeners[at].watch == Watch::On {
                budget -= 1;
                let room = self.room(sessions);
                let listener = &mut self.listeners[at];
                let accepted =
                    if room { sock::accept(listener.socket.as_fd()) } else { Err(io::ErrorKind::OutOfMemory.into()) };
                match accepted {
                    Ok(socket) => {
                        listener.accepts += 1;
                        sessions.open(poll, socket, Origin { listener: at, accepted: 0, client: None }, now);
                    }
                    Err(error) => match (error.kind(), error.raw_os_error()) {
                        (io::ErrorKind::WouldBlock, _) => listener.ready = false,
                        // The listener was closed or shut down.
                        (_, Some(libc::EINVAL)) => {
                            epoll::remove(poll, listener.socket.as_fd())?;
                            listener.watch = Watch::Ended;
                            listener.ready = false;
                        }
                        (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) | None) => {
                            // Level-triggered: watching it further would spin. Other workers go on accepting.
                            epoll::remove(poll, listener.socket.as_fd())?;
                            listener.watch = Watch::Paused;
                            listener.ready = false;
                            self.retry = Some(now + RETRY_AFTER);
                        }
                        _ => {}
                    },
                }
            }
            let listener = &mut self.listeners[at];
            if listener.watch == Watch::On {
                // Level-triggered: there will be another event for the rest.
                listener.ready = false;
                if listener.accepts >= READD_EVERY {
                    listener.accepts = 0;
                    epoll::remove(poll, listener.socket.as_fd())?;
                    epoll::add_exclusive(poll, listener.socket.as_fd(), Token(LISTENERS | at))?;
                }
            }
        }
        Ok(())
    }

    /// The time of the next `take` if no event comes before.
    pub fn deadline(&self, sessions: &Sessions, now: Instant) -> Option<Instant> {
        let more = self.queues.iter().any(|queue| queue.ready) && self.room(sessions);
        if more { Some(now) } else { self.retry.map(|at| at.max(now + Duration::from_millis(1))) }
    }
}
