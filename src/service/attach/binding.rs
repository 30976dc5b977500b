//! bind(2) in a server: which listener it means, and how a new one comes to be.
//!
//! Where no `--listen` decides, the server's own process binds its own socket: whether it may is between it and the
//! kernel. Then the socket becomes the service's listener.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Protocol, SockRef, Type};
use tracing::warn;

use super::errno;
use crate::accept::orders::{ListenerId, PLACES, place};
use crate::direct::attach::AttachReply;
use crate::listener::{Listener, Origin};
use crate::service::{Context, Service};
use crate::sys::{process, sock};

/// A process that was told to bind an address has so long to do it; then others may try.
const TIMEOUT: Duration = Duration::from_secs(1);

/// So many listeners the servers of every service may make.
const MANY: usize = 32;
/// More only while less than this part of the master's descriptors is in use, in eighths.
const FOR_NEW: u64 = 4;
/// The same for one more worker that listens on what others have made.
const FOR_SHARED: u64 = 7;

/// A process that binds an address at this moment.
#[derive(Debug)]
pub(in crate::service) struct Binder {
    address: SocketAddr,
    pid: u32,
    until: Instant,
}

impl Service {
    /// Whether `--listen` says what is served.
    pub(in crate::service) fn has_flags(&self) -> bool {
        self.listeners.iter().any(|listener| matches!(listener.origin, Origin::Flag | Origin::Leaving))
    }

