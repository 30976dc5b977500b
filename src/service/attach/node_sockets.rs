//! Sockets that Node's own workers share, as those of its cluster do.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::accept::orders::ListenerId;
use crate::addr::ListenAddr;
use crate::config::ServiceConfig;
use crate::listener::{self, BindError, Listener};
use crate::node::message::{Kind, Query};
use crate::sys::process::Credentials;
use crate::sys::rights;

/// Different servers that the workers of a service may have.
const MAX_SERVERS: usize = 1000;
/// Ticket keys have 48 bytes, addresses at most a path's 108: what is longer is not kept.
pub(super) const MAX_DATA: usize = 1024;

/// What the workers of a service share.
#[derive(Debug, Default)]
pub struct NodeSockets {
    /// Listeners that a worker's query made, by key.
    pub(super) listeners: BTreeMap<String, ListenerId>,
    /// Sockets on which the workers themselves listen.
    pub(super) sockets: BTreeMap<String, Listener>,
    /// The same for UDP.
    pub(super) datagrams: BTreeMap<String, Arc<OwnedFd>>,
    /// TLS servers' ticket keys: a client resumes its session with any worker, of any generation.
    pub(super) data: BTreeMap<String, Value>,
    /// Queries of workers for an address that is being closed, with the slot and the pid of each.
    pub(super) later: Vec<(usize, u32, Query)>,
}

impl NodeSockets {
    /// The data that the first worker with this query sent along; all get the same.
    pub(super) fn data(&mut self, query: &Query) -> Value {
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
    pub(super) fn shared(
        &mut self,
        query: &Query,
        bind: impl FnOnce() -> io::Result<Listener>,
    ) -> io::Result<Arc<OwnedFd>> {
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

    pub(super) fn datagram(&mut self, query: &Query, binder: &Binder) -> io::Result<Arc<OwnedFd>> {
        let key = query.key();
        if let Some(socket) = self.datagrams.get(&key) {
            return Ok(socket.clone());
        }
        self.has_room()?;
        let socket = Arc::new(binder.datagram(query)?);
        self.datagrams.insert(key, socket.clone());
        Ok(socket)
    }

    pub(super) fn has_room(&self) -> io::Result<()> {
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
pub(super) struct Binder {
    user: Option<Credentials>,
    cwd: Option<PathBuf>,
}

impl Binder {
    pub(super) fn new(config: &ServiceConfig, pid: u32) -> Self {
        // As whom it was started, or whom it has become since.
        let started = config.user.clone();
        let uid = started.as_ref().map_or_else(nix::unistd::geteuid, |user| user.uid);
        let user = Credentials::of_process(pid).filter(|now| now.uid != uid).or(started);
        Self { user, cwd: config.cwd.clone() }
    }

    /// As Node's primary binds: any address is `::` for both families, else 0.0.0.0.
    pub(super) fn tcp(&self, query: &Query) -> io::Result<Socket> {
        let bind = |any: IpAddr| listener::bind_tcp(address(query, any)?, query.only_v6);
        rights::as_server(self.user.as_ref(), || match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if query.address.is_none() && listener::no_ipv6(&error) => bind(Ipv4Addr::UNSPECIFIED.into()),
            other => other,
        })
    }

    pub(super) fn path(&self, query: &Query) -> io::Result<Listener> {
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

/// The address of a query; without one: any.
pub(super) fn address(query: &Query, any: IpAddr) -> io::Result<SocketAddr> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let port = u16::try_from(query.port).map_err(|_| invalid())?;
    let ip = match &query.address {
        Some(text) if !text.is_empty() => text.parse().map_err(|_| invalid())?,
        _ => any,
    };
    Ok(SocketAddr::new(ip, port))
}
