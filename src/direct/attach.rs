//! The attach socket of servers' preload libraries. The control thread decides on requests; this reads and writes.

mod record;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

pub use self::record::AttachRecord;
use super::guests::{Guest, Guests, Ours};
use super::receiving::request;
use super::wire::encode;
use crate::abi::attach::{SocketOption, TOKEN_BYTES};
use crate::events::{Registry, Source};
use crate::limited::Limited;
use crate::sys::closer::{self, Foreign};
use crate::sys::{process, random, reason, scm};

/// The most connections and watched processes: one per process, and a slot may have many processes.
const MAX_CONNECTIONS: u64 = 4096;
/// Their share of the master's file limit is one in this many.
const FD_SHARE: u64 = 4;
/// Connections accepted per turn: fewer than may be without a proof, so that the requests of one burst are read before the
/// next burst takes their places.
const BURST: usize = 32;
/// Delay until accept(2) is called again after a failure, or while too many sockets wait to be closed.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A worker's proof.
pub type Secret = [u8; TOKEN_BYTES];

/// A request, checked for form.
#[derive(Debug)]
pub struct AttachRequest {
    /// What the library asks for.
    pub kind: RequestKind,
    /// The process that asks, as SO_PEERCRED says.
    pub pid: u32,
    /// The process that asks, as the message says.
    pub named: u32,
    /// Its user, as SO_PEERCRED says.
    pub uid: u32,
    /// The proof that it showed.
    pub secret: Secret,
    /// Duplicates of the request's descriptors, so that no close of the caller is the last one.
    pub sent: Vec<Foreign>,
}

/// Why a connection was closed.
#[derive(Debug)]
pub enum Refusal {
    /// The process belongs to no worker with the proof that it showed.
    NotOurs {
        /// As SO_PEERCRED says.
        pid: u32,
        /// As SO_PEERCRED says.
        uid: u32,
    },
    /// What was wrong with its request.
    Nonsense(String),
}

/// What a library asks for; numbers are listener ids.
#[derive(Debug)]
pub enum RequestKind {
    /// Where to bind this socket, for this address.
    Bind(OwnedFd, SocketAddr),
    /// The server bound this socket to this address, or failed with this errno.
    Bound(Result<OwnedFd, i32>, SocketAddr),
    /// The server called listen(2).
    Listen(usize),
    /// The server closed it or shut it down.
    Unlisten(usize, Ended),
    /// A process found a stand-in that another one bound.
    Adopt(usize),
    /// The connection lasts as long as the process.
    Lease,
    /// setsockopt(2) on a listener.
    SetOption(usize, SocketOption),
    /// getsockopt(2) on a listener.
    GetOption(usize, SocketOption),
    /// The server wants the socket back that it bound, to connect it.
    GiveBack(usize),
    /// The server listens on this socket, which another process bound: is it ours?
    Recognize(OwnedFd),
    /// The server, asked to stop, connects to this address while it waits in accept(2) at the same port.
    Connects(usize, SocketAddr),
    /// The access log's ring.
    Log,
    /// It wants the record of translated addresses.
    Translations,
    /// Over this connection [`RequestKind::Move`] may come.
    Moves,
    /// A connection comes back, since its server leaves.
    Move(Moved),
}

/// A connection that a leaving server gave back between two requests.
#[derive(Debug)]
pub struct Moved {
    /// Where it was accepted.
    pub listener: usize,
    /// The connection.
    pub socket: OwnedFd,
    /// A PROXY header named its ends.
    pub translated: bool,
}

/// How a stand-in ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// One process has closed it; others may have it.
    ByClose,
    /// shutdown(2): closed for all processes that have it.
    ByShutdown,
}

/// The master's answer to a request.
#[derive(Debug)]
pub enum AttachReply {
    /// An errno; 0 is success. To a lease: the stop signal.
    Errno(i32),
    /// Not ours: the server binds its socket by itself.
    Pass,
    /// The server binds its socket by itself and then passes it to the master.
    Yourself,
    /// Another process is binding this address: ask again in a moment.
    Later,
    /// The worker's queue takes the socket's place.
    Shared {
        /// Its listener id.
        listener: usize,
        /// The address that the listener is bound to.
        address: SocketAddr,
        /// The queue's receiving end.
        queue: OwnedFd,
        /// The counters page.
        page: OwnedFd,
        /// The queue's sending end.
        keep: OwnedFd,
        /// With `--worker-conns` or `--max-conns`: the doorbell.
        bell: Option<OwnedFd>,
    },
    /// The listening socket takes its place: listener, socket, counters page.
    Listener(usize, OwnedFd, OwnedFd),
    /// The access log's memory file, and its doorbell.
    Log(OwnedFd, OwnedFd),
    /// The memory file of translated addresses.
    Translations(OwnedFd),
    /// The server's own socket.
    Back(Foreign),
    /// The value of a listener's option.
    Value(SocketOption),
    /// None is expected.
    Nothing,
}

/// What comes from a connection or from the pidfd of a process with a lease.
#[derive(Debug)]
pub enum AttachEvent {
    /// A request, checked for form.
    Request(AttachRequest),
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
    guests: Guests,
    leased: HashMap<u32, Leased>,
    /// The next number of a connection or a lease.
    next: u32,
    registry: Registry,
    most: usize,
    /// The time of the next accept(2) without a new event.
    again: Option<Instant>,
    refused: Limited,
    trouble: Limited,
}

