//! Whether some process still has a connection, from the kernel's socket diagnostics (sock_diag(7)). Each is looked up by its two
//! addresses, so the table of all connections is not walked, and no privilege is needed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Once;

use socket2::{Domain, Protocol, Socket, Type};

use super::sock::{self, PeerAddress};
use super::sock_diag::{HEADER, NLMSG_ERROR, REQUEST, SOCK_DIAG_BY_FAMILY, u32_at};

/// Connections that are asked about in one message: the answers have to fit into the socket's buffer.
pub const BATCH: usize = 32;
/// NLM_F_REQUEST
const REQUEST_ONE: u16 = 1;
/// TCP_LISTEN
const LISTEN: u8 = 10;
/// The place of the sequence number in `struct nlmsghdr`.
const SEQUENCE: usize = 8;
/// The cookie that stands for any.
const ANY: [u8; 8] = [0xff; 8];

/// The two addresses of a TCP connection, and its cookie: its addresses may be those of another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// As IPv6 addresses; IPv4 ones are v4-mapped.
    own: [u8; 16],
    peer: [u8; 16],
    /// In network order.
    own_port: [u8; 2],
    peer_port: [u8; 2],
    /// Of a link-local peer: the interface.
    interface: u32,
    cookie: [u8; 8],
}

/// The kernel's number of a socket, which is never another one's, as `struct inet_diag_sockid` has it; all ones: any.
fn cookie(socket: BorrowedFd<'_>) -> [u8; 8] {
    let mut number = [0; 8];
    if sock::option(socket, libc::SOL_SOCKET, libc::SO_COOKIE, &mut number).is_err() {
        return ANY;
    }
    // The lower half first.
    let number = u64::from_ne_bytes(number);
    let mut words = [0; 8];
    words[..4].copy_from_slice(&(number as u32).to_ne_bytes());
    words[4..].copy_from_slice(&((number >> 32) as u32).to_ne_bytes());
    words
}

impl Ends {
    /// `peer`: the address that it is connected to. `None` where an address is no IP address.
    pub fn of(socket: BorrowedFd<'_>, peer: &PeerAddress) -> Option<Self> {
        Self::new(&PeerAddress::own(socket), peer, cookie(socket))
    }

    pub(crate) fn new(own: &PeerAddress, peer: &PeerAddress, cookie: [u8; 8]) -> Option<Self> {
        let (own, to) = (own.socket_address()?, peer.socket_address()?);
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        Some(Self {
            own: octets(own.ip()),
            peer: octets(to.ip()),
            own_port: own.port().to_be_bytes(),
            peer_port: to.port().to_be_bytes(),
            interface: peer.interface(),
            cookie,
        })
    }

    /// `struct nlmsghdr` and `struct inet_diag_req_v2` for this one connection.
    fn request(&self, sequence: u32, request: &mut [u8]) {
        let mapped = |octets: &[u8; 16]| octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let v4 = mapped(&self.own) && mapped(&self.peer);
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
        let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(REQUEST as u32).to_ne_bytes());
        put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        put(6, &REQUEST_ONE.to_ne_bytes());
        put(SEQUENCE, &sequence.to_ne_bytes());
        put(HEADER, &[family as u8, libc::IPPROTO_TCP as u8]);
        // `struct inet_diag_sockid`: ports, two addresses of 16 bytes, interface, cookie.
        put(HEADER + 8, &self.own_port);
        put(HEADER + 10, &self.peer_port);
        let skip = if v4 { 12 } else { 0 };
        put(HEADER + 12, &self.own[skip..]);
        put(HEADER + 28, &self.peer[skip..]);
        put(HEADER + 44, &self.interface.to_ne_bytes());
        put(HEADER + 48, &self.cookie);
    }
}

/// Whether a TCP connection was reset: a process has it, but the kernel finds it no more.
pub fn is_gone(socket: BorrowedFd<'_>) -> bool {
    const CLOSE: u8 = 7;
    let mut info = [0; 8];
    sock::option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).is_ok() && info[0] == CLOSE
}

/// Asks once, whatever the answer is. The first question of all may load a module of the kernel, which takes a while.
pub fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        let nowhere = PeerAddress::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        if let (Ok(mut kernel), Some(nowhere)) = (Kernel::open(), Ends::new(&nowhere, &nowhere, ANY)) {
            let _ = kernel.are_open(&[nowhere]);
        }
    });
}

/// A socket for such questions.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    /// Counts all questions: the answer to an earlier one is none to this.
    asked: u32,
}

impl Kernel {
    /// # Errors
    /// When the kernel has no socket diagnostics.
    pub fn open() -> io::Result<Self> {
        let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(protocol))?;
        // The kernel answers before send(2) returns.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, asked: 0 })
    }

    /// Which of at most [`BATCH`] connections some process has, or a message that is on its way to one.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn are_open(&mut self, connections: &[Ends]) -> io::Result<[bool; BATCH]> {
        let connections = &connections[..connections.len().min(BATCH)];
        let mut request = vec![0; REQUEST * connections.len()];
        let first = self.asked;
        self.asked = self.asked.wrapping_add(connections.len() as u32);
        for (at, (ends, request)) in connections.iter().zip(request.chunks_exact_mut(REQUEST)).enumerate() {
            ends.request(first.wrapping_add(at as u32), request);
        }
        self.socket.send(&request)?;
        let (mut open, mut left) = ([false; BATCH], connections.len());
        let mut buffer = [0; 1024];
        while left > 0 {
            let read = io::Read::read(&mut &self.socket, &mut buffer)?;
            let Some((sequence, is_open)) = answer(&buffer[..read]) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if let Some(one) = open.get_mut(sequence.wrapping_sub(first) as usize) {
                (*one, left) = (is_open, left - 1);
            }
        }
        Ok(open)
    }
}

