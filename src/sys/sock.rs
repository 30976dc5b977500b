//! Sockets: accept, read, write, connect and the few ioctls that socket2 does not wrap.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::cvt;
use crate::abi::attach::ADDRESS_BYTES;

/// accept4(2) with NONBLOCK and CLOEXEC, without the peer's address.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null address pointers are allowed; a returned descriptor is new and unowned.
    unsafe {
        let fd = cvt!(libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Whether system calls on a socket block. Its flags are shared with all processes that have it.
pub fn is_blocking(socket: BorrowedFd<'_>) -> bool {
    socket2::SockRef::from(&socket).nonblocking().is_ok_and(|nonblocking| !nonblocking)
}

/// Sets O_NONBLOCK.
pub fn unblock(socket: BorrowedFd<'_>) {
    // Cannot fail for a socket that is open.
    let _ = socket2::SockRef::from(&socket).set_nonblocking(true);
}

/// Sets TCP keep-alive so that a vanished peer is noticed after 15 minutes at most instead of two hours.
pub fn keep_alive(socket: &socket2::SockRef<'_>) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(300))
        .with_interval(std::time::Duration::from_secs(75));
    // Fails unless it is TCP, and after a reset: there is nothing to keep alive.
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// A peer's address from accept(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerAddress {
    /// Length in bytes; 0 for a Unix socket, or when it was not asked for.
    pub len: u16,
    /// A `sockaddr_in` or `sockaddr_in6`.
    pub bytes: [u8; ADDRESS_BYTES],
}

impl PeerAddress {
    /// The IP address in it; a v4-mapped one as IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        match (family, self.len) {
            (libc::AF_INET, 16..) => <[u8; 4]>::try_from(&self.bytes[4..8]).ok().map(IpAddr::from),
            (libc::AF_INET6, 28) => {
                let octets = <[u8; 16]>::try_from(&self.bytes[8..24]).ok()?;
                Some(Ipv6Addr::from(octets).to_canonical())
            }
            _ => None,
        }
    }

    /// The IP address and port in it; a v4-mapped address as IPv4.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip()?, u16::from_be_bytes([self.bytes[2], self.bytes[3]])))
    }

    /// Of a link-local address: its interface; else 0.
    pub fn interface(&self) -> u32 {
        match self.len {
            28 => self.bytes[24..28].try_into().map_or(0, u32::from_ne_bytes),
            _ => 0,
        }
    }

    /// The address of a connected socket's peer.
    pub fn of(socket: BorrowedFd<'_>) -> Self {
        let mut address = Self::default();
        let mut len = ADDRESS_BYTES as libc::socklen_t;
        // SAFETY: the buffer is `len` bytes long; the kernel writes no more and puts the true length into `len`.
        let result = unsafe { libc::getpeername(socket.as_raw_fd(), address.bytes.as_mut_ptr().cast(), &raw mut len) };
        address.finish(if result == 0 { len } else { 0 })
    }

    /// The address that a socket itself has.
    pub fn own(socket: BorrowedFd<'_>) -> Self {
        let mut address = Self::default();
        let mut len = ADDRESS_BYTES as libc::socklen_t;
        // SAFETY: the buffer is `len` bytes long; the kernel writes no more and puts the true length into `len`.
        let result = unsafe { libc::getsockname(socket.as_raw_fd(), address.bytes.as_mut_ptr().cast(), &raw mut len) };
        address.finish(if result == 0 { len } else { 0 })
    }

    /// Puts bytes at a place within.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn finish(mut self, len: libc::socklen_t) -> Self {
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        let tcp = matches!(family, libc::AF_INET | libc::AF_INET6) && (16..=ADDRESS_BYTES).contains(&(len as usize));
        self.len = if tcp { len as u16 } else { 0 };
        self
    }
}

