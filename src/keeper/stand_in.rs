//! Stand-ins: what the server has in place of its listening sockets, and the connections that come by them.

use std::collections::VecDeque;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::abi::payload::{self, DIRECT_BYTES};
use crate::handoff::page::CountersPage;
use crate::sys::scm;
use crate::sys::seccomp::Call;
use crate::sys::sock::{self, PeerAddress};

/// One listener of the server's.
#[derive(Debug)]
pub struct StandIn {
    /// Its number at the master.
    pub listener: u32,
    /// Of what the server has in place of its socket.
    pub inode: u64,
    source: Source,
    /// Where it listens, in the family of the server's own socket.
    pub address: PeerAddress,
    pub listens: bool,
    /// The server's threads that wait in accept(2).
    pub waiting: VecDeque<Call>,
    /// Connections whose caller was gone; of a queue, only while that has no room.
    returned: VecDeque<Connection>,
}

/// Where a stand-in's connections come from.
#[derive(Debug)]
pub enum Source {
    /// The master's queue, by both of its ends. The server has the receiving one, too.
    Queue { queue: OwnedFd, keep: OwnedFd },
    /// Policy none: the listening socket itself, which all workers share. It never blocks; whether accept(2) is to wait is the
    /// server's own mode.
    Listener { socket: OwnedFd, page: Arc<CountersPage>, blocks: bool },
}

/// A connection for the server.
#[derive(Debug)]
pub struct Connection {
    pub socket: OwnedFd,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Handed([u8; DIRECT_BYTES]),
    /// Accepted here, with the client's address.
    Accepted(PeerAddress),
}

impl Connection {
    /// The client's address.
    pub fn client(&self) -> PeerAddress {
        let message = match &self.origin {
            Origin::Handed(message) => message,
            Origin::Accepted(client) => return *client,
        };
        let mut address = PeerAddress::default();
        let at = offset_of!(payload::Direct, address_len);
        address.len = u16::from_ne_bytes([message[at], message[at + 1]]);
        let room = address.bytes.len();
        address.bytes.copy_from_slice(&message[offset_of!(payload::Direct, address)..][..room]);
        address
    }

