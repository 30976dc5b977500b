//! The listening TCP sockets of this network namespace, from the kernel's socket diagnostics (sock_diag(7)).
//!
//! /proc/net/tcp walks the table of all connections, which takes milliseconds on a machine with much memory even when it
//! is empty; a dump that asks for listening sockets alone does not look at that table.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const TCP_LISTEN: u32 = 10;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    pub port: u16,
    pub inode: u64,
}

/// All listening TCP sockets, IPv4 and IPv6.
///
/// # Errors
/// When the kernel has no socket diagnostics, or refuses them.
pub fn listening() -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family as u8, &mut found)?;
    }
    Ok(found)
}

fn dump(family: u8, found: &mut Vec<Listening>) -> io::Result<()> {
    let protocol = Protocol::from(libc::NETLINK_SOCK_DIAG);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(protocol))?;
    // The kernel answers at once; should it not, the control thread must not block.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send(&request(family))?;
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
fn request(family: u8) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request[HEADER] = family;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    request
}

/// Appends the entries of one part of a dump to `found`. Returns whether it was the last part.
fn parse(mut part: &[u8], found: &mut Vec<Listening>) -> io::Result<bool> {
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
                found.push(Listening { port: u16::from_be_bytes([port[0], port[1]]), inode: inode.into() });
            }
        }
        // Messages are aligned to 4 bytes.
        part = part.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
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
            let expected = Listening { port: listener.local_addr().unwrap().port(), inode };
            let found = listening().unwrap();
            assert_eq!(found.iter().filter(|socket| socket.port == expected.port).collect::<Vec<_>>(), [&expected]);
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
