//! The attach socket: where servers' preload libraries ask. The control thread decides; this reads and writes.

use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::abi::attach::{
    ADDRESS_BYTES, BACK, FAILED, LATER, LISTENER, OPTION_BYTES, PASS, REPLY_BYTES, REQUEST_BYTES, Reply, Request,
    SHARED, SocketOption, TOKEN_BYTES, VALUE, VERSION, YOURSELF, ask,
};
use crate::sys::{process, scm};

/// Connections at once: a process each, and a slot may have many.
const MOST: usize = 4096;

/// A worker's proof.
pub type Secret = [u8; TOKEN_BYTES];

/// A request, checked for form.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub what: What,
    /// The process that asks, as the kernel says.
    pub pid: u32,
    /// Its user, as the kernel says.
    pub uid: u32,
    /// Its proof.
    pub secret: Secret,
}

/// What a library asks.
#[derive(Debug)]
pub enum What {
    /// bind(2) of this socket to this address.
    Bind(OwnedFd, SocketAddr),
    /// It bound this socket to this address, or could not, for that errno.
    Bound(Result<OwnedFd, i32>, SocketAddr),
    /// listen(2) on a listener.
    Listen(usize),
    /// It was closed, or shut down.
    Unlisten(usize, Ended),
    /// A process found a stand-in that another one bound.
    Adopt(usize),
    /// It lives as long as this connection.
    Lease,
    /// setsockopt(2) on a listener.
    SetOption(usize, SocketOption),
    /// getsockopt(2) on a listener.
    GetOption(usize, SocketOption),
    /// It wants the socket back that it bound.
    GiveBack(usize),
    /// It listens on this socket, which another process bound.
    Recognize(OwnedFd),
}

/// How a stand-in ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// One process has closed it; others may have it.
    ByClose,
    /// shutdown(2): for all who have it.
    ByShutdown,
}

/// What the master answers.
#[derive(Debug)]
pub enum Answer {
    /// An errno; 0 is success. To a lease: the stop signal.
    Errno(i32),
    /// Bind it with the kernel.
    Pass,
    /// The same, and pass it to us then.
    Yourself,
    /// Ask again.
    Later,
    /// The worker's queue takes the socket's place.
    Shared {
        /// The listener.
        listener: usize,
        /// Its address.
        address: SocketAddr,
        /// The queue's receiving end.
        queue: OwnedFd,
        /// The counters page.
        page: OwnedFd,
        /// The queue's sending end.
        keep: OwnedFd,
    },
    /// The listening socket takes its place: listener, socket, counters page.
    Listener(usize, OwnedFd, OwnedFd),
    /// The server's own socket.
    Back(OwnedFd),
    /// An option's value.
    Value(SocketOption),
}

/// What a connection, or a process that is watched, brings.
#[derive(Debug)]
pub enum Heard {
    /// A request.
    Asked(Asked),
    /// A process with a lease is gone: its pid and its proof.
    Ended(u32, Secret),
}

/// A process with a lease.
#[derive(Debug)]
struct Leased {
    pidfd: OwnedFd,
    pid: u32,
    secret: Secret,
}

/// The listening socket and its connections.
#[derive(Debug)]
pub struct AttachServer {
    listener: Socket,
    name: String,
    connections: HashMap<usize, OwnedFd>,
    leased: HashMap<usize, Leased>,
    next: usize,
}

