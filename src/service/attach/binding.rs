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

use super::{Handler, errno};
use crate::accept::orders::ListenerId;
use crate::direct::attach::AttachReply;
use crate::direct::keeping::is_keeper;
use crate::listener::Origin;
use crate::slot::lifecycle::Phase;
use crate::sys::{process, sock, sockets};

/// A process that was told to bind an address has so long to do it; then others may try.
const TIMEOUT: Duration = Duration::from_secs(1);

/// So many listeners the servers of every service may make.
const MANY: usize = 32;
/// More only while less than this part of the master's descriptors is in use, in eighths.
const FOR_NEW: u64 = 4;
/// The same for one more worker that listens on what others have made.
const FOR_SHARED: u64 = 7;

/// Processes that bind an address at this moment.
#[derive(Debug, Default)]
pub struct Binders(Vec<Binder>);

#[derive(Debug)]
struct Binder {
    address: SocketAddr,
    pid: u32,
    until: Instant,
}

impl Binders {
    /// Lets one process at a time bind an address that is new: the next one shares what the first one has bound.
    fn admit(&mut self, address: SocketAddr, pid: u32) -> bool {
        let now = Instant::now();
        self.0.retain(|binder| binder.until > now);
        let other = |binder: &Binder| binder.address == address && binder.pid != pid;
        if self.0.iter().any(|binder| other(binder) && process::pidfd_open(binder.pid).is_ok()) {
            return false;
        }
        self.0.retain(|binder| binder.address != address);
        self.0.push(Binder { address, pid, until: now + TIMEOUT });
        true
    }

    fn done(&mut self, address: SocketAddr, pid: u32) {
        self.0.retain(|binder| binder.address != address || binder.pid != pid);
    }
}

