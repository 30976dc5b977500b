//! One relayed connection: two ends, two directions, and how it ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::follow::{Followed, direction};
use super::journal::Entry;
use super::pipes::Pipes;
use super::pump::{End, Flow, Nodelay, Step};
use crate::abi::access::end;
use crate::exchange::Direction;
use crate::sys::sock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
}

#[derive(Debug)]
pub enum Stage {
    /// No connection is under way; another attempt follows.
    Waiting,
    /// connect(2) was called at this tick.
    Connecting(End, u32),
    Established(End),
}

/// The next step of a session after [`Session::advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Wait for the next event.
    Waits,
    /// The upstream has ended: call [`Session::finish`], then as [`Fate::Again`] or [`Fate::Waits`].
    Finished { again: bool },
    /// Advance again after other sessions were served.
    Again,
    /// One end was reset; reset the other once it has acknowledged the bytes sent before.
    Resetting,
    /// Close both ends.
    Over,
}

/// One relayed connection.
#[derive(Debug)]
pub struct Session {
    /// Tells stale events for an earlier session in the same slab entry apart.
    pub generation: u32,
    /// Tick of its begin.
    pub begun: u32,
    /// Tick when bytes last moved.
    pub active: u32,
    /// Index of the upstream's address in the worker's list; `usize::MAX` without one.
    pub target: usize,
    pub client: End,
    pub upstream: Stage,
    pub keepalive: Keepalive,
    forth: Flow,
    back: Flow,
    /// The end that broke: the bytes it sent before go to the other, which is then reset.
    broken: Option<Side>,
    /// The upstream has ended, and all its bytes are written: only the client's end is missing.
    pub finished: bool,
    /// Bytes of our PROXY header that were not written yet: they go first.
    pub header: u8,
    /// If the connection is logged.
    pub entry: Option<Box<Entry>>,
    /// If it may move, or end at a time of its own.
    pub followed: Option<Box<Followed>>,
}

/// Whether the upstream's socket has TCP keep-alive, which is set only once a session has lasted for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keepalive {
    Due,
    Set,
}

/// Bytes moved by one [`Session::advance`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Moved {
    /// Client to upstream.
    pub forth: u64,
    /// Upstream to client.
    pub back: u64,
}

impl Session {
    pub fn new(client: OwnedFd, generation: u32, tick: u32) -> Self {
        Self {
            generation,
            begun: tick,
            active: tick,
            target: usize::MAX,
            client: End::new(client, Nodelay::Set),
            upstream: Stage::Waiting,
            keepalive: Keepalive::Due,
            forth: Flow::default(),
            back: Flow::default(),
            broken: None,
            finished: false,
            header: 0,
            entry: None,
            followed: None,
        }
    }