impl AttachServer {
    /// Opens it at a random abstract name; `nofile` is the master's file limit.
    ///
    /// # Errors
    /// As socket(2), bind(2), epoll_ctl(2).
    pub fn open(registry: &Registry, nofile: u64) -> io::Result<Self> {
        let name = format!("roundsman-{}-{}", std::process::id(), hex(&secret()?));
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        listener.bind(&SockAddr::unix(format!("\0{name}"))?)?;
        listener.listen(128)?;
        Self::on(listener, name, registry, nofile)
    }

    /// With a listener that has that name.
    fn on(listener: Socket, name: String, registry: &Registry, nofile: u64) -> io::Result<Self> {
        registry.watch(Source::AttachListener, &listener)?;
        let most = (nofile / FD_SHARE).min(MAX_CONNECTIONS) as usize;
        Ok(Self {
            listener,
            name,
            guests: Guests::new(most),
            leased: HashMap::new(),
            next: 0,
            registry: registry.clone(),
            most,
            again: None,
            refused: Limited::default(),
            trouble: Limited::default(),
        })
    }

    /// Its abstract name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Accepts new connections, one burst. Foreign ones are closed without receiving anything from them.
    pub fn accept(&mut self, ours: &Ours, now: Instant) {
        self.again = None;
        self.guests.expire(now);
        while let Some(guest) = self.guests.due(ours, now) {
            self.enter(guest, now);
        }
        for _ in 0..BURST {
            // Each is closed within milliseconds, so the wait is short.
            if closer::sockets_wait() {
                self.again = Some(now + RETRY_AFTER);
                return;
            }
            let connection = match self.listener.accept() {
                Ok((connection, _)) => connection,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        if let Some(suppressed) = self.trouble.pass(now) {
                            warn!(suppressed, "cannot accept on the attach socket for now: {}", reason(&error));
                        }
                        self.again = Some(now + RETRY_AFTER);
                        return;
                    }
                },
            };
            let peer = getsockopt(&connection, PeerCredentials);
            let socket = Foreign::socket(connection.into());
            let Ok(peer) = peer else { continue };
            let guest = Guest { socket, pid: peer.pid() as u32, uid: peer.uid(), since: now, proven: None };
            match self.guests.arrives(guest, ours, now) {
                Ok(Some(guest)) => self.enter(guest, now),
                Ok(None) => {}
                Err(guest) => self.refuse(&guest, "not one of our workers", now),
            }
        }
        self.again = Some(now);
    }

    fn enter(&mut self, guest: Guest, now: Instant) {
        let number = self.free_number();
        match self.guests.enter(number, guest, self.leased.len()) {
            Ok(()) => {
                let watch = |guest: &Guest| self.registry.watch(Source::Attached(number), &guest.socket).is_ok();
                if !self.guests.get(number).is_some_and(watch) {
                    self.guests.remove(number);
                }
            }
            Err(guest) => self.refuse(&guest, "too many connections", now),
        }
    }

    fn refuse(&mut self, guest: &Guest, why: &str, now: Instant) {
        if let Some(suppressed) = self.refused.pass(now) {
            warn!(pid = guest.pid, uid = guest.uid, suppressed, "attach refused: {why}");
        }
    }

    /// The time of the next [`AttachServer::accept`] without an event.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.again.into_iter().chain(self.guests.deadline(now)).min()
    }

    fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            if !self.guests.has(number) && !self.leased.contains_key(&number) {
                return number;
            }
        }
    }

    /// Watches a process until its end. Returns false if it is gone already.
    pub fn watch(&mut self, pid: u32, secret: Secret) -> bool {
        let known = self.leased.values().any(|leased| leased.pid == pid && leased.secret == secret);
        if known || self.guests.count() + self.leased.len() >= self.most {
            return true;
        }
        let number = self.free_number();
        let Ok(pidfd) = process::pidfd_open(pid) else { return false };
        if self.registry.watch(Source::Attached(number), &pidfd).is_ok() {
            self.leased.insert(number, Leased { pidfd, pid, secret });
        }
        true
    }

    /// The next request of a connection, or the end of a process; `None` when there is none now. The request and its
    /// descriptors are received only if `admits` accepts its proof, process and user. A connection that has ended or is
    /// refused is closed.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn next(
        &mut self,
        number: u32,
        admits: impl FnOnce(&Secret, &Guest) -> bool,
    ) -> Result<Option<AttachEvent>, Refusal> {
        if let Some(Leased { pidfd, pid, secret }) = self.leased.remove(&number) {
            self.registry.unwatch(&pidfd);
            return Ok(Some(AttachEvent::Ended(pid, secret)));
        }
        let Some(guest) = self.guests.get(number) else { return Ok(None) };
        match request(guest, admits) {
            Ok(request) => {
                if let Some(request) = &request {
                    self.guests.prove(number, request.secret);
                }
                Ok(request.map(AttachEvent::Request))
            }
            Err(why) => {
                self.guests.remove(number);
                why.map_or(Ok(None), Err)
            }
        }
    }

    /// Sends the reply to a connection's request. A connection that does not take it is closed.
    pub fn reply(&mut self, number: u32, reply: &AttachReply) {
        let Some(guest) = self.guests.get(number).filter(|_| !matches!(reply, AttachReply::Nothing)) else { return };
        let (bytes, fds) = encode(reply);
        if scm::send_fds(guest.socket.as_fd(), &bytes, fds.into_iter()).is_err() {
            self.guests.remove(number);
        }
    }

    /// Closes a connection: its request was refused.
    pub fn close(&mut self, number: u32) {
        self.guests.remove(number);
    }
}

/// A new random secret.
///
/// # Errors
/// As getrandom(2).
pub fn secret() -> io::Result<Secret> {
    let mut secret = Secret::default();
    random::fill(&mut secret)?;
    Ok(secret)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
