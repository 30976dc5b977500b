//! One direction of a connection: bytes from one socket to the other, copied or spliced, with back-pressure.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::follow::Follow;
use super::pipes::{Pipe, Pipes, Spliced};
use crate::sys::sock;

/// Size of the buffer shared by all connections of a worker.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// A direction that fills the buffer this many times in a row is spliced from then on.
const FULL_READS: u8 = 2;
/// A splice of less than this costs more than a copy.
const SMALL_BYTES: usize = 16 * 1024;
/// After this many small splices in a row a direction is copied again.
const SMALL_READS: u8 = 3;
/// Bytes that one direction moves before other connections are served.
const BUDGET_BYTES: usize = 1024 * 1024;

/// One socket of a connection with its readiness: epoll is edge-triggered and reports a change once.
#[derive(Debug)]
pub struct End {
    pub socket: OwnedFd,
    /// recv(2) has not returned EAGAIN since the last event.
    pub readable: bool,
    /// send(2) has not returned EAGAIN since the last event.
    pub writable: bool,
    /// The peer has sent FIN or reset: reads go on until one returns it.
    pub hangup: bool,
    pub watched: Watched,
    pub nodelay: Nodelay,
}

/// The epoll registration of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    Nothing,
    Reading,
    ReadingAndWriting,
}

/// When TCP_NODELAY is set on an end, so that Nagle's algorithm does not hold back small messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodelay {
    /// It is set (clients inherit it from the listener), or does not apply (Unix sockets).
    Set,
    /// Before the second write: the first is never delayed, and most connections have only one.
    AtSecondWrite,
    AtThisWrite,
}

impl End {
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

    /// Has the kernel send bytes that it holds back for a FIN.
    pub fn push(&mut self) {
        // Fails unless it is TCP, and after a reset: then it holds nothing back.
        let _ = socket2::SockRef::from(&self.socket).set_tcp_nodelay(true);
        self.nodelay = Nodelay::Set;
    }

    /// Writes as much as the socket takes. When that is nothing, clears `writable` and returns 0.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes, sock::SendHint::None)
    }

    fn send(&mut self, bytes: &[u8], hint: sock::SendHint) -> io::Result<usize> {
        self.before_write();
        loop {
            match sock::send(self.socket.as_fd(), bytes, hint) {
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
    /// Through the worker's buffer; counts full reads in a row.
    Copy(u8),
    /// Through a pipe, held only while it has bytes or more are expected; counts small splices in a row.
    Splice(u8, Option<Pipe>),
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Flow {
    /// Bytes read and not yet written: empty, without an allocation, unless the receiver is slow.
    rest: Vec<u8>,
    /// Bytes of `rest` already written.
    written: usize,
    mode: Mode,
    /// The sender's FIN was read.
    pub ended: bool,
    /// The sender's socket broke after the bytes held here.
    broken: bool,
    /// The FIN was passed on.
    pub closed: bool,
    /// The direction ends with a reset instead of a FIN.
    pub resets: bool,
}

/// Why [`Flow::pump`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do until the next event.
    Waits,
    /// The budget is used up: to be continued after other connections were served.
    Again,
    /// The sender's FIN was read and all bytes before it are written.
    Ended,
    /// The sender's socket is broken (reset), and all bytes received before are read.
    FromBroken,
    /// The receiver's socket is broken.
    ToBroken,
}

impl Default for Flow {
    fn default() -> Self {
        let mode = Mode::Copy(0);
        Self { rest: Vec::new(), written: 0, mode, ended: false, broken: false, closed: false, resets: false }
    }
}

impl Flow {
    /// Keeps bytes for the next write.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    pub fn holds(&self) -> bool {
        !self.rest.is_empty() || matches!(&self.mode, Mode::Splice(_, Some(pipe)) if pipe.held() > 0)
    }

    /// Drops the bytes held: the receiver is gone.
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

    /// Moves bytes until an end blocks, the sender ends, or the budget is used up. Adds the bytes written to `moved`.
    pub fn pump(
        &mut self,
        from: &mut End,
        to: &mut End,
        buffer: &mut [u8],
        pipes: &mut Pipes,
        moved: &mut u64,
        mut follow: Follow<'_>,
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
            if matches!(self.mode, Mode::Splice(..)) && follow.unread() == 0 {
                self.return_pipe(pipes);
                self.mode = Mode::Copy(0);
            }
            let step = match &mut self.mode {
                Mode::Copy(_) => self.copy(from, to, buffer, moved, &mut follow),
                Mode::Splice(_, pipe) => {
                    if pipe.is_none() {
                        *pipe = pipes.take();
                    }
                    if pipe.is_some() {
                        self.splice(from, &mut follow)
                    } else {
                        self.copy(from, to, buffer, moved, &mut follow)
                    }
                }
            };
            match step {
                Ok(n) => budget = budget.saturating_sub(n.max(1)),
                Err(step) => return step,
            }
        }
    }

    /// Writes from `rest` or the pipe; clears `writable` when the socket takes no more.
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

    fn copy(
        &mut self,
        from: &mut End,
        to: &mut End,
        buffer: &mut [u8],
        moved: &mut u64,
        follow: &mut Follow<'_>,
    ) -> Result<usize, Step> {
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
            // A short read emptied the socket, but after a hang-up the FIN is still to be read.
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
                // Reported after the bytes before it are written.
                Err(_) => self.broken = true,
            }
        }
        follow.saw(&buffer[..n]);
        self.count_read(n == buffer.len() && follow.unread() >= BUFFER_BYTES as u64);
        // The FIN that follows travels with the last bytes: one packet less.
        let hint = if self.ended && !self.resets { sock::SendHint::FinFollows } else { sock::SendHint::None };
        let written = if to.writable { to.send(&buffer[..n], hint).map_err(|_| Step::ToBroken)? } else { 0 };
        *moved += written as u64;
        if written < n {
            self.keep(&buffer[written..n]);
        }
        Ok(n)
    }

    fn count_read(&mut self, full: bool) {
        if let Mode::Copy(fills) = &mut self.mode {
            *fills = if full { fills.saturating_add(1) } else { 0 };
            if *fills >= FULL_READS {
                self.mode = Mode::Splice(0, None);
            }
        }
    }

    /// Fills the pipe; the next round of `pump` drains it.
    fn splice(&mut self, from: &mut End, follow: &mut Follow<'_>) -> Result<usize, Step> {
        let Mode::Splice(small, Some(pipe)) = &mut self.mode else { return Ok(0) };
        match pipe.fill(&from.socket, follow.unread()) {
            Ok(Spliced::Moved(0)) => {
                self.ended = true;
                from.readable = false;
                Ok(0)
            }
            Ok(Spliced::Moved(n)) => {
                follow.missed(n as u64);
                *small = if n < SMALL_BYTES { small.saturating_add(1) } else { 0 };
                Ok(n)
            }
            // The pipe is empty here (`holds` was false), so the source has nothing.
            Ok(Spliced::Blocked) => {
                from.readable = false;
                if *small >= SMALL_READS {
                    // Marks the direction for `stop_small_splices`.
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

/// One recv(2); `None`, with `readable` cleared, when nothing is there.
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
