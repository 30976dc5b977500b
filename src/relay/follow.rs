//! `--drain-idle move` and `--drain-spread`: where the requests of relayed connections begin and end.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::journal::Origin;
use crate::exchange::{Direction, Exchange};
use crate::sys::sock;

/// What one direction of a session is told of its bytes.
pub struct Follow<'a> {
    exchange: Option<&'a mut Exchange>,
    direction: Direction,
}

impl Follow<'_> {
    /// These bytes went that way.
    #[inline]
    pub fn saw(&mut self, bytes: &[u8]) {
        match (&mut self.exchange, self.direction) {
            (Some(exchange), Direction::Requests) => exchange.has_read(bytes),
            (Some(exchange), Direction::Answers) => exchange.has_written(bytes),
            (None, _) => {}
        }
    }

    /// So many bytes went that way that were not looked at, at most [`Follow::unread`].
    pub fn missed(&mut self, count: u64) {
        match (&mut self.exchange, self.direction) {
            (Some(exchange), Direction::Requests) => exchange.has_read_unseen(count),
            (Some(exchange), Direction::Answers) => exchange.has_written_unseen(count),
            (None, _) => {}
        }
    }

    /// How many of the next bytes need not be looked at.
    #[inline]
    pub fn unread(&self) -> u64 {
        self.exchange.as_ref().map_or(u64::MAX, |exchange| exchange.unread(self.direction))
    }
}

/// One of a session's directions; `None`: it is not followed.
#[inline]
pub fn direction(followed: &mut Option<Box<Followed>>, direction: Direction) -> Follow<'_> {
    Follow { exchange: followed.as_mut().map(|followed| &mut followed.exchange), direction }
}

/// A session that is followed.
#[derive(Debug)]
pub struct Followed {
    exchange: Exchange,
    /// The number of the listener that its client came to.
    pub listener: usize,
    /// Client and destination, where a PROXY header named them.
    pub named: Option<(SocketAddr, SocketAddr)>,
    /// The master could hand it to another worker.
    pub can_move: bool,
    /// With `--drain-spread`: the tick from which on it may end.
    pub ends: Option<u32>,
    /// Since which tick an answer without a length is under way.
    streams: Option<u32>,
}

/// How long an answer without a length may take, in ticks, before its connection may be ended in the middle of it.
const STREAM_TICKS: u32 = 20;

impl Followed {
    pub fn new(client: BorrowedFd<'_>, origin: Origin<'_>) -> Box<Self> {
        let named = origin.client.and_then(|client| Some((&client.address, client.destination.as_ref()?)));
        let named = named.map(|(client, to)| Some((client.socket_address()?, to.socket_address()?)));
        Box::new(Self {
            exchange: Exchange::new(0, 0),
            listener: origin.listener,
            can_move: named != Some(None) && sock::local_addr(client).is_some(),
            named: named.flatten(),
            ends: None,
            streams: None,
        })
    }

    /// Takes in the client's first bytes.
    pub fn saw_first(&mut self, bytes: &[u8]) {
        self.exchange.has_read(bytes);
    }

    /// Whether every request that has begun was answered, or nothing has begun at all.
    pub fn is_between(&self) -> bool {
        self.exchange.is_at_rest() || self.exchange.is_unused()
    }

    /// Bytes may have moved.
    pub fn note(&mut self, tick: u32) {
        self.streams = if self.exchange.is_streaming() { self.streams.or(Some(tick)) } else { None };
    }

    /// Whether ending the connection would cost its client an answer that will soon be over.
    pub fn is_owed(&self, tick: u32) -> bool {
        let streams = self.streams.is_some_and(|since| tick.saturating_sub(since) >= STREAM_TICKS);
        !self.exchange.is_lost() && !self.is_between() && !streams
    }
}