impl Handler<'_> {
    pub(super) fn bind(&mut self, at: usize, socket: &OwnedFd, address: SocketAddr, pid: u32) -> AttachReply {
        if self.slots[at].server().is_some_and(|server| server.inspect == Some(address.port())) {
            return AttachReply::Pass;
        }
        self.look_now();
        let Some(listener) = self.listener_for(address) else {
            if self.listeners.has_flags() {
                self.passes(at, address.port(), "");
                return AttachReply::Pass;
            }
            if self.is_own(at, Instant::now()) {
                return self.let_have(at, address);
            }
            if self.takes_too_much(at, socket, FOR_NEW) {
                return AttachReply::Errno(libc::EMFILE);
            }
            return self.let_bind(address, pid);
        };
        if self.is_taken(at, listener, socket, address) {
            return AttachReply::Errno(libc::EADDRINUSE);
        }
        if self.takes_too_much(at, socket, FOR_SHARED) {
            return AttachReply::Errno(libc::EMFILE);
        }
        self.note_address(at, listener, address, reuses_address(socket));
        self.share(at, listener, pid)
    }

    /// The listener that an address stands for.
    pub(super) fn listener_for(&self, address: SocketAddr) -> Option<ListenerId> {
        match self.listeners.has_flags() {
            true => self.listeners.serving(address.port()),
            false => self.listeners.bound_to(address),
        }
    }

    /// Whether a service that has many listeners is to have no more of them: each costs descriptors, and those are for all
    /// services. The kernel gives the lowest number that is free, so that of `newest` tells how many are in use.
    fn takes_too_much(&mut self, at: usize, newest: &OwnedFd, share: u64) -> bool {
        let by_servers = self.listeners.all().iter().filter(|listener| listener.origin == Origin::Server).count();
        let crowded = by_servers >= MANY && newest.as_raw_fd() as u64 >= self.context.nofile * share / 8;
        if crowded && let Some(suppressed) = self.state.crowded.pass(Instant::now()) {
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
        let Some(listener) = self.listeners.find(id) else { return false };
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
        let addresses = reuses_address(socket) && !direct.exclusive.contains(&id) && !direct.listening.contains(&id);
        if ports || addresses {
            return false;
        }
        // What was closed where nobody saw it (by exec, for one) is in nobody's way.
        let inode = direct.queues.get(&id).map_or_else(|| sock::inode(listener.socket.as_fd()), |queue| queue.inode());
        let inodes: Vec<u64> = inode.into_iter().collect();
        let mut processes = process::descendants(server.pid);
        // A keeper has a duplicate of what it gave its server.
        processes.retain(|&pid| !(direct.is_kept() && is_keeper(pid)));
        !sockets::holders(&processes, &inodes).is_empty()
    }

    /// Remembers what a server binds: with what options, and what a `--listen` stands for.
    fn note_address(&mut self, at: usize, id: ListenerId, address: SocketAddr, reuses_address: bool) {
        let Some(direct) = self.slots[at].attachment_mut() else { return };
        let fresh = !direct.has(id);
        if !reuses_address {
            direct.exclusive.insert(id);
        } else if fresh {
            direct.exclusive.remove(&id);
        }
        let known = direct.addresses.entry(id).or_default();
        if fresh {
            known.clear();
        }
        known.insert(address);
    }

    /// The kernel serves it, when a listener of ours that was there has gone.
    fn let_have(&mut self, at: usize, address: SocketAddr) -> AttachReply {
        self.make_way(address);
        if self.listeners.is_closing(address.port()) || self.listeners.closed_lately(address.port()) {
            return AttachReply::Later;
        }
        self.leave_to_kernel(at, address.port());
        AttachReply::Pass
    }

    fn let_bind(&mut self, address: SocketAddr, pid: u32) -> AttachReply {
        self.make_way(address);
        let free = !self.listeners.is_closing(address.port());
        if free && self.state.binders.admit(address, pid) { AttachReply::Yourself } else { AttachReply::Later }
    }

    /// A server has bound its socket, or could not.
    pub(super) fn bound(
        &mut self,
        at: usize,
        socket: Result<OwnedFd, i32>,
        address: SocketAddr,
        pid: u32,
    ) -> AttachReply {
        self.state.binders.done(address, pid);
        let socket = match socket {
            Ok(socket) if self.takes_too_much(at, &socket, FOR_NEW) => {
                return AttachReply::Errno(libc::EMFILE);
            }
            Ok(socket) if !self.listeners.has_flags() && is_bound(&socket, address) => socket,
            Ok(_) => return AttachReply::Errno(libc::EINVAL),
            Err(libc::EADDRINUSE) if self.listeners.closed_lately(address.port()) => {
                return AttachReply::Later;
            }
            Err(errno) => {
                if errno == libc::EADDRINUSE {
                    self.explain_own(at, address.port());
                }
                self.explain_refusal(at, address, &io::Error::from_raw_os_error(errno));
                return AttachReply::Errno(errno);
            }
        };
        let reuses_address = reuses_address(&socket);
        match self.listeners.bound_to(address).map_or_else(|| self.listeners.take(socket), Ok) {
            Ok(listener) => {
                self.note_address(at, listener, address, reuses_address);
                self.share(at, listener, pid)
            }
            Err(error) => errno(&error, libc::ENOBUFS),
        }
    }

    /// A worker listens where no `--listen` leads. Before it is online, that may be a mistake.
    pub(super) fn passes(&mut self, at: usize, port: u16, how: &str) {
        self.leave_to_kernel(at, port);
        if !matches!(self.slots[at].lifecycle.phase, Phase::Launching { .. }) {
            return;
        }
        let instead = self.listeners.serve_instead(&self.config.backend, port);
        let text = format!("listens on :{port}, which no -l serves; {how}{instead}");
        if !std::mem::replace(&mut self.state.hinted, true) {
            warn!(service = %self.config.name, slot = at, "worker {at} {text}");
        }
        if let Some(server) = self.slots[at].server_mut() {
            server.trouble = Some(format!("it {text}"));
        }
    }
}

fn reuses_address(socket: &OwnedFd) -> bool {
    SockRef::from(socket).reuse_address().unwrap_or(false)
}

/// Whether it is what a server says: a TCP socket, bound there, and no connection.
fn is_bound(socket: &OwnedFd, address: SocketAddr) -> bool {
    let socket = SockRef::from(socket);
    let tcp = matches!(socket.protocol(), Ok(Some(Protocol::TCP | Protocol::MPTCP)));
    let bound = socket.local_addr().is_ok_and(|local| local.as_socket() == Some(address));
    tcp && bound && socket.r#type().is_ok_and(|kind| kind == Type::STREAM) && socket.peer_addr().is_err()
}