impl AttachServer {
    /// Opens it at an abstract name that nobody can guess.
    ///
    /// # Errors
    /// As socket(2), bind(2), epoll_ctl(2).
    pub fn open(poll: &Poll, token: Token) -> io::Result<Self> {
        let name = format!("roundsman-{}-{}", std::process::id(), hex(&secret()?));
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        listener.bind(&SockAddr::unix(format!("\0{name}"))?)?;
        listener.listen(128)?;
        poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { listener, name, connections: HashMap::new(), leased: HashMap::new(), next: 0 })
    }

    /// The environment variable's value for a worker.
    pub fn variable(&self, secret: &Secret) -> String {
        format!("{}:{}", self.name, hex(secret))
    }

    /// Takes new connections; their tokens lie in `range`.
    pub fn accept(&mut self, poll: &Poll, range: Range<usize>) {
        while let Ok((connection, _)) = self.listener.accept() {
            let fd = connection.as_raw_fd();
            let Some(token) = self.token(range.clone()) else { continue };
            if poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).is_ok() {
                self.connections.insert(token, connection.into());
            }
        }
    }

    fn token(&mut self, range: Range<usize>) -> Option<usize> {
        let token = range.start + self.next % range.len().max(1);
        self.next += 1;
        let free = !self.connections.contains_key(&token) && !self.leased.contains_key(&token);
        (free && self.connections.len() + self.leased.len() < MOST).then_some(token)
    }

    /// Watches a process until its end. Whether it lives, as far as is known.
    pub fn watch(&mut self, poll: &Poll, range: Range<usize>, pid: u32, secret: Secret) -> bool {
        let Some(token) = self.token(range) else { return true };
        // One that is gone already is noticed by its parent's end, or not at all.
        let Ok(pidfd) = process::pidfd_open(pid) else { return false };
        if poll.registry().register(&mut SourceFd(&pidfd.as_raw_fd()), Token(token), Interest::READABLE).is_ok() {
            self.leased.insert(token, Leased { pidfd, pid, secret });
        }
        true
    }

    /// The next request of a connection, or the end of a process; `None` when there is none now. One that is gone or
    /// talks nonsense is closed, the latter with the reason.
    ///
    /// # Errors
    /// What was wrong with a request.
    pub fn next(&mut self, poll: &Poll, token: usize) -> Result<Option<Heard>, String> {
        if let Some(Leased { pidfd, pid, secret }) = self.leased.remove(&token) {
            let _ = poll.registry().deregister(&mut SourceFd(&pidfd.as_raw_fd()));
            return Ok(Some(Heard::Ended(pid, secret)));
        }
        let Some(connection) = self.connections.get(&token) else { return Ok(None) };
        let mut bytes = [0; REQUEST_BYTES + 1];
        let mut fds = Vec::new();
        match scm::recv_fds(connection.as_fd(), &mut bytes, &mut fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(received) if received.len > 0 => {
                let asked = parse(connection.as_fd(), &bytes[..received.len], fds);
                if asked.is_err() {
                    self.connections.remove(&token);
                }
                asked.map(|asked| Some(Heard::Asked(asked)))
            }
            _ => {
                self.connections.remove(&token);
                Ok(None)
            }
        }
    }

    /// Answers. A connection that does not take it is closed.
    pub fn answer(&mut self, token: usize, answer: &Answer) {
        let Some(connection) = self.connections.get(&token) else { return };
        let (bytes, fds) = encode(answer);
        if scm::send_fds(connection.as_fd(), &bytes, fds.into_iter()).is_err() {
            self.connections.remove(&token);
        }
    }

    /// Closes a connection: its proof was wrong.
    pub fn close(&mut self, token: usize) {
        self.connections.remove(&token);
    }
}

