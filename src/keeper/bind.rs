//! bind(2) in a server: where a stand-in comes from.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::answers::{Answers, Outcome};
use super::caller::{self, Memory};
use super::master::Reply;
use super::stand_in::{Source, StandIn, shown_as};
use super::undelivered::Bound;
use super::watched::Watched;
use crate::abi::attach::{ADDRESS_BYTES, LATER, LISTENER, PASS, SHARED, STATUS, YOURSELF, op};
use crate::sys::seccomp::Call;
use crate::sys::sock::{self, PeerAddress};
use crate::sys::sockets;

/// Delay before a request is repeated while another process binds the same address.
const RETRY_AFTER: Duration = Duration::from_millis(2);
/// Tries while it does: 3 s.
const MAX_TRIES_WHILE_BINDING: u32 = 1500;
/// Tries while a copy of a closed listener may be in the way: 0.2 s.
const MAX_TRIES_WHILE_CLOSING: u32 = 100;

/// A bind(2) that may be one of a listening socket of ours.
struct Bind<'a> {
    call: &'a Call,
    process: u32,
    /// As the server has written it.
    bytes: [u8; ADDRESS_BYTES],
    address: SocketAddr,
    /// The server's own socket, or one like it where that cannot be had.
    socket: OwnedFd,
}

/// What the server has at the descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub fd: i32,
    /// As open(2) has them.
    pub flags: i32,
    pub inode: u64,
}

impl Answers {
    pub(super) fn bind(&self, call: &Call) -> Outcome {
        let [fd, at, len, ..] = call.arguments;
        let (fd, len) = (fd as i32, len as u32 as usize);
        if !(16..=128).contains(&len) {
            return Outcome::GoesOn;
        }
        let bytes = Memory::of(call, &self.notifications).read(at, len);
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                // It binds by itself, as without us.
                self.state().complain(call.thread);
                return Outcome::GoesOn;
            }
            Err(_) => return Outcome::GoesOn,
        };
        {
            let state = &mut *self.state();
            if state.find(call.thread, fd).is_some() {
                return Outcome::Returns(if state.undelivered.take(call) { Ok(0) } else { Err(libc::EINVAL) });
            }
        }
        let Some(address) = decode(&bytes, len).filter(|address| address.port() != 0) else { return Outcome::GoesOn };
        let Some(process) = caller::process_of(call.thread) else { return Outcome::GoesOn };
        let Some(inode) = caller::inode(call.thread, fd) else { return Outcome::GoesOn };
        let place = Place { fd, flags: caller::flags(call.thread, fd), inode };
        let before = self.state().undelivered.take_bound(inode, &bytes);
        if let Some(bound) = before {
            return self.put(call, Place { flags: bound.flags, ..place }, address, bound);
        }
        let socket = match own(call.thread, place, address) {
            Ok(Some(socket)) => socket,
            Ok(None) => return Outcome::GoesOn,
            Err(errno) => return Outcome::Returns(Err(errno)),
        };
        let bind = Bind { call, process, bytes, address, socket };
        let errno = match bind.settle(self) {
            Ok(reply) if matches!(reply.kind, SHARED | LISTENER) => {
                return self.put(call, place, address, Bound { address: bytes, flags: place.flags, reply });
            }
            Ok(reply) if reply.kind == STATUS => reply.number as i32,
            // Not ours; or there is no master any more.
            Ok(_) => return Outcome::GoesOn,
            Err(errno) => errno,
        };
        // The master had it for a moment, and has made it non-blocking.
        let _ = SockRef::from(&bind.socket).set_nonblocking(place.flags & libc::O_NONBLOCK != 0);
        Outcome::Returns(Err(errno))
    }

    /// Puts what the master has sent in the place of the server's socket.
    fn put(&self, call: &Call, place: Place, own: SocketAddr, bound: Bound) -> Outcome {
        match self.take_place(call, place, own, &bound.reply) {
            Some(()) => Outcome::Returns(Ok(0)),
            None if !self.notifications.waits(call.id) => {
                self.state().undelivered.note_bound(place.inode, bound);
                Outcome::Settled
            }
            None => Outcome::Returns(Err(libc::ENOBUFS)),
        }
    }

    fn take_place(&self, call: &Call, place: Place, own: SocketAddr, reply: &Reply) -> Option<()> {
        let blocks = place.flags & libc::O_NONBLOCK == 0;
        let mut fds = reply.fds.iter().map(|fd| fd.try_clone().ok());
        let (file, page) = (fds.next()??, fds.next()??);
        let watched = Watched::of(call.thread, place, file.as_fd());
        let state = &mut *self.state();
        let page = state.page_of(&page)?;
        let (source, address) = if reply.kind == SHARED {
            let _ = SockRef::from(&file).set_nonblocking(!blocks);
            let own_len = if own.is_ipv4() { 16 } else { ADDRESS_BYTES as u16 };
            let v4 = i32::from(u16::from_ne_bytes([reply.address[0], reply.address[1]])) == libc::AF_INET;
            let address = PeerAddress { len: if v4 { 16 } else { ADDRESS_BYTES as u16 }, bytes: reply.address };
            (Source::Queue { queue: file, keep: fds.next()?? }, shown_as(address, own_len))
        } else {
            (Source::Listener { socket: file, page, blocks }, own.into())
        };
        let stand_in = StandIn::new(reply.number, source, address).ok()?;
        let file = stand_in.file().as_fd();
        self.notifications.put_at(call.id, file, place.fd, place.flags & libc::O_CLOEXEC != 0).ok()?;
        if let Some(watched) = watched {
            watched.move_to(call.thread, place.fd, file);
        }
        match state.stand_ins.iter_mut().find(|known| known.inode == stand_in.inode) {
            Some(known) => drop(known.set_blocking(blocks)),
            None => {
                self.waker.add_file(stand_in.file(), state.stand_ins.len()).ok()?;
                state.stand_ins.push(stand_in);
            }
        }
        Some(())
    }
}

