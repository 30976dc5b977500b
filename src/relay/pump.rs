//! One direction of a connection: bytes from one socket to the other, copied or spliced, with back-pressure.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::pipes::{Pipe, Pipes, Spliced};
use crate::sys::sock;

/// Size of the buffer that all connections of a worker share.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// A direction that fills the buffer this many times in a row is spliced from then on.
const FULL_READS: u8 = 2;
/// A splice that brings less than this is a small message, dearer than copying it.
const SMALL_BYTES: usize = 16 * 1024;
/// So many small ones in a row and the direction is copied again.
const SMALL_READS: u8 = 3;
/// Bytes that one direction may move before other connections have their turn.
const BUDGET_BYTES: usize = 1024 * 1024;

/// `bench/run sweep` builds variants that only copy, or only splice, to see whether the choice is the better of them.
const COPY_ONLY: bool = cfg!(pump = "copy");
const SPLICE_ONLY: bool = cfg!(pump = "splice");

/// One socket of a connection and what epoll has told of it (edge-triggered: it tells once).
#[derive(Debug)]
pub struct End {
    /// The socket.
    pub socket: OwnedFd,
    /// A read may bring something.
    pub readable: bool,
    /// A write may take something.
    pub writable: bool,
    /// The peer has sent its FIN or reset: read on until it shows.
    pub hangup: bool,
    /// What epoll was asked to watch.
    pub watched: Watched,
    /// Written to before: from here on Nagle's algorithm would hold back small messages.
    pub nodelay: Nodelay,
}

/// What epoll watches an end for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// Not registered.
    Nothing,
    /// Readable only, the usual case.
    Reading,
    /// Both.
    ReadingAndWriting,
}

/// When TCP_NODELAY is set on an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodelay {
    /// It is, or does not apply (inherited from the listener; Unix sockets).
    Set,
    /// Before the second write: the first is never delayed, and many connections have only one.
    AtSecondWrite,
    /// Now.
    AtThisWrite,
}

impl End {
    /// A socket that nothing is known of yet.
    pub fn new(socket: OwnedFd, nodelay: Nodelay) -> Self {
        Self { socket, readable: true, writable: true, hangup: false, watched: Watched::Nothing, nodelay }
    }

    fn before_write(&mut self) {
        match self.nodelay {
            Nodelay::Set => {}
            Nodelay::AtSecondWrite => self.nodelay = Nodelay::AtThisWrite,
            Nodelay::AtThisWrite => self.push(),
        }
    }

    /// Sends what waits for a FIN.
    pub fn push(&mut self) {
        // Not TCP, or reset already: then nothing waits.
        let _ = socket2::SockRef::from(&self.socket).set_tcp_nodelay(true);
        self.nodelay = Nodelay::Set;
    }

    /// Writes what the socket takes; 0 and `writable == false` when it takes nothing.
    ///
    /// # Errors
    /// As send(2), without `EAGAIN`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_then(bytes, sock::SendHint::None)
    }

    fn write_then(&mut self, bytes: &[u8], then: sock::SendHint) -> io::Result<usize> {
        self.before_write();
        loop {
            match sock::send(self.socket.as_fd(), bytes, then) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(0);
                }
                other => return other,
            }
        }
    }
}

/// How a direction moves its bytes.
#[derive(Debug)]
enum Mode {
    /// Through the worker's buffer; so many full reads in a row.
    Copy(u8),
    /// Through a pipe, held only while it has bytes or more are expected; so many small reads in a row.
    Splice(u8, Option<Pipe>),
}

/// One direction.
#[derive(Debug)]
pub struct Flow {
    /// What was read and not yet written: empty, without an allocation, unless the receiver is slow.
    rest: Vec<u8>,
    /// How much of `rest` is written.
    written: usize,
    mode: Mode,
    /// The sender's FIN was read.
    pub ended: bool,
    /// The sender's socket broke behind what is held.
    broken: bool,
    /// It was passed on.
    pub closed: bool,
    /// What is passed on in the end is a reset.
    pub resets: bool,
}

/// Why [`Flow::pump`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing more to do until an event comes.
    Waits,
    /// The budget is used up: come again after the others.
    Again,
    /// The sender ended and all its bytes are written.
    Ended,
    /// The sender's socket is broken (reset), all it had sent before is read.
    FromBroken,
    /// The receiver's socket is broken.
    ToBroken,
}

impl Default for Flow {
    fn default() -> Self {
        let mode = if SPLICE_ONLY { Mode::Splice(0, None) } else { Mode::Copy(0) };
        Self { rest: Vec::new(), written: 0, mode, ended: false, broken: false, closed: false, resets: false }
    }
}

impl Flow {
    /// Keeps bytes that were read before there was somewhere to write them.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Whether bytes wait to be written.
    pub fn holds(&self) -> bool {
        !self.rest.is_empty() || matches!(&self.mode, Mode::Splice(_, Some(pipe)) if pipe.held() > 0)
    }

    /// Drops what waits: the receiver is gone.
    pub fn discard(&mut self, pipes: &mut Pipes) {
        self.rest = Vec::new();
        self.written = 0;
        self.return_pipe(pipes);
        self.mode = Mode::Copy(0);
    }

    fn return_pipe(&mut self, pipes: &mut Pipes) {
        if let Mode::Splice(_, pipe) = &mut self.mode
            && let Some(pipe) = pipe.take()
        {
            pipes.put(pipe);
        }
    }

