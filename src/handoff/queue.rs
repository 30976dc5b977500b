//! The two ends of a queue: the master's, which can also take hand-offs back, and the relay worker's.

use std::io;
use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Socket, Type};

use crate::abi::attach::QUEUE_NAME;
use crate::abi::payload;
use crate::sys::closer::Foreign;
use crate::sys::sock::PeerAddress;
use crate::sys::{scm, sock};

/// The master's end: it sends, counts what is pending, and keeps the receiving end for a rescue.
#[derive(Debug)]
pub struct QueueTx {
    tx: Foreign,
    /// A duplicate of the worker's end: while it is open, queued sockets outlive the worker. A server has a duplicate of the
    /// sending end, so messages here need not be ours.
    rx: Foreign,
    framing: Framing,
}

/// How sockets are packed into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// To a relay worker: many sockets, a tag for each.
    Batched,
    /// To a server: one socket with its client's address.
    Single,
}

/// A relay worker's end.
#[derive(Debug)]
pub struct QueueRx(OwnedFd);

/// The result of one receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// A message.
    Message {
        /// Sockets that the kernel dropped because the descriptor table is full.
        lost: usize,
        /// When its first socket was accepted: nanoseconds of the monotonic clock.
        accepted: u64,
    },
    /// Nothing is queued now.
    Empty,
    /// The master closed its end.
    Closed,
}

impl QueueTx {
    /// A new queue to a relay worker, and the worker's end.
    pub fn to_relay() -> io::Result<(Self, OwnedFd)> {
        let (tx, rx) = sock::seqpacket_pair()?;
        let theirs = rx.try_clone()?;
        Ok((Self { tx: Foreign::socket(tx), rx: Foreign::socket(rx), framing: Framing::Batched }, theirs))
    }

