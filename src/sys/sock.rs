//! Sockets: accept, read, write, connect and the few ioctls that socket2 does not wrap.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::cvt;
use crate::abi::attach::ADDRESS_BYTES;

/// accept4(2) with NONBLOCK and CLOEXEC; the peer's address is not asked for.
///
/// # Errors
/// As accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null address pointers are allowed; a descriptor that is returned is new and owned by nobody.
    unsafe {
        let fd = cvt!(libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Whether system calls on a socket wait. Its flags belong to all that have it.
pub fn is_blocking(socket: BorrowedFd<'_>) -> bool {
    socket2::SockRef::from(&socket).nonblocking().is_ok_and(|nonblocking| !nonblocking)
}

/// Has system calls on a socket wait no more.
pub fn unblock(socket: BorrowedFd<'_>) {
    // Cannot fail for a socket that is open.
    let _ = socket2::SockRef::from(&socket).set_nonblocking(true);
}

/// TCP keep-alive: a peer that vanished is noticed after about 15 minutes at most, not after two hours.
pub fn keep_alive(socket: &socket2::SockRef<'_>) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(300))
        .with_interval(std::time::Duration::from_secs(75));
    // Not TCP, or reset meanwhile: nothing to keep alive.
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// A peer's address as accept(2) gave it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its length in bytes; 0 when it has none (a Unix socket) or was not asked for.
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

    /// Of a connected socket.
    pub fn of(socket: BorrowedFd<'_>) -> Self {
        let mut address = Self::default();
        let mut len = ADDRESS_BYTES as libc::socklen_t;
        // SAFETY: the buffer is `len` bytes long; the kernel writes no more and puts the true length into `len`.
        let result = unsafe { libc::getpeername(socket.as_raw_fd(), address.bytes.as_mut_ptr().cast(), &raw mut len) };
        address.finish(if result == 0 { len } else { 0 })
    }

    fn finish(mut self, len: libc::socklen_t) -> Self {
        let family = i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]]));
        let tcp = matches!(family, libc::AF_INET | libc::AF_INET6) && (16..=ADDRESS_BYTES).contains(&(len as usize));
        self.len = if tcp { len as u16 } else { 0 };
        self
    }
}

/// As [`accept`], with the peer's address.
///
/// # Errors
/// As accept4(2).
pub fn accept_with_peer(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, PeerAddress)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let mut address = PeerAddress::default();
    let mut len = ADDRESS_BYTES as libc::socklen_t;
    // SAFETY: the buffer is `len` bytes long, the kernel writes no more; the returned descriptor is new and owned by
    // nobody.
    unsafe {
        let place = address.bytes.as_mut_ptr().cast();
        let fd = cvt!(libc::accept4(listener.as_raw_fd(), place, &raw mut len, flags))?;
        Ok((OwnedFd::from_raw_fd(fd), address.finish(len)))
    }
}

/// recv(2), never blocking.
///
/// # Errors
/// As recv(2); `WouldBlock` when nothing is there.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`, exclusively borrowed for the call.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    Ok(cvt!(n)? as usize)
}

/// What follows a [`send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendHint {
    /// Nobody knows: the bytes go at once.
    None,
    /// shutdown(2), at once: the last bytes wait for it and travel with the FIN.
    FinFollows,
}

/// send(2), never blocking, never raising SIGPIPE.
///
/// # Errors
/// As send(2); `WouldBlock` when the send buffer is full or the connection is not yet established.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], then: SendHint) -> io::Result<usize> {
    let more = if then == SendHint::FinFollows { libc::MSG_MORE } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more;
    // SAFETY: pointer and length describe `bytes`, borrowed for the call.
    let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    Ok(cvt!(n)? as usize)
}

/// Payload bytes that lie in a socket's receive queue (FIONREAD; for SEQPACKET the sum over all messages).
///
/// # Errors
/// As ioctl(2).
pub fn queued_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer.
    cvt!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut n) })?;
    Ok(n.max(0) as usize)
}

