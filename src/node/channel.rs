//! The master's end of a worker's IPC channel: bounded both ways.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::message::{self, IpcMessage};
use crate::lines::Lines;
use crate::sys::closer::{self, Foreign};
use crate::sys::{scm, sock};

/// The longest message of a worker. Longer ones than people send by IPC; shorter than what would hurt.
pub const LONGEST: usize = 16 << 20;
/// Bytes read before others have their turn.
const BUDGET: usize = 64 * 1024;
/// What may wait for a worker that does not read; beyond it, programs' messages are dropped.
const MAX_WAITING: usize = 4 << 20;
/// Beyond it, what Node itself is to be told: no worker asks so much and does not read.
const FAR_TOO_MUCH: usize = 2 * MAX_WAITING;
/// Sockets that came and whose messages have not.
const MAX_SOCKETS: usize = 256;

struct Waiting {
    bytes: Vec<u8>,
    written: usize,
    socket: Option<Arc<OwnedFd>>,
}

/// The master's end.
pub struct Channel {
    socket: Foreign,
    lines: Lines,
    /// Sockets that came, in the order of the messages that they belong to.
    came: VecDeque<Foreign>,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    seq: u64,
    ended: bool,
    /// Messages that a worker that does not read has lost.
    pub dropped: u64,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

/// Whether there may be more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// Yes, without a new event.
    Yes,
    /// Not before an event.
    No,
}

impl Channel {
    /// A pair: ours, and the worker's.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sock::stream_pair()?;
        let channel = Self {
            socket: Foreign::socket(ours),
            lines: Lines::up_to(LONGEST),
            came: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            seq: 0,
            ended: false,
            dropped: 0,
        };
        Ok((channel, theirs))
    }

    /// The socket, to be watched.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The number of the next message of Node's cluster to the worker.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Reads for one turn.
    ///
    /// # Errors
    /// Nonsense: what the worker should not have said.
    pub fn read(&mut self, heard: &mut Vec<IpcMessage>) -> io::Result<More> {
        let nonsense = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let (mut budget, mut buffer, mut sockets) = (BUDGET, [0; 16 * 1024], Vec::new());
        while budget > 0 && !self.ended {
            match scm::recv_fds(self.socket.as_fd(), &mut buffer, &mut sockets) {
                Ok(received) if received.len == 0 => self.ended = true,
                Ok(received) => {
                    self.came.extend(sockets.drain(..).map(Foreign::received));
                    if self.came.len() > MAX_SOCKETS {
                        return Err(nonsense("too many sockets without messages".to_owned()));
                    }
                    if closer::received_wait() {
                        return Err(nonsense("more sockets than can be closed".to_owned()));
                    }
                    budget = budget.saturating_sub(received.len);
                    self.lines.push(&buffer[..received.len])?;
                    while let Some(line) = self.lines.next() {
                        let message = message::parse(&line).map_err(nonsense)?;
                        if let IpcMessage::WithHandle(_) = message {
                            // We have no use for it; whoever sent it may send the next.
                            let came = self.came.pop_front().is_some();
                            self.say(message::acknowledged(came), None)?;
                        }
                        heard.push(message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(More::No),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is gone: its death follows.
                Err(_) => self.ended = true,
            }
        }
        Ok(if self.ended { More::No } else { More::Yes })
    }

    /// Tells the worker what Node expects of us.
    ///
    /// # Errors
    /// When the worker has asked far more than it has read answers.
    pub fn say(&mut self, bytes: Vec<u8>, socket: Option<Arc<OwnedFd>>) -> io::Result<()> {
        if self.bytes > FAR_TOO_MUCH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it asks and does not read the answers"));
        }
        self.push(bytes, socket);
        Ok(())
    }

    /// Passes a program's message on, unless too much waits already. Whether it was.
    pub fn pass(&mut self, bytes: Vec<u8>) -> bool {
        let room = self.bytes + bytes.len() <= MAX_WAITING && !self.ended;
        match room {
            true => self.push(bytes, None),
            false => self.dropped += 1,
        }
        room
    }

    fn push(&mut self, bytes: Vec<u8>, socket: Option<Arc<OwnedFd>>) {
        self.bytes += bytes.len();
        self.waiting.push_back(Waiting { bytes, written: 0, socket });
        self.write();
    }

    pub fn write(&mut self) {
        while let Some(first) = self.waiting.front_mut() {
            // The socket travels with the first byte of its message, alone in its call.
            let written = match first.socket.as_ref().filter(|_| first.written == 0) {
                Some(socket) => {
                    let one = std::iter::once(socket.as_fd());
                    scm::send_some(self.socket.as_fd(), &first.bytes, one)
                }
                None => sock::send(self.socket.as_fd(), &first.bytes[first.written..], sock::SendHint::None),
            };
            match written {
                Ok(n) => first.written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is gone, or the kernel has no room for descriptors in flight: then the next event tries again.
                Err(_) => return,
            }
            if first.written == first.bytes.len() {
                self.bytes -= first.bytes.len();
                self.waiting.pop_front();
            }
        }
    }
}