impl From<SocketAddr> for PeerAddress {
    /// As the kernel lays it out.
    fn from(address: SocketAddr) -> Self {
        let mut own = Self::default();
        match address {
            SocketAddr::V4(v4) => {
                own.len = 16;
                own.put(0, &(libc::AF_INET as u16).to_ne_bytes());
                own.put(4, &v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                own.len = ADDRESS_BYTES as u16;
                own.put(0, &(libc::AF_INET6 as u16).to_ne_bytes());
                own.put(8, &v6.ip().octets());
                own.put(24, &v6.scope_id().to_ne_bytes());
            }
        }
        own.put(2, &address.port().to_be_bytes());
        own
    }
}

/// As [`accept`], with the peer's address.
pub fn accept_with_peer(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, PeerAddress)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let mut address = PeerAddress::default();
    let mut len = ADDRESS_BYTES as libc::socklen_t;
    // SAFETY: the buffer is `len` bytes long, the kernel writes no more; the returned descriptor is new and unowned.
    unsafe {
        let place = address.bytes.as_mut_ptr().cast();
        let fd = cvt!(libc::accept4(listener.as_raw_fd(), place, &raw mut len, flags))?;
        Ok((OwnedFd::from_raw_fd(fd), address.finish(len)))
    }
}

/// recv(2), never blocking.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket, buffer, libc::MSG_DONTWAIT)
}

/// As [`recv`], but the bytes stay where they are. `None`: nothing has come yet.
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match receive(socket, buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        peeked => peeked.map(Some),
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`, exclusively borrowed for the call.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    Ok(cvt!(n)? as usize)
}

/// Whether a [`send`] is to wait for what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendHint {
    /// The bytes are sent at once.
    None,
    /// The caller shuts the socket down right after: the last bytes wait for the FIN and travel with it.
    FinFollows,
}

/// send(2), never blocking, never raising SIGPIPE.
///
/// # Errors
/// As send(2); `WouldBlock` when the send buffer is full or the connection is not yet established.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], hint: SendHint) -> io::Result<usize> {
    let more = if hint == SendHint::FinFollows { libc::MSG_MORE } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more;
    // SAFETY: pointer and length describe `bytes`, borrowed for the call.
    let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    Ok(cvt!(n)? as usize)
}

/// Payload bytes in a socket's receive queue (FIONREAD; for SEQPACKET the sum over all messages).
pub fn queued_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer.
    cvt!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut n) })?;
    Ok(n.max(0) as usize)
}

/// Whether a connection's client is gone: it reset the connection, or it ended its side without having sent a byte. With
/// `aborts` the end of its side is enough.
pub fn has_left(socket: BorrowedFd<'_>, aborts: bool) -> bool {
    let mut state = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, which lives through the call.
    unsafe { libc::poll(&raw mut state, 1, 0) };
    let ended = state.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0;
    let empty = || queued_bytes(socket).is_ok_and(|bytes| bytes == 0);
    state.revents & libc::POLLERR != 0 || (ended && (aborts || empty()))
}

/// Whether something waits at a socket: for a listener, a client in its backlog.
pub fn is_readable(socket: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Bytes sent but not yet acknowledged by the peer (SIOCOUTQ, the same number as TIOCOUTQ).
pub fn unacked_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int through the pointer.
    cvt!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) })?;
    Ok(n.max(0) as usize)
}

/// Round-trip time in microseconds and segments that were sent again of a TCP connection; `None` for another socket.
pub fn rtt_and_retransmits(socket: BorrowedFd<'_>) -> Option<(u32, u32)> {
    // SAFETY: all-zero bytes are a valid `tcp_info`, which has integers only.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (at, room) = ((&raw mut info).cast(), &raw mut len);
    // SAFETY: the kernel writes at most `len` bytes into the local, and the length.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, room) };
    (result == 0).then_some((info.tcpi_rtt, info.tcpi_total_retrans))
}

/// A connected pair of SOCK_SEQPACKET sockets, non-blocking and close-on-exec.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// A connected pair of stream sockets, close-on-exec: (non-blocking, blocking).
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

/// Makes the coming close(2) of the socket send a reset (SO_LINGER with zero seconds).
pub fn reset_on_close(socket: BorrowedFd<'_>) {
    // Fails for Unix sockets, which have no reset.
    let _ = socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO));
}

/// Whether a socket is one of the network and not a Unix socket.
pub fn is_tcp(socket: BorrowedFd<'_>) -> bool {
    let domain = socket2::SockRef::from(&socket).domain();
    domain.is_ok_and(|domain| matches!(domain, socket2::Domain::IPV4 | socket2::Domain::IPV6))
}

/// The local address of a bound TCP socket.
pub fn local_addr(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    socket2::SockRef::from(&socket).local_addr().ok()?.as_socket()
}

/// Whether this process may have one more descriptor: a message's would be lost.
pub fn can_receive(any: BorrowedFd<'_>) -> bool {
    any.try_clone_to_owned().is_ok()
}

/// A socket's inode, to find the processes that have it in /proc/PID/fd.
pub fn inode(socket: BorrowedFd<'_>) -> Option<u64> {
    Some(nix::sys::stat::fstat(socket).ok()?.st_ino)
}

/// Takes ownership of an inherited descriptor at a known number (LISTEN_FDS).
///
/// # Errors
/// `EBADF` when nothing is open at that number.
pub fn adopt_inherited(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) on any number is harmless and shows whether it is open.
    cvt!(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the number is open, above stderr, and by the LISTEN_FDS convention handed to us; the one caller
    // takes each number once at start, before anything else opened descriptors at them.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: setting FD_CLOEXEC on a descriptor we own.
    cvt!(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(owned)
}

/// Has the kernel choose the local port only at connect (IP_BIND_ADDRESS_NO_PORT), so that a bound source address has its
/// 28,000 ports per destination instead of per machine.
pub fn bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option takes one int, which lives through the call.
    cvt!(unsafe {
        let option = libc::IP_BIND_ADDRESS_NO_PORT;
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, (&raw const on).cast(), len)
    })?;
    Ok(())
}

/// getsockopt(2) into a small buffer; returns the number of bytes written.
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`; the kernel writes no more.
    cvt!(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok((len as usize).min(value.len()))
}

/// setsockopt(2) with plain bytes. Not for options whose value holds a pointer.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `value`. An option whose value holds a pointer makes the kernel read there, and
    // it answers EFAULT where nothing is mapped: it never writes.
    cvt!(unsafe {
        let len = value.len() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len)
    })?;
    Ok(())
}

