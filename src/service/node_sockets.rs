//! Sockets for Node's own workers: what `server.listen` means in a worker of its cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::binding::find;
use super::{Context, Service};
use crate::accept::orders::ListenerId;
use crate::accept::policy::Policy;
use crate::addr::ListenAddr;
use crate::listener::{self, BindError, Listener, Origin};
use crate::node::message::{self, Kind, Query};
use crate::sys::process::Credentials;
use crate::sys::rights;

/// Different servers that the workers of a service may have.
const MAX_SERVERS: usize = 1000;
/// How soon an address that is being closed is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Ticket keys have 48 bytes, addresses at most a path's 108: what is longer is not kept.
const MAX_DATA: usize = 1024;

/// What the workers of a service share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Listeners that a worker's query made, by key.
    listeners: BTreeMap<String, ListenerId>,
    /// Sockets on which the workers themselves listen.
    sockets: BTreeMap<String, Listener>,
    /// The same for UDP.
    datagrams: BTreeMap<String, Arc<OwnedFd>>,
    /// TLS servers' ticket keys: a client resumes its session with any worker, of any generation.
    data: BTreeMap<String, Value>,
    /// Queries of workers for an address that is being closed, with the slot and the pid of each.
    later: Vec<(usize, u32, Query)>,
}

impl Service {
    /// Answers a worker that wants to listen.
    ///
    /// # Errors
    /// When it does not read answers.
    pub(super) fn answer_query(
        &mut self,
        (at, pid, old): (usize, u32, bool),
        query: Query,
        context: &Context,
    ) -> io::Result<()> {
        if !old && self.is_still_closing(&query, context) {
            self.node.later.push((at, pid, query));
            return Ok(());
        }
        let key = query.key();
        let data = match self.node.data.get(&key) {
            Some(data) => data.clone(),
            None => {
                let fits = || query.data.to_string().len() <= MAX_DATA;
                if !query.data.is_null() && self.node.data.len() < MAX_SERVERS && key.len() <= MAX_DATA && fits() {
                    self.node.data.insert(key, query.data.clone());
                }
                query.data.clone()
            }
        };
        let given = match old || self.closes() || query.key().len() > MAX_DATA {
            // One on its way out gets nothing new, and one that makes fun of us neither.
            true => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            false => self.socket_for(at, pid, &query),
        };
        if let (Err(error), false, Kind::Tcp) = (&given, old, query.kind)
            && let Ok(wanted) = address(&query, Ipv6Addr::UNSPECIFIED.into())
        {
            self.explain_refusal(at, wanted, error);
        }
        self.say_to(pid, |ipc| {
            let seq = ipc.channel.next_seq();
            match given {
                Ok(socket) => ipc.channel.send(message::shared(&query, &data, seq), Some(socket)),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                    ipc.channel.send(message::refused(&query, errno, seq), None)
                }
            }
        })
    }

    /// Whether a new address is in use by what closes now.
    fn is_still_closing(&mut self, query: &Query, context: &Context) -> bool {
        if query.kind != Kind::Tcp || self.has_flags() || self.node.listeners.contains_key(&query.key()) {
            return false;
        }
        let Ok(address) = address(query, Ipv6Addr::UNSPECIFIED.into()) else { return false };
        self.look_now(context);
        self.make_way(address, context);
        self.opened.is_closing(address.port())
    }

    /// Looks again at queries that had to wait.
    pub(super) fn step_queries(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        for (at, pid, query) in std::mem::take(&mut self.node.later) {
            let Some(old) = self.with_channel(pid).map(|(_, _, old)| old) else { continue };
            // One that does not read answers has more to say, and is dealt with there.
            let _ = self.answer_query((at, pid, old), query, context);
        }
        (!self.node.later.is_empty()).then(|| now + POLL_INTERVAL)
    }

    fn socket_for(&mut self, at: usize, pid: u32, query: &Query) -> io::Result<Arc<OwnedFd>> {
        match query.kind {
            Kind::Tcp => self.tcp_for(at, pid, query),
            Kind::Path => self.shared_listener(query, |service, query| service.bind_path(pid, query)),
            Kind::Udp4 | Kind::Udp6 => self.datagram_for(pid, query),
        }
    }

    /// A worker's queue stands in for the listening socket; under none it is that socket itself.
    fn tcp_for(&mut self, at: usize, pid: u32, query: &Query) -> io::Result<Arc<OwnedFd>> {
        let Some(id) = self.listener_of(pid, query)? else {
            let port = query.port;
            self.passes(at, u16::try_from(port).unwrap_or(0), "its workers share it, and the kernel chooses; ");
            let bind = |service: &Self, query: &Query| Listener::of_server(service.bind_tcp(pid, query)?.into());
            return self.shared_listener(query, bind);
        };
        let listener = find(&self.listeners, id).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let Some(direct) = self.slots[at].attachment_mut() else { return Ok(listener.socket.clone()) };
        direct.bound.entry(id).or_default().insert(pid);
        self.opened.uses(id);
        if self.config.policy == Policy::None {
            return Ok(listener.socket.clone());
        }
        direct.pid.get_or_insert(pid);
        let (end, _) = direct.queue(id)?.ends()?;
        Ok(Arc::new(end))
    }

    /// Which listener a query means; `None`: one that is not to be served.
    fn listener_of(&mut self, pid: u32, query: &Query) -> io::Result<Option<ListenerId>> {
        if self.listeners.iter().any(|listener| matches!(listener.origin, Origin::Flag | Origin::Leaving)) {
            let served = |listener: &Listener| listener.served_port().map(i64::from) == Some(query.port);
            return Ok(self.listeners.iter().position(served));
        }
        let key = query.key();
        if let Some(&id) = self.node.listeners.get(&key) {
            return Ok(Some(id));
        }
        self.has_room()?;
        let socket = self.bind_tcp(pid, query)?;
        let id = self.take(socket.into())?;
        self.node.listeners.insert(key, id);
        Ok(Some(id))
    }

    fn shared_listener(
        &mut self,
        query: &Query,
        bind: impl FnOnce(&Self, &Query) -> io::Result<Listener>,
    ) -> io::Result<Arc<OwnedFd>> {
        let key = query.key();
        if !self.node.sockets.contains_key(&key) {
            self.has_room()?;
            let listener = bind(self, query)?;
            self.node.sockets.insert(key.clone(), listener);
        }
        let lost = || io::Error::from_raw_os_error(libc::EINVAL);
        self.node.sockets.get(&key).map(|listener| listener.socket.clone()).ok_or_else(lost)
    }

    fn bind_path(&self, pid: u32, query: &Query) -> io::Result<Listener> {
        let path = query.address.as_deref().unwrap_or_default();
        // Relative to where the worker runs; an abstract name is not.
        let cwd = self.config.cwd.as_ref().filter(|_| !path.starts_with('\0'));
        let path = cwd.map_or_else(|| path.into(), |cwd| cwd.join(path));
        let bound = || {
            Listener::bind(&ListenAddr::Unix(path)).map_err(|error| match error {
                BindError::Os { source, .. } => source,
                _ => io::Error::from_raw_os_error(libc::EADDRINUSE),
            })
        };
        rights::as_server(self.user_of(pid).as_ref(), bound)
    }

    fn datagram_for(&mut self, pid: u32, query: &Query) -> io::Result<Arc<OwnedFd>> {
        let key = query.key();
        if let Some(socket) = self.node.datagrams.get(&key) {
            return Ok(socket.clone());
        }
        self.has_room()?;
        let any: IpAddr =
            if query.kind == Kind::Udp6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let to = address(query, any)?;
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None)?;
        if to.is_ipv6() {
            socket.set_only_v6(query.only_v6)?;
        }
        rights::as_server(self.user_of(pid).as_ref(), || socket.bind(&SockAddr::from(to)))?;
        let socket: Arc<OwnedFd> = Arc::new(socket.into());
        self.node.datagrams.insert(key, socket.clone());
        Ok(socket)
    }

    /// As Node's primary binds, with the rights that the worker has.
    fn bind_tcp(&self, pid: u32, query: &Query) -> io::Result<Socket> {
        rights::as_server(self.user_of(pid).as_ref(), || bind_tcp(query))
    }

    /// Who a worker is: as whom it was started, or whom it has become since.
    fn user_of(&self, pid: u32) -> Option<Credentials> {
        let started = self.config.user.clone();
        let uid = started.as_ref().map_or_else(nix::unistd::geteuid, |user| user.uid);
        Credentials::of_process(pid).filter(|now| now.uid != uid).or(started)
    }

    /// A listener is gone: the next query makes another one.
    pub(super) fn forget_key(&mut self, id: ListenerId) {
        self.node.listeners.retain(|_, &mut known| known != id);
    }

    fn has_room(&self) -> io::Result<()> {
        let all = self.node.listeners.len() + self.node.sockets.len() + self.node.datagrams.len();
        if all < MAX_SERVERS { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMFILE)) }
    }

    /// Removes the files of its Unix sockets.
    pub(super) fn remove_files(&self) {
        self.listeners.iter().chain(self.node.sockets.values()).for_each(Listener::remove_file);
    }

    /// The same at the end, where no step of a stop has done it; then another daemon may have files there by now.
    pub fn remove_files_left(&self) {
        if !self.closes() {
            self.remove_files();
        }
    }
}

/// The address of a query; without one: any.
fn address(query: &Query, any: IpAddr) -> io::Result<SocketAddr> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let port = u16::try_from(query.port).map_err(|_| invalid())?;
    let ip = match &query.address {
        Some(text) if !text.is_empty() => text.parse().map_err(|_| invalid())?,
        _ => any,
    };
    Ok(SocketAddr::new(ip, port))
}

/// Any address is `::` for both families, else 0.0.0.0.
fn bind_tcp(query: &Query) -> io::Result<Socket> {
    let bind = |any: IpAddr| listener::bind_tcp(address(query, any)?, query.only_v6);
    match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if query.address.is_none() && listener::no_ipv6(&error) => bind(Ipv4Addr::UNSPECIFIED.into()),
        other => other,
    }
}
