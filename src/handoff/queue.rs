//! The two ends of a queue: the master's, which can also take hand-offs back, and the relay worker's.

mod record;

use std::io;
use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Socket, Type};

pub use self::record::QueueRecord;
use super::Client;
use super::bytes::{direct_payload, endpoint, put_endpoint, translated, translated_tag};
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
    carries: Carries,
}

/// What hand-offs carry beside sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// To a server its client's address, to a relay worker nothing.
    Sockets,
    /// The addresses that PROXY headers named, too.
    Translations,
}

/// A connection that was taken back, and the addresses that a PROXY header named for it.
#[derive(Debug)]
pub struct TakenBack {
    pub socket: OwnedFd,
    pub translated: Option<Client>,
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
pub struct QueueRx {
    fd: OwnedFd,
    /// Room for the tags of a message, where these are long.
    long: Option<Box<[u8]>>,
}

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
    pub fn to_relay(carries: Carries) -> io::Result<(Self, OwnedFd)> {
        let (tx, rx) = sock::seqpacket_pair()?;
        let theirs = rx.try_clone()?;
        let (tx, rx) = (Foreign::socket(tx), Foreign::socket(rx));
        Ok((Self { tx, rx, framing: Framing::Batched, carries }, theirs))
    }

    /// A new queue to a server for one listener. The name of its receiving end contains the listener, so that a process that
    /// gets it by exec or over a Unix socket recognizes it.
    pub fn to_server(listener: usize, carries: Carries) -> io::Result<Self> {
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
        Ok(Self { tx: Foreign::socket(tx), rx: Foreign::socket(rx), framing: Framing::Single, carries })
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

    /// Whether hand-offs carry the addresses that PROXY headers named.
    pub fn translates(&self) -> bool {
        self.carries == Carries::Translations
    }

    /// Sends the first sockets of a batch in one message and returns how many: to a relay worker as many as fit, to a server
    /// one with its client's address and `number`. The first was accepted at `accepted` (nanoseconds of the monotonic
    /// clock). The caller closes its copies at once.
    ///
    /// # Errors
    /// `EAGAIN` and `ETOOMANYREFS` are back-pressure: nothing was sent.
    pub fn send_batch(&self, batch: &[(OwnedFd, Client)], number: u64, accepted: u64) -> io::Result<usize> {
        match (self.framing, batch) {
            (_, []) => Ok(0),
            (Framing::Batched, _) => {
                let batch = &batch[..batch.len().min(scm::MAX_FDS)];
                let sockets = batch.iter().map(|(socket, _)| socket.as_fd());
                match self.carries {
                    Carries::Sockets => self.send(sockets, accepted)?,
                    Carries::Translations => {
                        let tags: Vec<u8> =
                            batch.iter().flat_map(|(_, client)| translated_tag(client, accepted)).collect();
                        scm::send_fds(self.tx.as_fd(), &tags, sockets)?;
                    }
                }
                Ok(batch.len())
            }
            (Framing::Single, [(socket, client), ..]) => {
                let used = client.foreign || client.destination.is_some() || self.carries == Carries::Translations;
                let tag = if used { payload::USED } else { payload::SOCKET };
                self.send_direct(tag, client, number, accepted, Some(socket.as_fd()))?;
                Ok(1)
            }
        }
    }

    /// One message to a server.
    fn send_direct(
        &self,
        tag: u8,
        client: &Client,
        number: u64,
        accepted: u64,
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let address = match (self.carries, &client.destination, socket) {
            // A server that is not told of headers finds the balancer in its other calls, too.
            (Carries::Sockets, Some(_), Some(socket)) => &PeerAddress::of(socket),
            _ => &client.address,
        };
        let payload = direct_payload(tag, address, number, accepted);
        match self.carries {
            Carries::Sockets => scm::send_fds(self.tx.as_fd(), &payload, socket.into_iter()),
            Carries::Translations => {
                let mut long = [0; payload::DIRECT_TRANSLATED_BYTES];
                long[..payload::DIRECT_BYTES].copy_from_slice(&payload);
                put_endpoint(
                    &mut long,
                    offset_of!(payload::DirectTranslated, destination),
                    client.destination.as_deref(),
                );
                scm::send_fds(self.tx.as_fd(), &long, socket.into_iter())
            }
        }
    }

    /// The size of a socket's part of the payload in bytes.
    fn unit(&self) -> usize {
        match (self.framing, self.carries) {
            (Framing::Batched, Carries::Sockets) => payload::TAG_BYTES,
            (Framing::Batched, Carries::Translations) => payload::TRANSLATED_TAG_BYTES,
            (Framing::Single, Carries::Sockets) => payload::DIRECT_BYTES,
            (Framing::Single, Carries::Translations) => payload::DIRECT_TRANSLATED_BYTES,
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
            Framing::Batched => {
                const NOTHING: [u8; payload::TRANSLATED_TAG_BYTES] = [0; payload::TRANSLATED_TAG_BYTES];
                scm::send_fds(self.tx.as_fd(), &NOTHING[..self.unit()], std::iter::empty())
            }
            Framing::Single => self.send_direct(payload::EMPTY, &Client::default(), 0, 0, None),
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
        self.send_direct(payload::WAKE, &peer.into(), 0, 0, Some(socket.as_fd()))
    }

    /// Hand-offs (and empty messages) not yet received by the worker.
    pub fn pending(&self) -> usize {
        sock::queued_bytes(self.rx.as_fd()).unwrap_or(0) / self.unit()
    }

    /// Takes back everything that the worker has not received. Can block while a *live* worker's own receive is stuck in a
    /// page fault, hence the rescue thread. Messages that a server wrote are dropped; those it writes meanwhile stay, since
    /// it could go on for ever.
    pub fn take_back(&self) -> Vec<TakenBack> {
        let (mut taken, mut sockets) = (Vec::new(), Vec::new());
        let mut bytes = vec![0; scm::MAX_FDS * payload::TRANSLATED_TAG_BYTES];
        let mut left = sock::queued_bytes(self.rx.as_fd()).unwrap_or(0);
        while left > 0 {
            match scm::recv_fds(self.rx.as_fd(), &mut bytes, &mut sockets) {
                Ok(received) if received.len == 0 && sockets.is_empty() => break,
                Ok(received) => {
                    // A message of no bytes with sockets is not ours, but has to count.
                    left = left.saturating_sub(received.len.max(1));
                    let bytes = &bytes[..received.len];
                    let whole = self.is_ours(bytes, sockets.len(), received.truncated);
                    if whole && sockets.iter().all(|fd| sock::is_socket(fd.as_fd())) {
                        let with_address = |(at, socket)| TakenBack { socket, translated: self.translated(bytes, at) };
                        taken.extend(sockets.drain(..).enumerate().map(with_address));
                    } else {
                        sockets.drain(..).map(Foreign::received).for_each(drop);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        taken
    }

    /// The addresses that a PROXY header named for the socket at a place in a message.
    fn translated(&self, message: &[u8], at: usize) -> Option<Client> {
        match (self.carries, self.framing) {
            (Carries::Sockets, _) => None,
            (Carries::Translations, Framing::Batched) => {
                translated(message.chunks(payload::TRANSLATED_TAG_BYTES).nth(at)?)
            }
            (Carries::Translations, Framing::Single) => {
                let destination = endpoint(message, offset_of!(payload::DirectTranslated, destination))?;
                // As an endpoint, whose length is in front of its address, too.
                let address = endpoint(message, offset_of!(payload::Direct, address_len))?;
                Some(Client { address, destination: Some(Box::new(destination)), key: None, foreign: false })
            }
        }
    }

    /// Whether the master sends messages of this form.
    fn is_ours(&self, bytes: &[u8], fds: usize, truncated: bool) -> bool {
        match self.framing {
            Framing::Batched => {
                let tags = bytes.chunks(self.unit()).filter(|tag| !tag.starts_with(&payload::NOTHING)).count();
                bytes.len().is_multiple_of(self.unit()) && (fds == tags || (truncated && fds < tags))
            }
            Framing::Single => {
                let wakes = bytes.get(offset_of!(payload::Direct, tag)) == Some(&payload::WAKE);
                bytes.len() == self.unit() && fds <= 1 && !wakes
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

impl QueueRx {
    pub fn new(fd: OwnedFd, carries: Carries) -> Self {
        let room = || vec![0; scm::MAX_FDS * payload::TRANSLATED_TAG_BYTES].into_boxed_slice();
        Self { fd, long: (carries == Carries::Translations).then(room) }
    }

    /// Receives one message. Its sockets are appended to `sockets` and, where hand-offs carry them, the
    /// addresses that PROXY headers named to `translated`.
    ///
    /// # Errors
    /// As recvmsg(2), without `EAGAIN` and `EINTR`.
    pub fn receive(
        &mut self,
        sockets: &mut Vec<OwnedFd>,
        translated: &mut Vec<Option<Client>>,
    ) -> io::Result<Reception> {
        let before = sockets.len();
        loop {
            let received = match &mut self.long {
                None => receive_short(self.fd.as_fd(), sockets),
                Some(long) => receive_long(self.fd.as_fd(), long, sockets, translated),
            };
            match received {
                Ok(None) => return Ok(Reception::Closed),
                Ok(Some((sent, accepted))) => {
                    return Ok(Reception::Message { lost: sent.saturating_sub(sockets.len() - before), accepted });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Reception::Empty),
                Err(error) => return Err(error),
            }
        }
    }
}

/// One message of [`Carries::Sockets`]: how many sockets were sent, and when the first of them was accepted; `None` at the end.
fn receive_short(queue: BorrowedFd<'_>, sockets: &mut Vec<OwnedFd>) -> io::Result<Option<(usize, u64)>> {
    let mut tags = [payload::NOTHING; scm::MAX_FDS];
    let received = scm::recv_fds(queue, tags.as_flattened_mut(), sockets)?;
    let tags = &tags[..received.len / payload::TAG_BYTES];
    let sent = tags.iter().filter(|&&tag| tag != payload::NOTHING).count();
    Ok((received.len > 0).then(|| (sent, tags.first().map_or(0, |&tag| u64::from_ne_bytes(tag)))))
}

/// The same of [`Carries::Translations`], with the clients.
fn receive_long(
    queue: BorrowedFd<'_>,
    room: &mut [u8],
    sockets: &mut Vec<OwnedFd>,
    translated: &mut Vec<Option<Client>>,
) -> io::Result<Option<(usize, u64)>> {
    let before = sockets.len();
    let received = scm::recv_fds(queue, room, sockets)?;
    let tags = room[..received.len].chunks_exact(payload::TRANSLATED_TAG_BYTES);
    let sent = tags.clone().filter(|tag| !tag.starts_with(&payload::NOTHING)).count();
    let accepted = tags.clone().next().and_then(|tag| tag.first_chunk());
    translated.extend(tags.map(self::translated).take(sockets.len() - before));
    Ok((received.len > 0).then(|| (sent, accepted.map_or(0, |tag| u64::from_ne_bytes(*tag)))))
}

impl AsFd for QueueRx {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "queue_tests.rs"]
mod tests;