    /// When the master accepted it: CLOCK_MONOTONIC in nanoseconds. `None`: it was not handed over.
    pub fn accepted(&self) -> Option<u64> {
        let Origin::Handed(message) = &self.origin else { return None };
        let at = offset_of!(payload::Direct, accepted);
        message[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// It ends a wait in accept(2), and nobody counts it.
    pub fn only_wakes(&self) -> bool {
        matches!(&self.origin, Origin::Handed(message) if message[offset_of!(payload::Direct, tag)] == payload::WAKE)
    }
}

impl StandIn {
    /// # Errors
    /// As fstat(2).
    pub fn new(listener: u32, source: Source, address: PeerAddress) -> io::Result<Self> {
        let (Source::Queue { queue: file, .. } | Source::Listener { socket: file, .. }) = &source;
        let inode = sock::inode(file.as_fd()).ok_or(io::ErrorKind::InvalidInput)?;
        let (waiting, returned) = Default::default();
        Ok(Self { listener, inode, source, address, listens: false, waiting, returned })
    }

    /// What the server has in place of its socket: readable when there is a connection.
    pub fn file(&self) -> &OwnedFd {
        let (Source::Queue { queue: file, .. } | Source::Listener { socket: file, .. }) = &self.source;
        file
    }

    /// The family of the server's own socket.
    pub fn family(&self) -> i32 {
        if self.address.len == 16 { libc::AF_INET } else { libc::AF_INET6 }
    }

    /// Whether accept(2) on it waits.
    pub fn blocks(&self) -> bool {
        match &self.source {
            Source::Queue { queue, .. } => sock::is_blocking(queue.as_fd()),
            Source::Listener { blocks, .. } => *blocks,
        }
    }

    /// Whether accept(2) is to wait from now on. Returns whether that is this side's matter.
    pub fn set_blocking(&mut self, on: bool) -> bool {
        match &mut self.source {
            Source::Queue { .. } => false,
            Source::Listener { blocks, .. } => {
                *blocks = on;
                true
            }
        }
    }

    /// The next connection; `None`: there is none at the moment.
    ///
    /// # Errors
    /// As accept(2).
    pub fn next(&mut self) -> io::Result<Option<Connection>> {
        if let Some(connection) = self.returned.pop_front() {
            return Ok(Some(connection));
        }
        match &self.source {
            Source::Queue { queue, .. } => Ok(receive(queue)),
            // A worker that is replaced leaves them to the others.
            Source::Listener { page, .. } if !page.begins_to_accept() => Ok(None),
            Source::Listener { socket, .. } => accept(socket),
        }
    }

    /// Of a listening socket: where it is told that connections are being accepted, and that no more are to be.
    pub fn page(&self) -> Option<&CountersPage> {
        match &self.source {
            Source::Queue { .. } => None,
            Source::Listener { page, .. } => Some(page),
        }
    }

    /// Whether it has connections for the next call.
    pub fn holds_some(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Gives back a connection whose caller is gone: to the queue's end, where the master finds it if the server has ended, or to
    /// the next call.
    pub fn give_back(&mut self, connection: Connection) {
        // As it came: another worker may want it so.
        sock::unblock(connection.socket.as_fd());
        if let Some(connection) = self.send(connection) {
            self.returned.push_back(connection);
        }
    }

    fn send(&self, connection: Connection) -> Option<Connection> {
        let (Source::Queue { keep, .. }, Origin::Handed(message)) = (&self.source, &connection.origin) else {
            return Some(connection);
        };
        let socket = std::iter::once(connection.socket.as_fd());
        scm::send_fds(keep.as_fd(), message, socket).is_err().then_some(connection)
    }

    /// Before the keeper ends: what it has goes to the queue, for other workers.
    pub fn give_all_back(&mut self) {
        let returned = std::mem::take(&mut self.returned).into_iter();
        let lost = returned.filter_map(|connection| self.send(connection)).count();
        if lost > 0 {
            eprintln!("roundsman: {lost} accepted connection(s) lost: the server ended before it received them");
        }
    }

    /// An address in the family of the server's own socket.
    pub fn shown(&self, address: PeerAddress) -> PeerAddress {
        shown_as(address, self.address.len)
    }
}

fn receive(queue: &OwnedFd) -> Option<Connection> {
    let mut fds = Vec::new();
    loop {
        let mut message = [0; DIRECT_BYTES];
        match scm::recv_fds(queue.as_fd(), &mut message, &mut fds) {
            Ok(received) if received.len == 0 && fds.is_empty() => return None,
            // An empty message of the master's, or one that the server sent to itself.
            Ok(received) if received.len != DIRECT_BYTES || fds.len() != 1 => fds.clear(),
            Ok(_) => return fds.pop().map(|socket| Connection { socket, origin: Origin::Handed(message) }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

fn accept(listener: &OwnedFd) -> io::Result<Option<Connection>> {
    loop {
        match sock::accept_with_peer(listener.as_fd()) {
            Ok((socket, client)) => return Ok(Some(Connection { socket, origin: Origin::Accepted(client) })),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ => return Err(error),
            },
        }
    }
}

/// An IP address with port in the family whose addresses are so long. (Of a listener that serves both families.)
pub fn shown_as(address: PeerAddress, len: u16) -> PeerAddress {
    match address.socket_address() {
        Some(SocketAddr::V4(v4)) if address.len == 16 && len > 16 => {
            SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port()).into()
        }
        Some(v4 @ SocketAddr::V4(_)) if address.len > 16 && len == 16 => v4.into(),
        // As the preload library shows a client that has no IPv4 address.
        Some(SocketAddr::V6(v6)) if len == 16 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port())).into(),
        _ => address,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_family_of_the_servers_socket() {
        let of = |text: &str| PeerAddress::from(text.parse::<SocketAddr>().unwrap());
        let (v4, v6) = (of("10.1.2.3:4"), of("[2001:db8::1]:4"));
        let mapped = of("[::ffff:10.1.2.3]:4");
        assert_eq!(shown_as(v4, 16), v4);
        assert_eq!(shown_as(v4, 28), mapped);
        assert_eq!(shown_as(mapped, 16), v4);
        assert_eq!(shown_as(mapped, 28), mapped);
        assert_eq!(shown_as(v6, 16), of("0.0.0.0:4"));
        assert_eq!(shown_as(v6, 28), v6);
        assert_eq!(shown_as(PeerAddress::default(), 16), PeerAddress::default());
    }

    #[test]
    fn what_is_no_connection_is_passed_over_and_what_is_given_back_comes_again() {
        let queue = crate::handoff::QueueTx::to_server(7, crate::handoff::Carries::Sockets).unwrap();
        let (rx, tx) = queue.ends().unwrap();
        let source = Source::Queue { queue: rx, keep: tx.try_clone().unwrap() };
        let mut stand_in = StandIn::new(7, source, "10.1.2.3:4".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert!(stand_in.next().unwrap().is_none());
        queue.send_empty().unwrap();
        scm::send_fds(tx.as_fd(), b"garbage", std::iter::empty()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = sock::accept_with_peer(listener.as_fd()).unwrap();
        queue.send_batch(&[(socket, peer.into())], 1, 99).unwrap();
        for _ in 0..2 {
            let connection = stand_in.next().unwrap().unwrap();
            assert_eq!(connection.client().socket_address(), Some(client.local_addr().unwrap()));
            assert_eq!((connection.accepted(), connection.only_wakes()), (Some(99), false));
            assert!(stand_in.next().unwrap().is_none());
            stand_in.give_back(connection);
            assert_eq!(queue.pending(), 1);
        }
        assert_eq!(queue.take_back().len(), 1);
    }

    #[test]
    fn a_leaving_worker_accepts_no_more_but_delivers_what_it_has() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let page = Arc::new(CountersPage::create().unwrap().0);
        page.add(crate::abi::page::row::PID, std::process::id().into());
        let source = Source::Listener { socket: listener.into(), page: page.clone(), blocks: true };
        let mut stand_in = StandIn::new(7, source, at.into()).unwrap();
        assert!(stand_in.next().unwrap().is_none() && stand_in.blocks());
        assert!(stand_in.set_blocking(false) && !stand_in.blocks());
        let clients = [(); 2].map(|()| std::net::TcpStream::connect(at).unwrap());
        let connection = stand_in.next().unwrap().unwrap();
        assert_eq!(connection.client(), clients[0].local_addr().unwrap().into());
        assert!(page.is_accepting() && connection.accepted().is_none());
        stand_in.give_back(connection);
        assert!(stand_in.holds_some());
        page.leave();
        let connection = stand_in.next().unwrap().unwrap();
        assert_eq!(connection.client(), clients[0].local_addr().unwrap().into());
        assert!(stand_in.next().unwrap().is_none(), "the second is for other workers");
        assert!(!stand_in.holds_some());
    }
}