impl Bind<'_> {
    /// Asks until it is settled where the socket is to be bound.
    ///
    /// # Errors
    /// The errno of a bind(2) of our own.
    fn settle(&self, answers: &Answers) -> Result<Reply, i32> {
        let nobody = |_| Reply { kind: PASS, number: 0, address: [0; ADDRESS_BYTES], fds: Vec::new() };
        let ask = |op, number, socket: bool| {
            let socket = socket.then_some(self.socket.as_fd());
            answers.ask_with(self.call, self.process, op, number, &self.bytes, socket).unwrap_or_else(nobody)
        };
        let mut reply = ask(op::BIND, self.bytes_len(), true);
        for _ in 0..MAX_TRIES_WHILE_BINDING {
            if reply.kind != LATER || !answers.notifications.waits(self.call.id) {
                break;
            }
            sleep(RETRY_AFTER);
            reply = ask(op::BIND, self.bytes_len(), true);
        }
        let mut tries = 0;
        while reply.kind == YOURSELF {
            // With the server's rights: they are ours.
            let Err(error) = SockRef::from(&self.socket).bind(&self.address.into()) else {
                return Ok(ask(op::BOUND, 0, true));
            };
            let errno = error.raw_os_error().unwrap_or(libc::EADDRINUSE);
            let told = ask(op::BOUND, errno as u32, false);
            if tries >= MAX_TRIES_WHILE_CLOSING || told.kind != LATER {
                return Err(errno);
            }
            // A listener there was closed a moment ago, and a copy of it is about to be.
            tries += 1;
            sleep(RETRY_AFTER);
            reply = ask(op::BIND, self.bytes_len(), true);
        }
        if reply.kind == LATER { Err(libc::EADDRINUSE) } else { Ok(reply) }
    }

    fn bytes_len(&self) -> u32 {
        if self.address.is_ipv4() { 16 } else { ADDRESS_BYTES as u32 }
    }
}

/// The server's socket; `None` when it is none that could listen for TCP connections, or is bound already.
///
/// # Errors
/// An errno.
fn own(thread: u32, Place { fd, inode, .. }: Place, address: SocketAddr) -> Result<Option<OwnedFd>, i32> {
    match caller::take(thread, fd) {
        // Of another thread's table.
        Ok(socket) if sock::inode(socket.as_fd()) != Some(inode) => Ok(None),
        Ok(socket) => {
            let own = SockRef::from(&socket);
            let tcp = matches!(own.protocol(), Ok(Some(Protocol::TCP | Protocol::MPTCP)))
                && own.r#type().is_ok_and(|kind| kind == Type::STREAM);
            let bound = own.local_addr().ok().and_then(|own| own.as_socket()).is_some_and(|own| own.port() != 0);
            Ok((tcp && !bound).then_some(socket))
        }
        // A container's profile may forbid it: then a socket of ours is bound, without the options of the server's.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            if !sockets::is_tcp(thread, fd) {
                return Ok(None);
            }
            let made = Socket::new(Domain::for_address(address), Type::STREAM, None);
            // What all servers set that start again.
            let socket = made.and_then(|socket| socket.set_reuse_address(true).map(|()| socket));
            Ok(Some(socket.map_err(|error| error.raw_os_error().unwrap_or(libc::ENOBUFS))?.into()))
        }
        Err(_) => Ok(None),
    }
}

/// An IPv4 or IPv6 address as bind(2) reads it.
fn decode(bytes: &[u8; ADDRESS_BYTES], len: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => Some(SocketAddr::from((<[u8; 4]>::try_from(&bytes[4..8]).ok()?, port))),
        // Without the scope, as in RFC 2133, it is as long as this.
        libc::AF_INET6 if len >= 24 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?);
            let scope = if len >= 28 { u32::from_ne_bytes(bytes[24..28].try_into().ok()?) } else { 0 };
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        for text in ["127.0.0.1:80", "0.0.0.0:8080", "[::1]:80", "[fe80::1%3]:80"] {
            let address: SocketAddr = text.parse().unwrap();
            let PeerAddress { len, mut bytes } = address.into();
            assert_eq!(decode(&bytes, len.into()), Some(address));
            bytes[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
            assert_eq!(decode(&bytes, len.into()), None);
        }
        let PeerAddress { bytes, .. } = "[::1]:80".parse::<SocketAddr>().unwrap().into();
        assert_eq!(decode(&bytes, 16), None);
    }
}