fn parse(connection: BorrowedFd<'_>, bytes: &[u8], mut fds: Vec<OwnedFd>) -> Result<Asked, String> {
    if bytes.len() != REQUEST_BYTES {
        return Err(format!("a message of {} bytes", bytes.len()));
    }
    let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let version = short(offset_of!(Request, version));
    if version != VERSION {
        return Err(format!("version {version}"));
    }
    let at = offset_of!(Request, number);
    let number = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let address = &bytes[offset_of!(Request, address)..][..ADDRESS_BYTES];
    let what = match (short(offset_of!(Request, what)), fds.pop()) {
        (ask::BIND, Some(socket)) => What::Bind(socket, decode(address).ok_or("an address of no family")?),
        (ask::BOUND, socket) => {
            What::Bound(socket.ok_or(number as i32), decode(address).ok_or("an address of no family")?)
        }
        (ask::LISTEN, None) => What::Listen(number),
        (ask::UNLISTEN, None) => What::Unlisten(number, Ended::ByClose),
        (ask::SHUT, None) => What::Unlisten(number, Ended::ByShutdown),
        (ask::ADOPT, None) => What::Adopt(number),
        (ask::LEASE, None) => What::Lease,
        (ask::SET_OPTION, None) => What::SetOption(number, option(address).ok_or("an option")?),
        (ask::GET_OPTION, None) => What::GetOption(number, option(address).ok_or("an option")?),
        (ask::GIVE_BACK, None) => What::GiveBack(number),
        (ask::RECOGNIZE, Some(socket)) => What::Recognize(socket),
        (what, _) => return Err(format!("request {what}")),
    };
    let peer = getsockopt(&connection, PeerCredentials).map_err(|error| error.to_string())?;
    let mut secret = Secret::default();
    secret.copy_from_slice(&bytes[offset_of!(Request, token)..][..TOKEN_BYTES]);
    Ok(Asked { what, pid: peer.pid() as u32, uid: peer.uid(), secret })
}

fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => Some(SocketAddr::from((<[u8; 4]>::try_from(&bytes[4..8]).ok()?, port))),
        libc::AF_INET6 => {
            let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
            let ip = <[u8; 16]>::try_from(&bytes[8..24]).ok()?;
            Some(std::net::SocketAddrV6::new(ip.into(), port, 0, scope).into())
        }
        _ => None,
    }
}

fn option(bytes: &[u8]) -> Option<SocketOption> {
    let word = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = u32::try_from(word(8)?).ok().filter(|&len| len as usize <= OPTION_BYTES)?;
    Some(SocketOption { level: word(0)?, name: word(4)?, len, value: bytes.get(12..)?.try_into().ok()? })
}

fn encode(answer: &Answer) -> ([u8; REPLY_BYTES], Vec<BorrowedFd<'_>>) {
    let mut bytes = [0; REPLY_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let at = offset_of!(Reply, address);
    let (kind, number, fds) = match answer {
        Answer::Errno(errno) => (FAILED, *errno as u32, Vec::new()),
        Answer::Pass => (PASS, 0, Vec::new()),
        Answer::Yourself => (YOURSELF, 0, Vec::new()),
        Answer::Later => (LATER, 0, Vec::new()),
        Answer::Shared { listener, address, queue, page, keep } => {
            put_address(&mut put, at, address);
            (SHARED, *listener as u32, vec![queue.as_fd(), page.as_fd(), keep.as_fd()])
        }
        Answer::Listener(listener, socket, page) => (LISTENER, *listener as u32, vec![socket.as_fd(), page.as_fd()]),
        Answer::Back(socket) => (BACK, 0, vec![socket.as_fd()]),
        Answer::Value(option) => {
            put(at, &option.level.to_ne_bytes());
            put(at + 4, &option.name.to_ne_bytes());
            put(at + 8, &option.len.to_ne_bytes());
            put(at + 12, &option.value);
            (VALUE, 0, Vec::new())
        }
    };
    put(offset_of!(Reply, version), &VERSION.to_ne_bytes());
    put(offset_of!(Reply, kind), &kind.to_ne_bytes());
    put(offset_of!(Reply, number), &number.to_ne_bytes());
    (bytes, fds)
}

fn put_address(put: &mut impl FnMut(usize, &[u8]), at: usize, address: &SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            put(at, &(libc::AF_INET as u16).to_ne_bytes());
            put(at + 2, &v4.port().to_be_bytes());
            put(at + 4, &v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            put(at, &(libc::AF_INET6 as u16).to_ne_bytes());
            put(at + 2, &v6.port().to_be_bytes());
            put(at + 8, &v6.ip().octets());
            put(at + 24, &v6.scope_id().to_ne_bytes());
        }
    }
}

/// A fresh proof.
///
/// # Errors
/// As getrandom(2).
pub fn secret() -> io::Result<Secret> {
    use std::io::Read;
    let mut secret = Secret::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
    Ok(secret)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