/// Gives a socket an abstract Unix name.
pub fn name(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let address = nix::sys::socket::UnixAddr::new_abstract(name.as_bytes())?;
    Ok(nix::sys::socket::bind(socket.as_raw_fd(), &address)?)
}

/// Has the kernel add the sender's process and user to each message of a Unix socket (SO_PASSCRED).
pub fn pass_senders(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, &1i32.to_ne_bytes())
}

/// Has the kernel refuse messages with descriptors (since Linux 6.16). Returns whether it does.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> bool {
    // Not in libc yet; the same number on all supported architectures.
    const SO_PASSRIGHTS: i32 = 83;
    set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, &0i32.to_ne_bytes()).is_ok()
}

/// Whether a descriptor is a socket: its close never flushes a file.
pub fn is_socket(fd: BorrowedFd<'_>) -> bool {
    let kind = |stat: nix::sys::stat::FileStat| stat.st_mode & libc::S_IFMT;
    nix::sys::stat::fstat(fd).map(kind).is_ok_and(|kind| kind == libc::S_IFSOCK)
}

/// A pipe: (reading end, non-blocking; writing end, blocking), both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Has a TCP socket stop listening, so that clients are refused. It stays bound and can listen again.
pub fn stop_listening(socket: BorrowedFd<'_>) {
    let socket = socket2::SockRef::from(&socket);
    // A Unix socket could not listen again. On a socket that does not listen, the shutdown would stay in force and apply to
    // all connections accepted later.
    if socket.is_listener().unwrap_or(false) && socket.local_addr().is_ok_and(|address| address.as_socket().is_some()) {
        let _ = socket.shutdown(std::net::Shutdown::Read);
    }
}
