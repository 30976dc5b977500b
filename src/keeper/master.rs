//! The keeper's end of the attach socket: it asks for what the preload library would ask for.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::abi::attach::{self as abi, ADDRESS_BYTES, REPLY_BYTES, REQUEST_BYTES, TOKEN_BYTES, VERSION};
use crate::sys::scm;

/// While the master is silent, how often it is looked whether anybody still waits for its reply: in milliseconds.
const LOOKS_AFTER: u16 = 100;

/// Where the master is, the worker's proof, and the connection.
#[derive(Debug)]
pub struct Master {
    name: String,
    connection: OwnedFd,
    token: [u8; TOKEN_BYTES],
}

/// A reply with its descriptors.
#[derive(Debug)]
pub struct Reply {
    /// One of [`abi`]'s kinds.
    pub kind: u16,
    pub number: u32,
    pub address: [u8; ADDRESS_BYTES],
    pub fds: Vec<OwnedFd>,
}

impl Master {
    /// `variable`: the value of [`abi::VARIABLE`].
    ///
    /// # Errors
    /// When it is malformed, or as socket(2) and connect(2).
    pub fn connect(variable: &str) -> io::Result<Self> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
        let (name, token) = variable.split_once(':').ok_or_else(malformed)?;
        let token = token_of(token).ok_or_else(malformed)?;
        Ok(Self { name: name.to_owned(), connection: connect(name)?, token })
    }

    /// Asks on behalf of a process and waits for the reply, as long as somebody `waits` for it. A connection that the master has
    /// closed is opened again.
    ///
    /// # Errors
    /// When the master is gone, or the reply is none; `TimedOut` when nobody waits any more.
    pub fn ask(
        &mut self,
        waits: impl Fn() -> bool,
        process: u32,
        op: u16,
        number: u32,
        address: &[u8; ADDRESS_BYTES],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<Reply> {
        let request = self.request(process, op, number, address);
        self.ask_once(&waits, &request, fd).or_else(|error| {
            // A reply that comes yet is not the next request's.
            self.connection = connect(&self.name)?;
            if error.kind() == io::ErrorKind::TimedOut {
                return Err(error);
            }
            self.ask_once(&waits, &request, fd)
        })
    }

    fn request(&self, process: u32, op: u16, number: u32, address: &[u8; ADDRESS_BYTES]) -> [u8; REQUEST_BYTES] {
        let mut request = [0; REQUEST_BYTES];
        let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(abi::Request, version), &VERSION.to_ne_bytes());
        put(offset_of!(abi::Request, op), &op.to_ne_bytes());
        put(offset_of!(abi::Request, pid), &process.to_ne_bytes());
        put(offset_of!(abi::Request, token), &self.token);
        put(offset_of!(abi::Request, number), &number.to_ne_bytes());
        put(offset_of!(abi::Request, address), address);
        request
    }

    fn ask_once(
        &self,
        waits: impl Fn() -> bool,
        request: &[u8; REQUEST_BYTES],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<Reply> {
        scm::send_fds(self.connection.as_fd(), request, fd.into_iter())?;
        let mut reply = [0; REPLY_BYTES];
        let mut fds = Vec::new();
        let received = loop {
            match scm::recv_fds(self.connection.as_fd(), &mut reply, &mut fds) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut reply = [PollFd::new(self.connection.as_fd(), PollFlags::POLLIN)];
                    // What it finds is found out by the receive.
                    let silent = poll(&mut reply, LOOKS_AFTER).is_ok_and(|count| count == 0);
                    if silent && !waits() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                other => break other?,
            }
        };
        let short = |at: usize| u16::from_ne_bytes([reply[at], reply[at + 1]]);
        if received.len != REPLY_BYTES || short(offset_of!(abi::Reply, version)) != VERSION {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let at = offset_of!(abi::Reply, number);
        let number = u32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        let mut address = [0; ADDRESS_BYTES];
        address.copy_from_slice(&reply[offset_of!(abi::Reply, address)..][..ADDRESS_BYTES]);
        Ok(Reply { kind: short(offset_of!(abi::Reply, kind)), number, address, fds })
    }
}

fn connect(name: &str) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    Ok(socket.into())
}

fn token_of(text: &str) -> Option<[u8; TOKEN_BYTES]> {
    let mut token = [0; TOKEN_BYTES];
    let hexadecimal = text.len() == 2 * TOKEN_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hexadecimal {
        return None;
    }
    for (at, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sixteen_bytes_in_hexadecimal() {
        let text = "000102030405060708090a0b0c0d0eff";
        assert_eq!(token_of(text), Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]));
        for wrong in ["", &text[1..], "000102030405060708090a0b0c0d0efg", "+00102030405060708090a0b0c0d0eff"] {
            assert_eq!(token_of(wrong), None, "{wrong}");
        }
    }
}
