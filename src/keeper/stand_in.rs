//! Stand-ins: what the server has in place of its listening sockets, and the connections that come by them.

use std::collections::VecDeque;
use std::io;
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use crate::abi::payload::{self, DIRECT_BYTES};
use crate::sys::seccomp::Call;
use crate::sys::sock::{self, PeerAddress};
use crate::sys::{reason, scm};

/// One listener of the server's.
#[derive(Debug)]
pub struct StandIn {
    /// Its number at the master.
    pub listener: u32,
    /// Of the queue's receiving end, which the server has in place of its socket.
    pub inode: u64,
    queue: OwnedFd,
    /// The queue's sending end.
    keep: OwnedFd,
    /// Where it listens, in the family of the server's own socket.
    pub address: PeerAddress,
    pub listens: bool,
    /// The server's threads that wait in accept(2).
    pub waiting: VecDeque<Call>,
    /// Connections for which the queue has no room at the moment.
    returned: VecDeque<Connection>,
}

/// A connection for the server.
#[derive(Debug)]
pub struct Connection {
    pub socket: OwnedFd,
    message: [u8; DIRECT_BYTES],
}

impl Connection {
    /// The client's address.
    pub fn client(&self) -> PeerAddress {
        let mut address = PeerAddress::default();
        let at = offset_of!(payload::Direct, address_len);
        address.len = u16::from_ne_bytes([self.message[at], self.message[at + 1]]);
        let room = address.bytes.len();
        address.bytes.copy_from_slice(&self.message[offset_of!(payload::Direct, address)..][..room]);
        address
    }

    /// When the master accepted it: CLOCK_MONOTONIC in nanoseconds.
    pub fn accepted(&self) -> u64 {
        let at = offset_of!(payload::Direct, accepted);
        self.message[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// It ends a wait in accept(2), and nobody counts it.
    pub fn only_wakes(&self) -> bool {
        self.message[offset_of!(payload::Direct, tag)] == payload::WAKE
    }
}

impl StandIn {
    /// # Errors
    /// As fstat(2).
    pub fn new(listener: u32, queue: OwnedFd, keep: OwnedFd, address: PeerAddress) -> io::Result<Self> {
        let inode = sock::inode(queue.as_fd()).ok_or(io::ErrorKind::InvalidInput)?;
        let (waiting, returned) = Default::default();
        Ok(Self { listener, inode, queue, keep, address, listens: false, waiting, returned })
    }

    /// The end that the server has, too.
    pub fn queue(&self) -> &OwnedFd {
        &self.queue
    }

    /// Whether accept(2) on it waits.
    pub fn blocks(&self) -> bool {
        sock::is_blocking(self.queue.as_fd())
    }

    /// The next connection; `None`: there is none at the moment.
    pub fn next(&mut self) -> Option<Connection> {
        if let Some(connection) = self.returned.pop_front() {
            return Some(connection);
        }
        let mut fds = Vec::new();
        loop {
            let mut message = [0; DIRECT_BYTES];
            match scm::recv_fds(self.queue.as_fd(), &mut message, &mut fds) {
                Ok(received) if received.len == 0 && fds.is_empty() => return None,
                // An empty message of the master's, or one that the server sent to itself.
                Ok(received) if received.len != DIRECT_BYTES || fds.len() != 1 => fds.clear(),
                Ok(_) => return fds.pop().map(|socket| Connection { socket, message }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Gives back a connection whose caller is gone: to the queue's end, where the master finds it if the server has ended.
    pub fn give_back(&mut self, connection: Connection) {
        if let Some(connection) = self.send(connection) {
            self.returned.push_back(connection);
        }
    }

    fn send(&self, connection: Connection) -> Option<Connection> {
        let socket = std::iter::once(connection.socket.as_fd());
        scm::send_fds(self.keep.as_fd(), &connection.message, socket).is_err().then_some(connection)
    }

    /// Before the keeper ends: what it has goes to the queue, for other workers.
    pub fn give_all_back(&mut self) {
        for connection in std::mem::take(&mut self.returned) {
            if self.send(connection).is_some() {
                eprintln!("roundsman: a connection is lost: {}", reason(&io::Error::last_os_error()));
            }
        }
    }

    /// An address in the family of the server's own socket.
    pub fn shown(&self, address: PeerAddress) -> PeerAddress {
        shown_as(address, self.address.len)
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
        let mut stand_in = StandIn::new(7, rx, tx, "10.1.2.3:4".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert!(stand_in.next().is_none());
        queue.send_empty().unwrap();
        scm::send_fds(stand_in.keep.as_fd(), b"garbage", std::iter::empty()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = sock::accept_with_peer(listener.as_fd()).unwrap();
        queue.send_batch(&[(socket, peer.into())], 1, 99).unwrap();
        for _ in 0..2 {
            let connection = stand_in.next().unwrap();
            assert_eq!(connection.client().socket_address(), Some(client.local_addr().unwrap()));
            assert_eq!((connection.accepted(), connection.only_wakes()), (99, false));
            assert!(stand_in.next().is_none());
            stand_in.give_back(connection);
            assert_eq!(queue.pending(), 1);
        }
        assert_eq!(queue.take_back().len(), 1);
    }
}
