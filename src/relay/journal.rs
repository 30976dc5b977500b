//! What the access log gets of a session.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::session::{Moved, Session};
use super::upstreams::{Address, Upstreams};
use crate::abi::access::{Closed, NONE, Place, Received, end};
use crate::handoff::Client;
use crate::handoff::access::AccessWriter;
use crate::proxy_protocol::Pair;
use crate::sys::clock::monotonic_ns;
use crate::sys::sock::{self, PeerAddress};

/// Where a connection came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub listener: usize,
    /// When the master accepted it: CLOCK_MONOTONIC in nanoseconds; 0: the worker accepted it itself.
    pub accepted: u64,
    /// With a PROXY header.
    pub client: Option<&'a Client>,
}

impl Origin<'_> {
    /// The two ends of the client's connection: those that a PROXY header named, else its own; `None` on a Unix socket.
    pub fn pair(&self, socket: BorrowedFd<'_>) -> Option<Pair> {
        let named = self.client.and_then(|client| Some((client.address, **client.destination.as_ref()?)));
        let (client, destination) = named.unwrap_or_else(|| (PeerAddress::of(socket), PeerAddress::own(socket)));
        Some(Pair { client: client.socket_address()?, destination: destination.socket_address()? })
    }
}

/// A session that is logged.
#[derive(Debug)]
pub struct Entry {
    id: u32,
    bytes_in: u64,
    bytes_out: u64,
    /// When connect(2) was called: CLOCK_MONOTONIC in nanoseconds.
    connecting: u64,
    /// In microseconds, or [`NONE`].
    connect: u32,
    /// One of [`end`], once a side has ended.
    end: Option<u8>,
}

impl Entry {
    /// The entry of a new session, unless it is not to be logged.
    pub fn begin(log: &AccessWriter, client: BorrowedFd<'_>, origin: Origin<'_>) -> Option<Box<Self>> {
        let now = monotonic_ns();
        let id = log.received(now, |id| {
            let address = origin.client.map_or_else(|| PeerAddress::of(client), |client| client.address);
            Received {
                pid: std::process::id(),
                fd: client.as_raw_fd() as u32,
                id,
                listener: origin.listener as u32,
                accepted: origin.accepted,
                received: now,
                client: address.into(),
            }
        })?;
        Some(Box::new(Self { id, bytes_in: 0, bytes_out: 0, connecting: 0, connect: NONE, end: None }))
    }

    pub fn connects(&mut self) {
        self.connecting = monotonic_ns();
    }

    pub fn connected(&mut self) {
        let us = monotonic_ns().saturating_sub(self.connecting) / 1000;
        self.connect = u32::try_from(us).unwrap_or(NONE - 1).min(NONE - 1);
    }

    /// Bytes were moved; the first side that has ended is the one that counts.
    pub fn moved(&mut self, moved: Moved, ended: Option<u8>) {
        self.bytes_in += moved.forth;
        self.bytes_out += moved.back;
        self.end = self.end.or(ended);
    }

    /// The session is being closed.
    pub fn finish(&self, log: &AccessWriter, session: &Session, upstreams: &Upstreams) {
        let tcp = sock::rtt_and_retransmits(session.client.socket.as_fd());
        let (rtt, retransmits) = tcp.unwrap_or((NONE, NONE));
        let address = match upstreams.address(session.target) {
            Some(Address::Tcp(_, address)) => place(address),
            _ => Place::UNKNOWN,
        };
        log.closed(Closed {
            id: self.id,
            // Closed by us: no upstream could be reached, or no byte came for too long.
            end: self.end.or(session.ended_by()).unwrap_or(end::SERVER),
            closed: monotonic_ns(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            rtt,
            retransmits,
            connect: self.connect,
            upstream: upstreams.group(session.target).map_or(NONE, |group| group as u32),
            address,
        });
    }
}

fn place(address: &socket2::SockAddr) -> Place {
    address.as_socket().map_or(Place::UNKNOWN, |address| PeerAddress::from(address).into())
}

impl From<PeerAddress> for Place {
    fn from(PeerAddress { len, bytes }: PeerAddress) -> Self {
        Self { len, bytes }
    }
}