    pub(in crate::service) fn bind(
        &mut self,
        at: usize,
        socket: &OwnedFd,
        address: SocketAddr,
        pid: u32,
        context: &Context,
    ) -> AttachReply {
        if self.slots[at].server().is_some_and(|server| server.inspect == Some(address.port())) {
            return AttachReply::Pass;
        }
        self.look_now(context);
        let listener = match self.has_flags() {
            true => self.listeners.iter().position(|listener| listener.served_port() == Some(address.port())),
            false => match self.bound_to(address) {
                None if self.takes_too_much(at, socket, FOR_NEW, context) => return AttachReply::Errno(libc::EMFILE),
                None => return self.let_bind(address, pid, context),
                known => known,
            },
        };
        let Some(listener) = listener else {
            self.passes(at, address.port(), "");
            return AttachReply::Pass;
        };
        if self.is_taken(at, listener, socket, address) {
            return AttachReply::Errno(libc::EADDRINUSE);
        }
        if self.takes_too_much(at, socket, FOR_SHARED, context) {
            return AttachReply::Errno(libc::EMFILE);
        }
        self.note_address(at, listener, address);
        let shared = self.share(at, listener, pid);
        shared.unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    /// Whether a service that has many listeners is to have no more of them: each costs descriptors, and those are for all
    /// services. The kernel gives the lowest number that is free, so that of `newest` tells how many are in use.
    fn takes_too_much(&mut self, at: usize, newest: &OwnedFd, share: u64, context: &Context) -> bool {
        let by_servers = self.listeners.iter().filter(|listener| listener.origin == Origin::Server).count();
        let crowded = by_servers >= MANY && newest.as_raw_fd() as u64 >= context.nofile * share / 8;
        if crowded && let Some(suppressed) = self.opened.crowded.pass(Instant::now()) {
            warn!(
                service = %self.config.name, slot = at, suppressed,
                "no more than {by_servers} listeners for now: they use up the daemon's descriptors; raise its limit (ulimit -n)"
            );
        }
        crowded
    }

    /// Whether natively the address would be in use: by another socket of the same worker. Those of other workers are
    /// what all of them share.
    fn is_taken(&self, at: usize, id: ListenerId, socket: &OwnedFd, address: SocketAddr) -> bool {
        let slot = &self.slots[at];
        let (Some(direct), Some(server)) = (slot.attachment(), slot.server()) else { return false };
        if !direct.has(id) {
            return false;
        }
        let asks = SockRef::from(socket);
        let Some(listener) = find(&self.listeners, id) else { return false };
        let first = SockRef::from(&listener.socket);
        // Of a `--listen` the server's own sockets decide, and those before this one are gone.
        let by_server = listener.origin == Origin::Server;
        // 0.0.0.0 and [::] of one port, or two local addresses, are two sockets and one queue: which of them was closed since
        // is not known here.
        let twice = |bound: &BTreeSet<SocketAddr>| bound.iter().eq([&address]);
        if !by_server && !direct.addresses.get(&id).is_some_and(twice) {
            return false;
        }
        let ports = asks.reuse_port().unwrap_or(false) && (!by_server || first.reuse_port().unwrap_or(false));
        let addresses = asks.reuse_address().unwrap_or(false) && !direct.listening.contains(&id);
        if ports || addresses {
            return false;
        }
        // What was closed where nobody saw it (by exec, for one) is in nobody's way.
        let inode = direct.queues.get(&id).map_or_else(|| sock::inode(listener.socket.as_fd()), |queue| queue.inode());
        let inodes: Vec<u64> = inode.into_iter().collect();
        !process::holders(&process::descendants(server.pid), &inodes).is_empty()
    }

    /// Remembers what a server binds that a `--listen` stands for.
    fn note_address(&mut self, at: usize, id: ListenerId, address: SocketAddr) {
        let Some(direct) = self.slots[at].attachment_mut() else { return };
        let fresh = !direct.has(id);
        let known = direct.addresses.entry(id).or_default();
        if fresh {
            known.clear();
        }
        known.insert(address);
    }

    /// The listener that a server made at an address.
    pub(in crate::service) fn bound_to(&self, address: SocketAddr) -> Option<ListenerId> {
        let known = |listener: &Listener| {
            let here = listener.origin == Origin::Server && listener.port == Some(address.port());
            here && sock::local_addr(listener.socket.as_fd()) == Some(address)
        };
        ids(&self.listeners).find(|(_, listener)| known(listener)).map(|(id, _)| id)
    }

    /// One process at a time binds an address that is new: the next one shares what the first one has bound.
    fn let_bind(&mut self, address: SocketAddr, pid: u32, context: &Context) -> AttachReply {
        let now = Instant::now();
        self.make_way(address, context);
        let binders = &mut self.opened.binders;
        binders.retain(|binder| binder.until > now);
        let busy = |binder: &Binder| binder.address == address && binder.pid != pid;
        let busy = binders.iter().any(|binder| busy(binder) && process::pidfd_open(binder.pid).is_ok());
        if busy || self.opened.is_closing(address.port()) {
            return AttachReply::Later;
        }
        self.opened.binders.retain(|binder| binder.address != address);
        self.opened.binders.push(Binder { address, pid, until: now + TIMEOUT });
        AttachReply::Yourself
    }

    /// A server has bound its socket, or could not.
    pub(in crate::service) fn bound(
        &mut self,
        at: usize,
        socket: Result<OwnedFd, i32>,
        address: SocketAddr,
        pid: u32,
        context: &Context,
    ) -> AttachReply {
        self.opened.binders.retain(|binder| binder.address != address || binder.pid != pid);
        let socket = match socket {
            Ok(socket) if self.takes_too_much(at, &socket, FOR_NEW, context) => {
                return AttachReply::Errno(libc::EMFILE);
            }
            Ok(socket) if !self.has_flags() && is_bound(&socket, address) => socket,
            Ok(_) => return AttachReply::Errno(libc::EINVAL),
            Err(libc::EADDRINUSE) if self.opened.closed_lately(address.port(), Instant::now()) => {
                return AttachReply::Later;
            }
            Err(errno) => {
                self.explain_refusal(at, address, &io::Error::from_raw_os_error(errno));
                return AttachReply::Errno(errno);
            }
        };
        let shared = self.bound_to(address).map_or_else(|| self.take(socket), Ok);
        let shared = shared.and_then(|listener| self.share(at, listener, pid));
        shared.unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    /// Makes a server's socket a listener.
    pub(in crate::service) fn take(&mut self, socket: OwnedFd) -> io::Result<ListenerId> {
        let mut listener = Listener::of_server(socket)?;
        if let Some(at) = self.opened.spare.pop() {
            listener.generation = (self.listeners[at].generation + 1) % GENERATIONS;
            self.listeners[at] = listener;
            return Ok(id(at, &self.listeners[at]));
        }
        if self.listeners.len() >= PLACES {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.listeners.push(listener);
        Ok(self.listeners.len() - 1)
    }
}

/// How often a place is another's before an id comes again: ids travel in 32 bits.
const GENERATIONS: usize = (1 << 32) / PLACES;

fn id(at: usize, listener: &Listener) -> ListenerId {
    listener.generation * PLACES + at
}

/// A service's listeners with their ids.
pub fn ids(listeners: &[Listener]) -> impl Iterator<Item = (ListenerId, &Listener)> {
    listeners.iter().enumerate().map(|(at, listener)| (id(at, listener), listener))
}

/// The listener with an id, unless it is gone.
pub(in crate::service) fn find(listeners: &[Listener], wanted: ListenerId) -> Option<&Listener> {
    let listener = listeners.get(place(wanted))?;
    Some(listener).filter(|listener| id(place(wanted), listener) == wanted && listener.origin != Origin::GivenBack)
}

/// See [`find`].
pub(in crate::service) fn find_mut(listeners: &mut [Listener], wanted: ListenerId) -> Option<&mut Listener> {
    find(listeners, wanted)?;
    listeners.get_mut(place(wanted))
}

/// Whether it is what a server says: a TCP socket, bound there, and no connection.
fn is_bound(socket: &OwnedFd, address: SocketAddr) -> bool {
    let socket = SockRef::from(socket);
    let tcp = matches!(socket.protocol(), Ok(Some(Protocol::TCP | Protocol::MPTCP)));
    let bound = socket.local_addr().is_ok_and(|local| local.as_socket() == Some(address));
    tcp && bound && socket.r#type().is_ok_and(|kind| kind == Type::STREAM) && socket.peer_addr().is_err()
}