    /// Reads the bytes that came with the client, before an upstream is chosen. Returns how many bytes of `buffer` are to be
    /// written to the upstream first.
    ///
    /// # Errors
    /// When the client was reset.
    pub fn first_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match sock::recv(self.client.socket.as_fd(), buffer) {
            Ok(0) => {
                self.forth.ended = true;
                self.client.readable = false;
                Ok(0)
            }
            Ok(n) => {
                // If there is more, or a FIN, epoll will report it: the socket is not registered yet.
                self.client.readable = n == buffer.len();
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.client.readable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// How many of so many bytes that were written to the upstream are the client's.
    pub fn of_client(&mut self, written: u64) -> u64 {
        let ours = written.min(u64::from(self.header));
        self.header -= ours as u8;
        written - ours
    }

    /// For the log: what has moved, and who has ended.
    pub fn note(&mut self, moved: Moved) {
        let ended = self.ended_by();
        if let Some(entry) = &mut self.entry {
            entry.moved(moved, ended);
        }
    }

    /// Which side has ended or broken, one of [`end`]; both in one turn: the client.
    pub fn ended_by(&self) -> Option<u8> {
        match self.broken {
            Some(Side::Client) => Some(end::RESET),
            Some(Side::Upstream) => Some(end::SERVER),
            None if self.forth.ended => Some(end::CLIENT),
            None if self.back.ended => Some(end::SERVER),
            None => None,
        }
    }

    /// Keeps the first bytes until an upstream takes them.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.forth.keep(bytes);
    }

    pub fn established(&mut self) {
        if let Stage::Connecting(end, _) = std::mem::replace(&mut self.upstream, Stage::Waiting) {
            self.upstream = Stage::Established(end);
        }
    }

    /// The end on one side; `None` without a socket.
    pub fn end_mut(&mut self, side: Side) -> Option<&mut End> {
        match (side, &mut self.upstream) {
            (Side::Client, _) => Some(&mut self.client),
            (Side::Upstream, Stage::Connecting(end, _) | Stage::Established(end)) => Some(end),
            (Side::Upstream, Stage::Waiting) => None,
        }
    }

    /// Moves bytes in both directions, as far as the sockets allow.
    pub fn advance(&mut self, buffer: &mut [u8], pipes: &mut Pipes, moved: &mut Moved) -> Fate {
        let Stage::Established(upstream) = &mut self.upstream else { return Fate::Waits };
        let client = &mut self.client;
        let (mut again, mut forth, mut back) = (false, Step::Waits, Step::Waits);
        if self.broken != Some(Side::Upstream) {
            let follow = direction(&mut self.followed, Direction::Requests);
            forth = self.forth.pump(client, upstream, buffer, pipes, &mut moved.forth, follow);
            self.forth.stop_small_splices(pipes);
        }
        if self.broken != Some(Side::Client) {
            let follow = direction(&mut self.followed, Direction::Answers);
            back = self.back.pump(upstream, client, buffer, pipes, &mut moved.back, follow);
            self.back.stop_small_splices(pipes);
        }
        let mut both = false;
        for (step, from, to) in [(forth, Side::Client, Side::Upstream), (back, Side::Upstream, Side::Client)] {
            let broke = match step {
                Step::FromBroken => from,
                Step::ToBroken => to,
                Step::Again => {
                    again = true;
                    continue;
                }
                Step::Waits | Step::Ended => continue,
            };
            both |= self.broken.is_some_and(|other| other != broke);
            if self.broken.is_none() {
                self.broken = Some(broke);
                again = true;
                // The other end gets a reset and no FIN: no bytes may be held back for one.
                self.forth.resets = true;
                self.back.resets = true;
                if broke == Side::Client { &mut *upstream } else { &mut *client }.push();
                // The error may come from a write: bytes that it sent before are still to be read.
                let end = if broke == Side::Client { &mut *client } else { &mut *upstream };
                end.readable = true;
                end.hangup = true;
                let (dead, rest) = match broke {
                    Side::Client => (&mut self.back, &mut self.forth),
                    Side::Upstream => (&mut self.forth, &mut self.back),
                };
                dead.discard(pipes);
                if step == Step::FromBroken {
                    rest.ended = true;
                }
            }
        }
        if both {
            return Fate::Over;
        }
        match self.broken {
            Some(side) => {
                let step = if side == Side::Client { forth } else { back };
                match step {
                    Step::Ended | Step::FromBroken if !again => self.reset_when_acknowledged(),
                    _ if again => Fate::Again,
                    _ => Fate::Waits,
                }
            }
            None => self.close_ended(forth, back, again),
        }
    }

    /// Passes on each FIN once the bytes before it are written. When both directions ended, a close does that.
    fn close_ended(&mut self, forth: Step, back: Step, again: bool) -> Fate {
        let Stage::Established(upstream) = &mut self.upstream else { return Fate::Waits };
        if forth == Step::Ended && back == Step::Ended {
            return Fate::Over;
        }
        if forth == Step::Ended && !self.forth.closed {
            self.forth.closed = true;
            send_fin(upstream);
        }
        if back == Step::Ended && !self.back.closed {
            self.back.closed = true;
            return Fate::Finished { again };
        }
        if again { Fate::Again } else { Fate::Waits }
    }

    /// After [`Fate::Finished`]: passes on the upstream's FIN.
    pub fn finish(&mut self) {
        self.finished = true;
        send_fin(&self.client);
    }

    /// Resets the other end once its kernel has acknowledged all bytes sent before: a reset discards the rest.
    pub fn reset_when_acknowledged(&mut self) -> Fate {
        let (Some(broken), Stage::Established(upstream)) = (self.broken, &self.upstream) else { return Fate::Over };
        let other = if broken == Side::Client { upstream } else { &self.client };
        match sock::unacked_bytes(other.socket.as_fd()) {
            Ok(n) if n > 0 => Fate::Resetting,
            _ => {
                sock::reset_on_close(other.socket.as_fd());
                Fate::Over
            }
        }
    }

    /// Whether another worker can go on with it: between two requests, with nothing on its way in either direction.
    pub fn can_move(&self) -> bool {
        let still = |flow: &Flow| !flow.ended && !flow.resets && !flow.holds();
        let unheard = matches!(&self.upstream, Stage::Established(end) if end.readable);
        self.followed.as_ref().is_some_and(|followed| followed.can_move && followed.is_between())
            && still(&self.forth)
            && still(&self.back)
            && self.header == 0
            && !self.client.hangup
            && !unheard
    }

    /// Returns its pipes to the pool. To be called before a session is dropped.
    pub fn dispose(&mut self, pipes: &mut Pipes) {
        self.forth.discard(pipes);
        self.back.discard(pipes);
    }
}

fn send_fin(end: &End) {
    // ENOTCONN: it was reset, which the next read returns.
    let _ = socket2::SockRef::from(&end.socket).shutdown(std::net::Shutdown::Write);
}