    /// A new queue to a server for one listener. The name of its receiving end contains the listener, so that a process that
    /// gets it by exec or over a Unix socket recognizes it.
    pub fn to_server(listener: usize) -> io::Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        // In containers that share a network, every master may have pid 1.
        static BEGAN: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
        let (tx, rx) = sock::seqpacket_pair()?;
        never_writable(rx.as_fd())?;
        let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
        let since = || std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u32;
        let began = BEGAN.get_or_init(since);
        sock::name(rx.as_fd(), &format!("{QUEUE_NAME}{listener}:{}-{began:x}-{unique}", std::process::id()))?;
        Ok(Self { tx: Foreign::socket(tx), rx: Foreign::socket(rx), framing: Framing::Single })
    }

    /// Duplicates of the two ends: (receiving, sending).
    pub fn ends(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.rx.as_fd().try_clone_to_owned()?, self.tx.as_fd().try_clone_to_owned()?))
    }

    /// The inode of the receiving end, to find the processes that have it in /proc/PID/fd.
    pub fn inode(&self) -> Option<u64> {
        Some(nix::sys::stat::fstat(self.rx.as_fd()).ok()?.st_ino)
    }

    /// Whether it leads to a server.
    pub fn is_direct(&self) -> bool {
        self.framing == Framing::Single
    }

    /// Sends the first sockets of a batch in one message and returns how many: to a relay worker as many as fit, to a server
    /// one with its client's address and `number`. The first was accepted at `accepted` (nanoseconds of the monotonic
    /// clock). The caller closes its copies at once.
    ///
    /// # Errors
    /// `EAGAIN` and `ETOOMANYREFS` are back-pressure: nothing was sent.
    pub fn send_batch(&self, batch: &[(OwnedFd, PeerAddress)], number: u64, accepted: u64) -> io::Result<usize> {
        match (self.framing, batch) {
            (_, []) => Ok(0),
            (Framing::Batched, _) => {
                let batch = &batch[..batch.len().min(scm::MAX_FDS)];
                self.send(batch.iter().map(|(socket, _)| socket.as_fd()), accepted)?;
                Ok(batch.len())
            }
            (Framing::Single, [(socket, peer), ..]) => {
                let payload = direct_payload(payload::SOCKET, peer, number, accepted);
                scm::send_fds(self.tx.as_fd(), &payload, std::iter::once(socket.as_fd()))?;
                Ok(1)
            }
        }
    }

    /// Hands over `sockets` (at most [`scm::MAX_FDS`]) to a relay worker in one message.
    ///
    /// # Errors
    /// See [`QueueTx::send_batch`].
    pub fn send<'a>(&self, sockets: impl ExactSizeIterator<Item = BorrowedFd<'a>>, accepted: u64) -> io::Result<()> {
        let tags = [accepted.to_ne_bytes(); scm::MAX_FDS];
        let len = sockets.len().min(scm::MAX_FDS);
        scm::send_fds(self.tx.as_fd(), tags[..len].as_flattened(), sockets)
    }

    /// Leaves an empty message: as long as it is pending, a stalled worker has not received again.
    pub fn send_empty(&self) -> io::Result<()> {
        match self.framing {
            Framing::Batched => scm::send_fds(self.tx.as_fd(), &payload::NOTHING, std::iter::empty()),
            Framing::Single => {
                let empty = direct_payload(payload::EMPTY, &PeerAddress::default(), 0, 0);
                scm::send_fds(self.tx.as_fd(), &empty, std::iter::empty())
            }
        }
    }

    /// To a server that connects to itself at `address`: has an accept(2) that waits return with a socket that was never
    /// connected, as after a client's reset.
    ///
    /// # Errors
    /// As socket(2), bind(2), sendmsg(2). EADDRNOTAVAIL where the address is not one of this machine's.
    pub fn send_wake(&self, mut address: SocketAddr) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        // As the source of such a connection. The port differs each time: a server may take two clients with the same address,
        // one after the other, for a defect of accept.
        match address {
            SocketAddr::V4(to) if to.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(to) if to.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        address.set_port(0);
        socket.bind(&address.into())?;
        let peer = PeerAddress::own(socket.as_fd());
        let payload = direct_payload(payload::WAKE, &peer, 0, 0);
        scm::send_fds(self.tx.as_fd(), &payload, std::iter::once(socket.as_fd()))
    }

    /// Hand-offs (and empty messages) not yet received by the worker.
    pub fn pending(&self) -> usize {
        let bytes = sock::queued_bytes(self.rx.as_fd()).unwrap_or(0);
        match self.framing {
            Framing::Batched => bytes / payload::TAG_BYTES,
            Framing::Single => bytes / payload::DIRECT_BYTES,
        }
    }

    /// Takes back everything that the worker has not received. Can block while a *live* worker's own receive is stuck in a
    /// page fault, hence the rescue thread. Messages that a server wrote are dropped; those it writes meanwhile stay, since
    /// it could go on for ever.
    pub fn take_back(&self) -> Vec<OwnedFd> {
        let mut sockets = Vec::new();
        let mut bytes = [0; scm::MAX_FDS * payload::TAG_BYTES];
        let mut left = sock::queued_bytes(self.rx.as_fd()).unwrap_or(0);
        while left > 0 {
            let before = sockets.len();
            match scm::recv_fds(self.rx.as_fd(), &mut bytes, &mut sockets) {
                Ok(received) if received.len == 0 && sockets.len() == before => break,
                Ok(received) => {
                    // A message of no bytes with sockets is not ours, but has to count.
                    left = left.saturating_sub(received.len.max(1));
                    let came = &sockets[before..];
                    let whole = self.is_ours(&bytes[..received.len], came.len(), received.truncated);
                    if !whole || !came.iter().all(|fd| sock::is_socket(fd.as_fd())) {
                        sockets.drain(before..).map(Foreign::received).for_each(drop);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        sockets
    }

    /// Whether the master sends messages of this form.
    fn is_ours(&self, bytes: &[u8], fds: usize, truncated: bool) -> bool {
        match self.framing {
            Framing::Batched => {
                let tags = bytes.chunks(payload::TAG_BYTES).filter(|&tag| tag != payload::NOTHING).count();
                bytes.len().is_multiple_of(payload::TAG_BYTES) && (fds == tags || (truncated && fds < tags))
            }
            Framing::Single => {
                let wakes = bytes.get(offset_of!(payload::Direct, tag)) == Some(&payload::WAKE);
                bytes.len() == payload::DIRECT_BYTES && fds <= 1 && !wakes
            }
        }
    }
}

/// Fills the send buffer of a server's end with a message that nobody receives: a listening socket is never writable, and a
/// server that polls for that would spin.
fn never_writable(rx: BorrowedFd<'_>) -> io::Result<()> {
    // More than a quarter of the smallest send buffer (socket(7)), which is what unix(7) sockets need free.
    const FILL: [u8; 2048] = [0; 2048];
    sock::set_option(rx, libc::SOL_SOCKET, libc::SO_SNDBUF, &1i32.to_ne_bytes())?;
    scm::send_fds(rx, &FILL, std::iter::empty())
}

/// The bytes of [`payload::Direct`], place by place.
fn direct_payload(tag: u8, peer: &PeerAddress, number: u64, accepted: u64) -> [u8; payload::DIRECT_BYTES] {
    let mut bytes = [0; payload::DIRECT_BYTES];
    bytes[offset_of!(payload::Direct, version)] = payload::VERSION;
    bytes[offset_of!(payload::Direct, tag)] = tag;
    let len = offset_of!(payload::Direct, address_len);
    bytes[len..len + 2].copy_from_slice(&peer.len.to_ne_bytes());
    let address = offset_of!(payload::Direct, address);
    bytes[address..address + peer.bytes.len()].copy_from_slice(&peer.bytes);
    let at = offset_of!(payload::Direct, number);
    bytes[at..at + 8].copy_from_slice(&number.to_ne_bytes());
    let at = offset_of!(payload::Direct, accepted);
    bytes[at..at + 8].copy_from_slice(&accepted.to_ne_bytes());
    bytes
}

impl QueueRx {
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Receives one message; its sockets are appended to `sockets`.
    ///
    /// # Errors
    /// As recvmsg(2), without `EAGAIN` and `EINTR`.
    pub fn receive(&self, sockets: &mut Vec<OwnedFd>) -> io::Result<Reception> {
        let mut tags = [payload::NOTHING; scm::MAX_FDS];
        let before = sockets.len();
        loop {
            match scm::recv_fds(self.0.as_fd(), tags.as_flattened_mut(), sockets) {
                Ok(received) if received.len == 0 => return Ok(Reception::Closed),
                Ok(received) => {
                    let tags = &tags[..received.len / payload::TAG_BYTES];
                    let sent = tags.iter().filter(|&&tag| tag != payload::NOTHING).count();
                    let accepted = tags.first().map_or(0, |&tag| u64::from_ne_bytes(tag));
                    return Ok(Reception::Message { lost: sent.saturating_sub(sockets.len() - before), accepted });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Reception::Empty),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for QueueRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_a_dead_worker_had_not_received_is_taken_back_with_its_bytes() {
        let (queue, worker) = QueueTx::to_relay().unwrap();
        let mut clients = Vec::new();
        for n in 0..50u8 {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(&[n]).unwrap();
            queue.send([server.as_fd()].into_iter(), 1).unwrap();
            clients.push(client);
        }
        assert_eq!(queue.pending(), 50);
        drop(worker);
        let back = queue.take_back();
        assert_eq!((back.len(), queue.pending()), (50, 0));
        for (n, socket) in back.into_iter().enumerate() {
            let mut byte = [0];
            UnixStream::from(socket).read_exact(&mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), n);
        }
    }

    #[test]
    fn an_empty_message_keeps_pending_at_one_until_received() {
        let (queue, worker) = QueueTx::to_relay().unwrap();
        let worker = QueueRx::new(worker);
        queue.send_empty().unwrap();
        assert_eq!(queue.pending(), 1);
        let mut sockets = Vec::new();
        assert_eq!(worker.receive(&mut sockets).unwrap(), Reception::Message { lost: 0, accepted: 0 });
        assert!(sockets.is_empty());
        assert_eq!(queue.pending(), 0);
        assert_eq!(worker.receive(&mut sockets).unwrap(), Reception::Empty);
        drop(queue);
        assert_eq!(worker.receive(&mut sockets).unwrap(), Reception::Closed);
    }

    #[test]
    fn a_server_that_fills_its_queue_for_ever_is_not_drained_for_ever() {
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        let queue = QueueTx::to_server(0).unwrap();
        let (_, keep) = queue.ends().unwrap();
        let (_client, socket) = UnixStream::pair().unwrap();
        let ours = direct_payload(payload::SOCKET, &PeerAddress::default(), 1, 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        let _ = scm::send_fds(keep.as_fd(), &ours, std::iter::once(socket.as_fd()));
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            let pending = queue.pending();
            let back = queue.take_back();
            done.store(true, Relaxed);
            assert!((1..=pending + 8).contains(&back.len()), "{} of {pending}", back.len());
        });
    }

    #[test]
    fn a_wake_comes_with_a_socket_and_is_not_taken_back() {
        let queue = QueueTx::to_server(0).unwrap();
        let (theirs, _) = queue.ends().unwrap();
        for (to, family) in
            [("127.0.0.1:80", libc::AF_INET), ("0.0.0.0:80", libc::AF_INET), ("[::1]:80", libc::AF_INET6)]
        {
            queue.send_wake(to.parse().unwrap()).unwrap();
            let (mut bytes, mut sockets) = ([0; payload::DIRECT_BYTES], Vec::new());
            scm::recv_fds(theirs.as_fd(), &mut bytes, &mut sockets).unwrap();
            assert_eq!(bytes[offset_of!(payload::Direct, tag)], payload::WAKE, "{to}");
            let own = PeerAddress::own(sockets[0].as_fd());
            let at = offset_of!(payload::Direct, address);
            assert_eq!(bytes[at..at + own.bytes.len()], own.bytes, "{to}");
            assert_eq!(i32::from(u16::from_ne_bytes([own.bytes[0], own.bytes[1]])), family, "{to}");
        }
        // Documentation's own: no machine has it.
        let error = queue.send_wake("192.0.2.1:80".parse().unwrap()).unwrap_err();
        assert_eq!((error.raw_os_error(), queue.pending()), (Some(libc::EADDRNOTAVAIL), 0));
        // Its worker ends before it has received all of them: only the client goes to another one.
        let (_client, socket) = UnixStream::pair().unwrap();
        queue.send_wake("127.0.0.1:80".parse().unwrap()).unwrap();
        queue.send_batch(&[(socket.into(), PeerAddress::default())], 1, 1).unwrap();
        queue.send_wake("127.0.0.1:80".parse().unwrap()).unwrap();
        let back = queue.take_back();
        assert_eq!((back.len(), queue.pending()), (1, 0));
        assert!(UnixStream::from(back.into_iter().next().unwrap()).peer_addr().is_ok());
    }

    #[test]
    fn messages_that_a_server_wrote_into_its_queue_are_not_taken_back() {
        let queue = QueueTx::to_server(0).unwrap();
        let (_, keep) = queue.ends().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let (_client, socket) = UnixStream::pair().unwrap();
        let send = |payload: &[u8], fds: &[BorrowedFd<'_>]| {
            scm::send_fds(keep.as_fd(), payload, fds.iter().copied()).unwrap();
        };
        send(&[1; payload::DIRECT_BYTES], &[file.as_fd()]);
        send(&[1; payload::DIRECT_BYTES], &[socket.as_fd(), socket.as_fd()]);
        send(&[1; 5], &[socket.as_fd()]);
        queue.send_batch(&[(socket.into(), PeerAddress::default())], 1, 1).unwrap();
        let back = queue.take_back();
        assert_eq!(back.len(), 1);
        assert!(sock::is_socket(back[0].as_fd()));
    }
}
