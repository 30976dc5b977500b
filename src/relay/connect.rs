//! Opens the upstream side of a connection, from further source addresses when one is out of ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, SockAddr, Socket, Type};

use super::upstreams::Address;
use crate::sys::sock;

/// The most source addresses tried for one connection.
const MAX_ATTEMPTS: u8 = 8;
/// Source addresses of one worker for loopback upstreams; each has its own ephemeral ports.
const SOURCES: u8 = 250;

#[derive(Debug)]
pub enum Started {
    /// Established or under way; over loopback it is established even if connect(2) returned EINPROGRESS.
    Going(OwnedFd),
    /// The upstream is not at fault: a Unix socket's backlog is full, or this machine is out of descriptors, memory or ports.
    /// To be tried again shortly.
    Later,
}

#[derive(Debug)]
pub struct Sources {
    slot: u32,
    /// Last byte of the address used last; `None` until the kernel's choice, 127.0.0.1, ran out of ports.
    next: Option<u8>,
}

impl Sources {
    /// The worker of each slot has its own range, 127.(64 + slot / 256).(slot % 256).x.
    pub fn new(slot: u32) -> Self {
        Self { slot, next: None }
    }

    fn advance(&mut self) -> Ipv4Addr {
        let last = self.next.map_or(1, |next| next % SOURCES + 1);
        self.next = Some(last);
        let [_, _, high, low] = self.slot.to_be_bytes();
        Ipv4Addr::new(127, 64 + (high & 63), low, last)
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// As connect(2), without `EINPROGRESS` and shortages on this machine.
    pub fn connect(&mut self, address: &Address) -> io::Result<Started> {
        match self.attempt(address) {
            Err(error) => match error.raw_os_error() {
                Some(
                    libc::EAGAIN
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOBUFS
                    | libc::ENOMEM
                    | libc::EADDRNOTAVAIL
                    | libc::EINTR,
                ) => Ok(Started::Later),
                _ => Err(error),
            },
            Ok(socket) => Ok(Started::Going(socket)),
        }
    }

    fn attempt(&mut self, address: &Address) -> io::Result<OwnedFd> {
        match address {
            Address::Unix(_, address) => begin(Domain::UNIX, address, None),
            Address::Tcp(to @ SocketAddr::V4(v4), address) if v4.ip().is_loopback() => {
                let mut source = self.next.map(|_| self.advance());
                for _ in 0..MAX_ATTEMPTS {
                    match begin(Domain::for_address(*to), address, source) {
                        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                            source = Some(self.advance());
                        }
                        other => return other,
                    }
                }
                Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
            }
            Address::Tcp(to, address) => begin(Domain::for_address(*to), address, None),
        }
    }
}

fn begin(domain: Domain, address: &SockAddr, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let socket = Socket::new_raw(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    if let Some(source) = source {
        sock::bind_address_no_port(socket.as_fd())?;
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(source, 0)).into())?;
    }
    match socket.connect(address) {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_its_own_sources_and_goes_round() {
        let (mut a, mut b) = (Sources::new(3), Sources::new(300));
        assert_eq!(a.advance(), Ipv4Addr::new(127, 64, 3, 1));
        assert_eq!(b.advance(), Ipv4Addr::new(127, 65, 44, 1));
        for _ in 1..SOURCES {
            a.advance();
        }
        assert_eq!(a.advance(), Ipv4Addr::new(127, 64, 3, 1));
    }
}
