//! The attach socket: where servers' preload libraries ask. The control thread decides; this reads and writes.

use std::collections::HashMap;
use std::io;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::abi::attach::{
    ADDRESS_BYTES, FAILED, PASS, REPLY_BYTES, REQUEST_BYTES, Reply, Request, SHARED, TOKEN_BYTES, VERSION, ask,
};
use crate::sys::scm;

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
    /// listen(2) on a listener.
    Listen(usize),
    /// It was closed.
    Unlisten(usize),
}

/// What the master answers.
#[derive(Debug)]
pub enum Answer {
    /// An errno; 0 is success (of listen).
    Errno(i32),
    /// Bind it with the kernel.
    Pass,
    /// The listener, its address, the queue's end, the counters page.
    Shared(usize, SocketAddr, OwnedFd, OwnedFd),
}

/// The listening socket and its connections.
#[derive(Debug)]
pub struct AttachServer {
    listener: Socket,
    name: String,
    connections: HashMap<usize, OwnedFd>,
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
        Ok(Self { listener, name, connections: HashMap::new(), next: 0 })
    }

    /// The environment variable's value for a worker.
    pub fn variable(&self, secret: &Secret) -> String {
        format!("{}:{}", self.name, hex(secret))
    }

    /// Takes new connections; their tokens lie in `first..end`.
    pub fn accept(&mut self, poll: &Poll, first: usize, end: usize) {
        while let Ok((connection, _)) = self.listener.accept() {
            let token = first + self.next % (end - first);
            self.next += 1;
            let fd = connection.as_raw_fd();
            let room = self.connections.len() < MOST && !self.connections.contains_key(&token);
            if room && poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).is_ok() {
                self.connections.insert(token, connection.into());
            }
        }
    }

    /// The next request of a connection; `None` when there is none now. One that is gone or talks nonsense is closed,
    /// the latter with the reason.
    ///
    /// # Errors
    /// What was wrong with a request.
    pub fn next(&mut self, token: usize) -> Result<Option<Asked>, String> {
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
                asked.map(Some)
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
        (ask::LISTEN, None) => What::Listen(number),
        (ask::UNLISTEN, None) => What::Unlisten(number),
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

fn encode(answer: &Answer) -> ([u8; REPLY_BYTES], Vec<BorrowedFd<'_>>) {
    let (kind, number, address, fds) = match answer {
        Answer::Errno(errno) => (FAILED, *errno as u32, None, Vec::new()),
        Answer::Pass => (PASS, 0, None, Vec::new()),
        Answer::Shared(listener, address, queue, page) => {
            (SHARED, *listener as u32, Some(address), vec![queue.as_fd(), page.as_fd()])
        }
    };
    let mut bytes = [0; REPLY_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Reply, version), &VERSION.to_ne_bytes());
    put(offset_of!(Reply, kind), &kind.to_ne_bytes());
    put(offset_of!(Reply, number), &number.to_ne_bytes());
    let at = offset_of!(Reply, address);
    match address {
        Some(SocketAddr::V4(v4)) => {
            put(at, &(libc::AF_INET as u16).to_ne_bytes());
            put(at + 2, &v4.port().to_be_bytes());
            put(at + 4, &v4.ip().octets());
        }
        Some(SocketAddr::V6(v6)) => {
            put(at, &(libc::AF_INET6 as u16).to_ne_bytes());
            put(at + 2, &v6.port().to_be_bytes());
            put(at + 8, &v6.ip().octets());
            put(at + 24, &v6.scope_id().to_ne_bytes());
        }
        None => {}
    }
    (bytes, fds)
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
