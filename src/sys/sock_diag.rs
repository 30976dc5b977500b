//! TCP sockets of this network namespace, from the kernel's socket diagnostics (sock_diag(7)).
//!
//! /proc/net/tcp walks the table of all connections, which takes milliseconds on a machine with much memory even when it
//! is empty; a dump that asks for listening sockets alone does not look at that table. It also has a line for each connection
//! in TIME_WAIT, of which there are tens of thousands on a busy machine: half a second of reading.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of `enum` in linux/tcp.h, as a set of bits.
const LISTEN: u32 = 1 << 10;
/// TCP_ESTABLISHED, TCP_SYN_SENT, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
pub(super) const HEADER: usize = 16;
pub(super) const REQUEST: usize = HEADER + 56;

/// A socket, by its local port; the inode of one that no process has is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub port: u16,
    pub inode: u64,
}

/// All listening TCP sockets, IPv4 and IPv6.
///
/// # Errors
/// When the kernel has no socket diagnostics, or refuses them.
pub fn listening() -> io::Result<Vec<Found>> {
    both_families(LISTEN, 0)
}

/// All TCP connections with this local port, IPv4 and IPv6, except those in TIME_WAIT; with all ports if it is 0.
///
/// # Errors
/// As [`listening`].
pub fn connections(port: u16) -> io::Result<Vec<Found>> {
    both_families(CONNECTED, port)
}

fn both_families(states: u32, port: u16) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(&request(family as u8, states, port), &mut found)?;
    }
    Ok(found)
}

fn dump(request: &[u8], found: &mut Vec<Found>) -> io::Result<()> {
    let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(protocol))?;
    // The kernel answers at once; should it not, the control thread must not block.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send(request)?;
    // A dump comes in parts of at most 32 KiB.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = socket.read(&mut buffer)?;
        if parse(&buffer[..read], found)? {
            return Ok(());
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, port: u16) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
    request[HEADER + 8..HEADER + 10].copy_from_slice(&port.to_be_bytes());
    request
}

/// Appends the entries of one part of a dump to `found`. Returns whether it was the last part.
fn parse(mut part: &[u8], found: &mut Vec<Found>) -> io::Result<bool> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    while !part.is_empty() {
        let length = u32_at(part, 0).ok_or_else(malformed)? as usize;
        let message = part.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(malformed)?;
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(message, HEADER).ok_or_else(malformed)?;
                return Err(io::Error::from_raw_os_error((errno as i32).wrapping_neg()));
            }
            _ => {
                // `struct inet_diag_msg`: the source port at 4, in network order, the inode at 68.
                let body = &message[HEADER..];
                let port = body.get(4..6).ok_or_else(malformed)?;
                let inode = u32_at(body, 68).ok_or_else(malformed)?;
                found.push(Found { port: u16::from_be_bytes([port[0], port[1]]), inode: inode.into() });
            }
        }
        // Messages are aligned to 4 bytes.
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_of_either_family_is_found_with_its_inode() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let _connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
            let expected = Found { port: listener.local_addr().unwrap().port(), inode };
            let found = listening().unwrap();
            assert_eq!(found.iter().filter(|socket| socket.port == expected.port).collect::<Vec<_>>(), [&expected]);
        }
    }

    #[test]
    fn connections_are_found_by_their_local_port_but_not_in_time_wait() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let of_port = |asked| {
                let found = connections(asked).unwrap();
                found.into_iter().filter(|socket| socket.port == port).map(|socket| socket.inode).collect::<Vec<_>>()
            };
            let inode = nix::sys::stat::fstat(&server).unwrap().st_ino;
            assert_eq!((of_port(port), of_port(0)), (vec![inode], vec![inode]));
            assert!(of_port(client.local_addr().unwrap().port()).is_empty());
            // The side that ends first keeps the connection in TIME_WAIT.
            server.shutdown(std::net::Shutdown::Both).unwrap();
            drop(client);
            drop(server);
            assert!(of_port(port).is_empty() && of_port(0).is_empty());
        }
    }

    #[test]
    fn malformed_dumps_are_errors() {
        let mut found = Vec::new();
        for bytes in [&[1u8, 2, 3][..], &[0; 16], &[200, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(parse(bytes, &mut found).is_err(), "{bytes:?}");
        }
        assert!(found.is_empty());
    }
}
