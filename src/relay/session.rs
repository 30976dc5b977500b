//! One relayed connection: two ends, two directions, and how it ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::pipes::Pipes;
use super::pump::{End, Flow, Nodelay, Step};
use crate::sys::sock;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The upstream's.
    Upstream,
}

/// The upstream end in its stages.
#[derive(Debug)]
pub enum Stage {
    /// No connection is under way: the next attempt is due when an upstream may be tried.
    Waiting,
    /// connect(2) was begun at this tick.
    Connecting(End, u32),
    /// Established.
    Established(End),
}

/// What is to become of a session after it was advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on at the next event.
    Goes,
    /// It has more to do now, after the others.
    Again,
    /// One end was reset; the other is to be reset as soon as it has received what was sent before.
    Resetting,
    /// Over: close both ends.
    Over,
}

/// One relayed connection.
#[derive(Debug)]
pub struct Session {
    /// Guards against stale events for an earlier session in the same place.
    pub generation: u32,
    /// When it began, in ticks.
    pub begun: u32,
    /// When bytes last moved, in ticks.
    pub active: u32,
    /// Which upstream (an index into the worker's list).
    pub target: usize,
    /// The client's end.
    pub client: End,
    /// The upstream's.
    pub upstream: Stage,
    /// TCP keep-alive was switched on for the upstream's socket.
    pub keepalive: Keepalive,
    forth: Flow,
    back: Flow,
    /// The end whose connection broke: what it sent before goes to the other, then that is reset.
    broken: Option<Side>,
}

/// Whether a session's upstream socket has TCP keep-alive: it is set when a session turns out to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keepalive {
    /// Not yet.
    Due,
    /// It has.
    Set,
}

/// Bytes that one advance moved: from the client, to the client.
#[derive(Debug, Default, Clone, Copy)]
pub struct Moved {
    /// Client to upstream.
    pub forth: u64,
    /// Upstream to client.
    pub back: u64,
}

impl Session {
    /// A connection that just came, without an upstream.
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
        }
    }

    /// Reads what the client sent already, before anything else is done for it. Returns how many bytes of
    /// `buffer` are to be written to the upstream first.
    ///
    /// # Errors
    /// The client is gone (reset).
    pub fn first_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match sock::recv(self.client.socket.as_fd(), buffer) {
            Ok(0) => {
                self.forth.ended = true;
                self.client.readable = false;
                Ok(0)
            }
            Ok(n) => {
                // More may have come than the buffer takes; a FIN may have come with it. epoll tells both.
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

    /// Keeps first bytes until an upstream takes them.
    pub fn keep(&mut self, bytes: &[u8]) {
        self.forth.keep(bytes);
    }

    /// The upstream accepted.
    pub fn established(&mut self) {
        if let Stage::Connecting(end, _) = std::mem::replace(&mut self.upstream, Stage::Waiting) {
            self.upstream = Stage::Established(end);
        }
    }

    /// The end on one side, if there is a socket.
    pub fn end_mut(&mut self, side: Side) -> Option<&mut End> {
        match (side, &mut self.upstream) {
            (Side::Client, _) => Some(&mut self.client),
            (Side::Upstream, Stage::Connecting(end, _) | Stage::Established(end)) => Some(end),
            (Side::Upstream, Stage::Waiting) => None,
        }
    }

    /// Moves what can be moved.
    pub fn advance(&mut self, buffer: &mut [u8], pipes: &mut Pipes, moved: &mut Moved) -> Fate {
        let Stage::Established(upstream) = &mut self.upstream else { return Fate::Goes };
        let client = &mut self.client;
        let (mut again, mut forth, mut back) = (false, Step::Waits, Step::Waits);
        if self.broken != Some(Side::Upstream) {
            forth = self.forth.pump(client, upstream, buffer, pipes, &mut moved.forth);
            self.forth.stop_small_splices(pipes);
        }
        if self.broken != Some(Side::Client) {
            back = self.back.pump(upstream, client, buffer, pipes, &mut moved.back);
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
                // The other end will see a reset and no FIN: nothing may wait for one.
                self.forth.resets = true;
                self.back.resets = true;
                if broke == Side::Client { &mut *upstream } else { &mut *client }.push();
                // Read on to the end of what it had sent: the error may have come out of a write.
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
                    _ => Fate::Goes,
                }
            }
            None => self.close_ended(forth, back, again),
        }
    }

    /// Passes on each FIN once its bytes are written. When both directions ended, closing is enough.
    fn close_ended(&mut self, forth: Step, back: Step, again: bool) -> Fate {
        let Stage::Established(upstream) = &mut self.upstream else { return Fate::Goes };
        if forth == Step::Ended && back == Step::Ended {
            return Fate::Over;
        }
        for (step, flow, to) in [(forth, &mut self.forth, upstream), (back, &mut self.back, &mut self.client)] {
            if step == Step::Ended && !flow.closed {
                flow.closed = true;
                // ENOTCONN: it is reset already, and the next read says so.
                let _ = socket2::SockRef::from(&to.socket).shutdown(std::net::Shutdown::Write);
            }
        }
        if again { Fate::Again } else { Fate::Goes }
    }

    /// Resets the other end once the kernel has word that all sent before has arrived: a reset throws away what
    /// is not yet acknowledged.
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

    /// Gives pipes back before the session goes.
    pub fn dispose(&mut self, pipes: &mut Pipes) {
        self.forth.discard(pipes);
        self.back.discard(pipes);
    }
}