    /// Moves bytes until an end blocks, the sender ends, or the budget is used up. Adds what it moved to `moved`.
    pub fn pump(
        &mut self,
        from: &mut End,
        to: &mut End,
        buffer: &mut [u8],
        pipes: &mut Pipes,
        moved: &mut u64,
    ) -> Step {
        let mut budget = BUDGET_BYTES;
        loop {
            if self.holds() {
                match self.write_held(to) {
                    Ok(n) => *moved += n as u64,
                    Err(_) => return Step::ToBroken,
                }
                if self.holds() {
                    if to.writable {
                        continue;
                    }
                    return Step::Waits;
                }
            }
            if self.ended {
                self.return_pipe(pipes);
                return Step::Ended;
            }
            if self.broken {
                return Step::FromBroken;
            }
            if !from.readable {
                self.return_pipe(pipes);
                return Step::Waits;
            }
            if budget == 0 {
                return Step::Again;
            }
            let step = match &mut self.mode {
                Mode::Copy(_) => self.copy(from, to, buffer, moved),
                Mode::Splice(_, pipe) => {
                    if pipe.is_none() {
                        *pipe = pipes.take();
                    }
                    if pipe.is_some() { self.splice(from) } else { self.copy(from, to, buffer, moved) }
                }
            };
            match step {
                Ok(n) => budget = budget.saturating_sub(n.max(1)),
                Err(step) => return step,
            }
        }
    }

    /// Writes from the rest or the pipe; clears `writable` when the socket takes no more.
    fn write_held(&mut self, to: &mut End) -> io::Result<usize> {
        if !to.writable {
            return Ok(0);
        }
        if !self.rest.is_empty() {
            let n = to.write(&self.rest[self.written..])?;
            self.written += n;
            if self.written == self.rest.len() {
                self.rest = Vec::new();
                self.written = 0;
            }
            return Ok(n);
        }
        let Mode::Splice(_, Some(pipe)) = &mut self.mode else { return Ok(0) };
        to.before_write();
        match pipe.drain(&to.socket)? {
            Spliced::Moved(n) => Ok(n),
            Spliced::Blocked => {
                to.writable = false;
                Ok(0)
            }
        }
    }

    fn copy(&mut self, from: &mut End, to: &mut End, buffer: &mut [u8], moved: &mut u64) -> Result<usize, Step> {
        let mut n = match read(from, buffer) {
            Ok(Some(n)) => n,
            Ok(None) => return Ok(0),
            Err(_) => return Err(Step::FromBroken),
        };
        if n == 0 {
            self.ended = true;
            from.readable = false;
            return Ok(0);
        }
        if n < buffer.len() {
            // A short read emptied the socket; after a hang-up the end is still to be read.
            from.readable = from.hangup;
        }
        if from.readable && n < buffer.len() {
            match read(from, &mut buffer[n..]) {
                Ok(Some(0)) => {
                    self.ended = true;
                    from.readable = false;
                }
                Ok(Some(more)) => n += more,
                Ok(None) => {}
                // What came before it is written first.
                Err(_) => self.broken = true,
            }
        }
        self.count_read(n == buffer.len());
        // The FIN that follows travels with the last bytes: one packet less.
        let then = if self.ended && !self.resets { sock::SendHint::FinFollows } else { sock::SendHint::None };
        let written = if to.writable { to.write_then(&buffer[..n], then).map_err(|_| Step::ToBroken)? } else { 0 };
        *moved += written as u64;
        if written < n {
            self.keep(&buffer[written..n]);
        }
        Ok(n)
    }

    fn count_read(&mut self, full: bool) {
        if let Mode::Copy(fills) = &mut self.mode {
            *fills = if full { fills.saturating_add(1) } else { 0 };
            if *fills >= FULL_READS && !COPY_ONLY {
                self.mode = Mode::Splice(0, None);
            }
        }
    }

    /// Fills the pipe; the next round of `pump` drains it.
    fn splice(&mut self, from: &mut End) -> Result<usize, Step> {
        let Mode::Splice(small, Some(pipe)) = &mut self.mode else { return Ok(0) };
        match pipe.fill(&from.socket) {
            Ok(Spliced::Moved(0)) => {
                self.ended = true;
                from.readable = false;
                Ok(0)
            }
            Ok(Spliced::Moved(n)) => {
                *small = if n < SMALL_BYTES { small.saturating_add(1) } else { 0 };
                Ok(n)
            }
            // The pipe is empty here (`holds` was false), so it is the source that has nothing.
            Ok(Spliced::Blocked) => {
                from.readable = false;
                if *small >= SMALL_READS && !SPLICE_ONLY {
                    // Nothing is in the pipe; dropping out of splice gives it back on the way.
                    *small = u8::MAX;
                }
                Ok(0)
            }
            Err(_) => Err(Step::FromBroken),
        }
    }

    /// Ends splicing when the direction has turned to small messages.
    pub fn stop_small_splices(&mut self, pipes: &mut Pipes) {
        if matches!(self.mode, Mode::Splice(u8::MAX, _)) {
            self.return_pipe(pipes);
            self.mode = Mode::Copy(0);
        }
    }
}

/// One recv; `None` when nothing is there (and `readable` is cleared).
fn read(from: &mut End, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match sock::recv(from.socket.as_fd(), buffer) {
            Ok(n) => return Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                from.readable = false;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}