/// The number of a question, and whether there is such a connection that some process has.
fn answer(message: &[u8]) -> Option<(u32, bool)> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let sequence = u32_at(message, SEQUENCE)?;
    if kind == NLMSG_ERROR {
        let errno = (u32_at(message, HEADER)? as i32).wrapping_neg();
        // ESTALE: another socket has these addresses now.
        return matches!(errno, libc::ENOENT | libc::ESTALE).then_some((sequence, false));
    }
    // Of `struct inet_diag_msg` the state is at 1: where there is no such connection, the answer is about the listener. The inode
    // is at 68: 0 for a connection that only the kernel still has.
    Some((sequence, *message.get(HEADER + 1)? != LISTEN && u32_at(message, HEADER + 68)? != 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    fn ends(socket: &TcpStream) -> Ends {
        Ends::of(socket.as_fd(), &PeerAddress::of(socket.as_fd())).unwrap()
    }

    #[test]
    fn a_connection_is_open_until_no_process_has_it() {
        let mut kernel = Kernel::open().unwrap();
        for (listen, connect) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1")] {
            let listener = TcpListener::bind(format!("{listen}:0")).unwrap();
            let to = format!("{connect}:{}", listener.local_addr().unwrap().port());
            let mut both: Vec<_> = (0..BATCH)
                .map(|_| {
                    let client = TcpStream::connect(&to).unwrap();
                    let server = listener.accept().unwrap().0;
                    (ends(&server), client, Some(server))
                })
                .collect();
            let ends: Vec<_> = both.iter().map(|(ends, ..)| *ends).collect();
            assert_eq!(kernel.are_open(&ends).unwrap(), [true; BATCH], "{listen} {connect}");
            // By a copy in a message, too.
            let copy = both[1].2.as_ref().unwrap().try_clone().unwrap();
            let (queue, _end) = std::os::unix::net::UnixDatagram::pair().unwrap();
            nix::sys::socket::sendmsg::<()>(
                std::os::fd::AsRawFd::as_raw_fd(&queue),
                &[std::io::IoSlice::new(b"x")],
                &[nix::sys::socket::ControlMessage::ScmRights(&[std::os::fd::AsRawFd::as_raw_fd(&copy)])],
                nix::sys::socket::MsgFlags::empty(),
                None,
            )
            .unwrap();
            drop(copy);
            // The client has not closed these: the kernel keeps them in FIN_WAIT2, or has forgotten them.
            both.iter_mut().for_each(|(.., server)| drop(server.take()));
            let mut expected = [false; BATCH];
            expected[1] = true;
            assert_eq!(kernel.are_open(&ends).unwrap(), expected, "{listen} {connect}");
            drop(both);
            assert_eq!(kernel.are_open(&ends[..1]).unwrap(), [false; BATCH]);
            // The client was first: the kernel has forgotten it, and has the listener.
            let client = TcpStream::connect(&to).unwrap();
            let mut server = listener.accept().unwrap().0;
            let ends = self::ends(&server);
            drop(client);
            io::Read::read(&mut server, &mut [0]).unwrap();
            assert!(kernel.are_open(&[ends]).unwrap()[0]);
            drop(server);
            assert_eq!(kernel.are_open(&[ends]).unwrap(), [false; BATCH]);
        }
    }

    #[test]
    fn another_connection_with_the_same_addresses_is_another() {
        let mut kernel = Kernel::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let to = listener.local_addr().unwrap();
            let connect = |port| {
                let client = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                client.set_reuse_address(true).unwrap();
                client.bind(&std::net::SocketAddr::new(to.ip(), port).into()).unwrap();
                client.connect(&to.into()).unwrap();
                (TcpStream::from(client), listener.accept().unwrap().0)
            };
            let (client, server) = connect(0);
            let (first, port) = (ends(&server), client.local_addr().unwrap().port());
            sock::reset_on_close(client.as_fd());
            drop((client, server));
            let (_client, server) = connect(port);
            assert!(!is_gone(server.as_fd()));
            assert_eq!(kernel.are_open(&[first, ends(&server)]).unwrap()[..2], [false, true], "{address}");
        }
    }

    #[test]
    fn a_connection_that_was_reset_is_gone() {
        let mut kernel = Kernel::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = PeerAddress::own(client.as_fd());
        sock::reset_on_close(client.as_fd());
        drop(client);
        let server = listener.accept().unwrap().0;
        assert!(is_gone(server.as_fd()));
        let ends = Ends::of(server.as_fd(), &peer).unwrap();
        assert!(!kernel.are_open(&[ends]).unwrap()[0]);
    }

    #[test]
    fn an_error_that_is_not_about_the_connection_is_no_answer() {
        let mut message = [0; 36];
        message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        for (errno, expected) in
            [(libc::ENOENT, Some((0, false))), (libc::ESTALE, Some((0, false))), (libc::ENOMEM, None)]
        {
            message[HEADER..HEADER + 4].copy_from_slice(&(-errno).to_ne_bytes());
            assert_eq!(answer(&message), expected);
        }
    }

    /// One that was asked about by its addresses alone, and is forgotten.
    #[test]
    fn an_answer_about_the_listener_says_that_the_connection_is_over() {
        let mut message = [0; HEADER + 72];
        message[HEADER + 68] = 1;
        for (state, expected) in [(LISTEN, false), (1, true)] {
            message[HEADER + 1] = state;
            assert_eq!(answer(&message), Some((0, expected)));
        }
    }

    #[test]
    fn an_answer_of_another_shape_is_none() {
        for message in [&[][..], &[0; 8], &[0; 40]] {
            assert_eq!(answer(message), None);
        }
    }
}
