//! Sockets for Node's own workers: what `server.listen` means in a worker of its cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::binding::find;
use super::node::{say_to, with_channel};
use crate::accept::orders::ListenerId;
use crate::accept::policy::Policy;
use crate::addr::ListenAddr;
use crate::config::ServiceConfig;
use crate::listener::{self, BindError, Listener};
use crate::node::message::{self, Kind, Query};
use crate::service::{Context, Service};
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
pub struct NodeSockets {
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

impl NodeSockets {
    /// The data that the first worker with this query sent along; all get the same.
    fn data(&mut self, query: &Query) -> Value {
        let key = query.key();
        if let Some(data) = self.data.get(&key) {
            return data.clone();
        }
        let fits = || query.data.to_string().len() <= MAX_DATA;
        if !query.data.is_null() && self.data.len() < MAX_SERVERS && key.len() <= MAX_DATA && fits() {
            self.data.insert(key, query.data.clone());
        }
        query.data.clone()
    }

    /// A socket on which the workers accept by themselves.
    fn shared(&mut self, query: &Query, bind: impl FnOnce() -> io::Result<Listener>) -> io::Result<Arc<OwnedFd>> {
        let key = query.key();
        if let Some(listener) = self.sockets.get(&key) {
            return Ok(listener.socket.clone());
        }
        self.has_room()?;
        let listener = bind()?;
        let socket = listener.socket.clone();
        self.sockets.insert(key, listener);
        Ok(socket)
    }

    fn datagram(&mut self, query: &Query, binder: &Binder) -> io::Result<Arc<OwnedFd>> {
        let key = query.key();
        if let Some(socket) = self.datagrams.get(&key) {
            return Ok(socket.clone());
        }
        self.has_room()?;
        let socket = Arc::new(binder.datagram(query)?);
        self.datagrams.insert(key, socket.clone());
        Ok(socket)
    }

    fn has_room(&self) -> io::Result<()> {
        let all = self.listeners.len() + self.sockets.len() + self.datagrams.len();
        if all < MAX_SERVERS { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMFILE)) }
    }

    /// A listener is gone: the next query makes another one.
    pub fn forget(&mut self, id: ListenerId) {
        self.listeners.retain(|_, &mut known| known != id);
    }

    /// The listeners that no slot serves: their files go at the end of the service.
    pub fn unserved(&self) -> impl Iterator<Item = &Listener> {
        self.sockets.values()
    }
}

/// Binds with the rights and from the directory of the worker that asks.
struct Binder {
    user: Option<Credentials>,
    cwd: Option<PathBuf>,
}

impl Binder {
    fn new(config: &ServiceConfig, pid: u32) -> Self {
        // As whom it was started, or whom it has become since.
        let started = config.user.clone();
        let uid = started.as_ref().map_or_else(nix::unistd::geteuid, |user| user.uid);
        let user = Credentials::of_process(pid).filter(|now| now.uid != uid).or(started);
        Self { user, cwd: config.cwd.clone() }
    }

    /// As Node's primary binds: any address is `::` for both families, else 0.0.0.0.
    fn tcp(&self, query: &Query) -> io::Result<Socket> {
        let bind = |any: IpAddr| listener::bind_tcp(address(query, any)?, query.only_v6);
        rights::as_server(self.user.as_ref(), || match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if query.address.is_none() && listener::no_ipv6(&error) => bind(Ipv4Addr::UNSPECIFIED.into()),
            other => other,
        })
    }

    fn path(&self, query: &Query) -> io::Result<Listener> {
        let path = query.address.as_deref().unwrap_or_default();
        // Relative to where the worker runs; an abstract name is not.
        let cwd = self.cwd.as_ref().filter(|_| !path.starts_with('\0'));
        let path = cwd.map_or_else(|| path.into(), |cwd| cwd.join(path));
        rights::as_server(self.user.as_ref(), || {
            Listener::bind(&ListenAddr::Unix(path)).map_err(|error| match error {
                BindError::Os { source, .. } => source,
                _ => io::Error::from_raw_os_error(libc::EADDRINUSE),
            })
        })
    }

    fn datagram(&self, query: &Query) -> io::Result<OwnedFd> {
        let v6 = query.kind == Kind::Udp6;
        let any = if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let to = address(query, any)?;
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None)?;
        if to.is_ipv6() {
            socket.set_only_v6(query.only_v6)?;
        }
        rights::as_server(self.user.as_ref(), || socket.bind(&SockAddr::from(to)))?;
        Ok(socket.into())
    }
}

impl Service {
    /// Answers a worker that wants to listen.
    ///
    /// # Errors
    /// When it does not read answers.
    pub(in crate::service) fn answer_query(
        &mut self,
        (at, pid, old): (usize, u32, bool),
        query: Query,
        context: &Context,
    ) -> io::Result<()> {
        if !old && self.is_still_closing(&query, context) {
            self.node.later.push((at, pid, query));
            return Ok(());
        }
        let data = self.node.data(&query);
        let given = match old || self.closes() || query.key().len() > MAX_DATA {
            // Workers on their way out get nothing new, and no worker gets a key without bounds.
            true => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            false => self.socket_for(at, pid, &query),
        };
        if let (Err(error), false, Kind::Tcp) = (&given, old, query.kind)
            && let Ok(wanted) = address(&query, Ipv6Addr::UNSPECIFIED.into())
        {
            self.explain_refusal(at, wanted, error);
        }
        say_to(&mut self.slots, pid, |ipc| {
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
    pub(in crate::service) fn step_queries(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        for (at, pid, query) in std::mem::take(&mut self.node.later) {
            let Some(old) = with_channel(&mut self.slots, pid).map(|(_, _, old)| old) else { continue };
            // One that does not read answers has more to say, and is dealt with there.
            let _ = self.answer_query((at, pid, old), query, context);
        }
        (!self.node.later.is_empty()).then(|| now + POLL_INTERVAL)
    }

    /// A worker's queue stands in for the listening socket; under none it is that socket itself.
    fn socket_for(&mut self, at: usize, pid: u32, query: &Query) -> io::Result<Arc<OwnedFd>> {
        let binder = Binder::new(&self.config, pid);
        match query.kind {
            Kind::Path => return self.node.shared(query, || binder.path(query)),
            Kind::Udp4 | Kind::Udp6 => return self.node.datagram(query, &binder),
            Kind::Tcp => {}
        }
        let key = query.key();
        let id = if self.has_flags() {
            let served = |listener: &Listener| listener.served_port().map(i64::from) == Some(query.port);
            self.listeners.iter().position(served)
        } else if let Some(&id) = self.node.listeners.get(&key) {
            Some(id)
        } else {
            self.node.has_room()?;
            let id = self.take(binder.tcp(query)?.into())?;
            self.node.listeners.insert(key, id);
            Some(id)
        };
        let Some(id) = id else {
            let socket = self.node.shared(query, || Listener::of_server(binder.tcp(query)?.into()));
            let port = u16::try_from(query.port).unwrap_or(0);
            self.passes(at, port, "its workers share it, and the kernel chooses; ");
            return socket;
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
