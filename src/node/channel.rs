//! The master's end of a worker's IPC channel: bounded both ways.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::message::{self, IpcMessage};
use crate::lines::Lines;
use crate::record::{Fd, Found, Kept};
use crate::sys::closer::{self, Foreign};
use crate::sys::{scm, sock};

/// The longest message of a worker in bytes: more than programs send by IPC, and less than would hurt.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Bytes read per turn before other workers are served.
const BUDGET: usize = 64 * 1024;
/// Bytes waiting for a worker beyond which programs' messages are dropped.
const MAX_WAITING: usize = 4 << 20;
/// Bytes waiting beyond which even a reply to Node itself is an error.
const MAX_WAITING_REPLIES: usize = 2 * MAX_WAITING;
/// The most sockets received before their messages.
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
    /// Sockets received, in the order of their messages.
    sockets: VecDeque<Foreign>,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    seq: u64,
    ended: bool,
    /// Messages dropped because the worker did not read.
    pub dropped: u64,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

/// The same in a daemon's record.
#[derive(Serialize, Deserialize)]
pub struct ChannelRecord {
    socket: Fd,
    /// The beginning of a line.
    part: Vec<u8>,
    sockets: Vec<Fd>,
    waiting: Vec<(Vec<u8>, usize, Option<Fd>)>,
    seq: u64,
    ended: bool,
    dropped: u64,
}

impl std::fmt::Debug for ChannelRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChannelRecord")
    }
}

impl Channel {
    /// Duplicates what waits to be sent, since others may have it, too.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn record(&self, kept: &mut Kept) -> io::Result<ChannelRecord> {
        let Self { socket, lines, sockets, waiting, bytes: _, seq, ended, dropped } = self;
        let waiting = waiting.iter().map(|Waiting { bytes, written, socket }| {
            let socket = socket.as_ref().map(|socket| kept.duplicate(socket)).transpose()?;
            Ok((bytes.clone(), *written, socket))
        });
        let waiting = waiting.collect::<io::Result<_>>()?;
        Ok(ChannelRecord {
            socket: kept.keep(socket),
            part: lines.rest().to_vec(),
            sockets: sockets.iter().map(|socket| kept.keep(socket)).collect(),
            waiting,
            seq: *seq,
            ended: *ended,
            dropped: *dropped,
        })
    }

    /// # Errors
    /// When a descriptor is not there.
    pub fn adopt(record: ChannelRecord, found: &mut Found) -> io::Result<Self> {
        let ChannelRecord { socket, part, sockets, waiting, seq, ended, dropped } = record;
        let mut lines = Lines::up_to(MAX_MESSAGE);
        lines.push(&part)?;
        let sockets = sockets.into_iter().map(|fd| found.take(fd).map(Foreign::received));
        let sockets = sockets.collect::<io::Result<_>>()?;
        let waiting: VecDeque<Waiting> = waiting
            .into_iter()
            .map(|(bytes, written, socket)| {
                let socket = socket.map(|fd| found.take(fd)).transpose()?.map(Arc::new);
                Ok(Waiting { bytes, written, socket })
            })
            .collect::<io::Result<_>>()?;
        let bytes = waiting.iter().map(|waiting| waiting.bytes.len()).sum();
        let socket = Foreign::socket(found.take(socket)?);
        Ok(Self { socket, lines, sockets, waiting, bytes, seq, ended, dropped })
    }

    /// A new channel and the worker's end of it.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sock::stream_pair()?;
        let channel = Self {
            socket: Foreign::socket(ours),
            lines: Lines::up_to(MAX_MESSAGE),
            sockets: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            seq: 0,
            ended: false,
            dropped: 0,
        };
        Ok((channel, theirs))
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The sequence number of the next cluster message to the worker.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Reads for one turn. Returns whether there may be more without a new event.
    ///
    /// # Errors
    /// `InvalidData` when the worker violates the protocol.
    pub fn read(&mut self, messages: &mut Vec<IpcMessage>) -> io::Result<bool> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let (mut budget, mut buffer, mut sockets) = (BUDGET, [0; 16 * 1024], Vec::new());
        while budget > 0 && !self.ended {
            match scm::recv_fds(self.socket.as_fd(), &mut buffer, &mut sockets) {
                Ok(received) if received.len == 0 => self.ended = true,
                Ok(received) => {
                    self.sockets.extend(sockets.drain(..).map(Foreign::received));
                    if self.sockets.len() > MAX_SOCKETS {
                        return Err(invalid("too many sockets without messages".to_owned()));
                    }
                    if closer::received_wait() {
                        return Err(invalid("more sockets than can be closed".to_owned()));
                    }
                    budget = budget.saturating_sub(received.len);
                    self.lines.push(&buffer[..received.len])?;
                    while let Some(line) = self.lines.next() {
                        let message = message::parse(&line).map_err(invalid)?;
                        if let IpcMessage::WithHandle(_) = message {
                            // The socket is of no use to us; the acknowledgement lets the worker send the next.
                            let came = self.sockets.pop_front().is_some();
                            self.send(message::acknowledged(came), None)?;
                        }
                        messages.push(message);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The worker is gone; its exit follows.
                Err(_) => self.ended = true,
            }
        }
        Ok(!self.ended)
    }

    /// Sends a message of the cluster protocol.
    ///
    /// # Errors
    /// When the worker sends requests without reading the replies.
    pub fn send(&mut self, bytes: Vec<u8>, socket: Option<Arc<OwnedFd>>) -> io::Result<()> {
        if self.bytes > MAX_WAITING_REPLIES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the worker sends requests and does not read the replies",
            ));
        }
        self.push(bytes, socket);
        Ok(())
    }

    /// Passes a program's message on, unless too much waits already. Returns whether it did.
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
                // The worker is gone, or too many descriptors are in flight: then the next event tries again.
                Err(_) => return,
            }
            if first.written == first.bytes.len() {
                self.bytes -= first.bytes.len();
                self.waiting.pop_front();
            }
        }
    }
}