/// Bytes sent but not yet acknowledged by the peer (SIOCOUTQ, the same number as TIOCOUTQ).
///
/// # Errors
/// As ioctl(2).
pub fn unacked_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int through the pointer.
    cvt!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) })?;
    Ok(n.max(0) as usize)
}

/// A connected pair of SOCK_SEQPACKET sockets, non-blocking and close-on-exec: (sending, receiving) by our use.
///
/// # Errors
/// As socketpair(2).
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// A connected pair of stream sockets, close-on-exec: (non-blocking, blocking).
///
/// # Errors
/// As socketpair(2).
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

/// Makes the coming close(2) of the socket send a reset (SO_LINGER with zero seconds).
pub fn reset_on_close(socket: BorrowedFd<'_>) {
    // A socket that cannot linger (a Unix socket) has no reset either.
    let _ = socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO));
}

/// The local address of an inherited or server-made TCP socket, if it has one.
pub fn local_addr(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    socket2::SockRef::from(&socket).local_addr().ok()?.as_socket()
}

/// A socket's inode, by which /proc/PID/fd shows who has it.
pub fn inode(socket: BorrowedFd<'_>) -> Option<u64> {
    Some(nix::sys::stat::fstat(socket).ok()?.st_ino)
}

/// Takes ownership of a descriptor that this process inherited at a known number (LISTEN_FDS).
///
/// # Errors
/// `EBADF` when nothing is open at that number.
pub fn adopt_inherited(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) on any number is harmless and tells whether it is open.
    cvt!(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the number is open, above stderr, and by the LISTEN_FDS convention handed to us; the one caller
    // takes each number once at start, before anything else opened descriptors at them.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: setting FD_CLOEXEC on a descriptor we own.
    cvt!(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(owned)
}

/// Asks the kernel to choose the local port only at connect (IP_BIND_ADDRESS_NO_PORT), so that a bound source
/// address has its own 28,000 ports per destination and not per machine.
///
/// # Errors
/// As setsockopt(2).
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

/// getsockopt(2) into a small buffer; returns how many bytes it has.
///
/// # Errors
/// As getsockopt(2).
pub fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`; the kernel writes no more.
    cvt!(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok((len as usize).min(value.len()))
}

/// setsockopt(2) with plain bytes: the caller vouches that the option's value holds no pointer.
///
/// # Errors
/// As setsockopt(2).
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
///
/// # Errors
/// As bind(2).
pub fn name(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let address = nix::sys::socket::UnixAddr::new_abstract(name.as_bytes())?;
    Ok(nix::sys::socket::bind(socket.as_raw_fd(), &address)?)
}

/// Has the kernel add the sender's process and user to each message of a Unix socket (SO_PASSCRED).
///
/// # Errors
/// As setsockopt(2).
pub fn pass_senders(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PASSCRED, &1i32.to_ne_bytes())
}

/// Has the kernel refuse senders of descriptors (since Linux 6.16): whether it does.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> bool {
    // Not in libc yet; the same number on all architectures that we are built for.
    const SO_PASSRIGHTS: i32 = 83;
    set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, &0i32.to_ne_bytes()).is_ok()
}

/// Whether a descriptor is a socket: its close never flushes a file.
pub fn is_socket(fd: BorrowedFd<'_>) -> bool {
    let kind = |stat: nix::sys::stat::FileStat| stat.st_mode & libc::S_IFMT;
    nix::sys::stat::fstat(fd).map(kind).is_ok_and(|kind| kind == libc::S_IFSOCK)
}

/// A pipe: (reading end, non-blocking; writing end, blocking), both close-on-exec.
///
/// # Errors
/// As pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Makes a listening TCP socket stop listening: clients are refused. It stays bound and can listen again.
pub fn stop_listening(socket: BorrowedFd<'_>) {
    let socket = socket2::SockRef::from(&socket);
    // A Unix socket could not listen again. One that does not listen has nothing to stop; a shutdown would stick to it, and
    // to all that it accepts later.
    if socket.is_listener().unwrap_or(false) && socket.local_addr().is_ok_and(|address| address.as_socket().is_some()) {
        let _ = socket.shutdown(std::net::Shutdown::Read);
    }
}
