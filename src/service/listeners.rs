//! The listeners of a service: those of `--listen`, and those that its servers make.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{error, info};

use super::step::CannotListen;
use crate::accept::orders::{ListenerId, Order, PLACES, ServiceId, place};
use crate::accept::policy::Policy;
use crate::addr::{Listen, ListenAddr};
use crate::config::Backend;
use crate::listener::{Listener, ListenerRecord, Origin};
use crate::record::{Found, Kept};
use crate::sys::sock;
use crate::worker::Context;

/// How often a place is another's before an id comes again: ids travel in 32 bits.
const GENERATIONS: usize = (1 << 32) / PLACES;
/// A copy of a closed listener, which came with a request, is closed within this, if nothing holds that up.
const LATELY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Listeners {
    service: ServiceId,
    name: String,
    all: Vec<Listener>,
    /// Those that listen: each begins when a worker that serves it is there.
    listening: BTreeSet<ListenerId>,
    /// Places of listeners that are gone.
    spare: Vec<usize>,
    /// Listeners that are being closed, with their ports: these are taken until the accept thread has closed them, too.
    closing: Vec<(u16, ListenerId)>,
    /// Ports whose listeners were closed a moment ago: a copy of one may wait to be closed.
    lately: Vec<(u16, Instant)>,
}

/// A service's listeners in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenersRecord {
    all: Vec<ListenerRecord>,
    listening: BTreeSet<ListenerId>,
    spare: Vec<usize>,
}

impl ListenersRecord {
    pub fn any(&self) -> bool {
        !self.all.is_empty()
    }

    /// Whether one was passed to the daemon.
    pub fn any_passed(&self) -> bool {
        self.all.iter().any(ListenerRecord::is_passed)
    }
}

impl Listeners {
    pub fn record(&self, kept: &mut Kept) -> ListenersRecord {
        // What closes has been closed by then, and a moment ago is over.
        let Self { service: _, name: _, all, listening, spare, closing: _, lately: _ } = self;
        let all = all.iter().map(|listener| listener.record(kept)).collect();
        ListenersRecord { all, listening: listening.clone(), spare: spare.clone() }
    }

    /// # Errors
    /// When a socket is not there.
    pub fn adopt(service: ServiceId, name: &str, record: ListenersRecord, found: &mut Found) -> io::Result<Self> {
        let ListenersRecord { all, listening, spare } = record;
        let all = all.into_iter().map(|one| Listener::adopt_recorded(one, found)).collect::<io::Result<_>>()?;
        Ok(Self { listening, spare, ..Self::new(service, name, all) })
    }

    /// The sockets of those that listen.
    pub fn open(&self) -> Vec<(ListenerId, Arc<OwnedFd>)> {
        let of = |id: &ListenerId| Some((*id, self.find(*id)?.socket.clone()));
        self.listening.iter().filter_map(of).collect()
    }

    pub fn new(service: ServiceId, name: &str, all: Vec<Listener>) -> Self {
        let (spare, closing, lately) = (Vec::new(), Vec::new(), Vec::new());
        Self { service, name: name.to_owned(), all, listening: BTreeSet::new(), spare, closing, lately }
    }

    pub fn service(&self) -> ServiceId {
        self.service
    }

    /// Also those that were given back: each keeps its place.
    pub fn all(&self) -> &[Listener] {
        &self.all
    }

    pub fn ids(&self) -> impl Iterator<Item = (ListenerId, &Listener)> {
        self.all.iter().enumerate().map(|(at, listener)| (id(at, listener), listener))
    }

    /// The listener with an id, unless it is gone.
    pub fn find(&self, wanted: ListenerId) -> Option<&Listener> {
        let listener = self.all.get(place(wanted))?;
        Some(listener).filter(|listener| id(place(wanted), listener) == wanted && listener.origin != Origin::GivenBack)
    }

    fn find_mut(&mut self, wanted: ListenerId) -> Option<&mut Listener> {
        self.find(wanted)?;
        self.all.get_mut(place(wanted))
    }

    /// Those that `--listen` asks for.
    pub fn flags(&self) -> impl Iterator<Item = (ListenerId, &Listener)> {
        self.ids().filter(|(_, listener)| listener.origin == Origin::Flag)
    }

    /// Whether `--listen` says what is served.
    pub fn has_flags(&self) -> bool {
        self.all.iter().any(|listener| matches!(listener.origin, Origin::Flag | Origin::Leaving))
    }

    /// The `--listen` that serves a port.
    pub fn serving(&self, port: u16) -> Option<ListenerId> {
        self.all.iter().position(|listener| listener.served_port() == Some(port))
    }

    pub fn serves(&self, address: &ListenAddr) -> bool {
        self.all.iter().any(|listener| listener.serves(address))
    }

    /// The listener that a server made at an address.
    pub fn bound_to(&self, address: SocketAddr) -> Option<ListenerId> {
        let mut known = self.by_servers(address.port());
        known.find(|(_, listener)| sock::local_addr(listener.socket.as_fd()) == Some(address)).map(|(id, _)| id)
    }

    /// Listeners that servers made and that are in the way of another one.
    pub fn conflicts(&self, address: SocketAddr) -> Vec<ListenerId> {
        let in_way = |listener: &Listener| {
            let own = sock::local_addr(listener.socket.as_fd()).map(|own| own.ip());
            own.is_some_and(|own| own == address.ip() || own.is_unspecified() || address.ip().is_unspecified())
        };
        self.by_servers(address.port()).filter(|(_, listener)| in_way(listener)).map(|(id, _)| id).collect()
    }

    fn by_servers(&self, port: u16) -> impl Iterator<Item = (ListenerId, &Listener)> {
        self.ids().filter(move |(_, listener)| listener.origin == Origin::Server && listener.port == Some(port))
    }

    /// The listener of which a process has a copy.
    pub fn same_as(&self, socket: BorrowedFd<'_>) -> Option<ListenerId> {
        let inode = sock::inode(socket)?;
        self.ids().find(|(_, listener)| sock::inode(listener.socket.as_fd()) == Some(inode)).map(|(id, _)| id)
    }

    /// What to type for a port that servers insist on.
    pub fn serve_instead(&self, backend: &Backend, port: u16) -> String {
        let first = self.flags().find_map(|(_, listener)| listener.served_port()).unwrap_or(port);
        let outer = self.all.iter().find_map(|listener| listener.port).unwrap_or(first);
        match backend {
            Backend::Direct(_) => format!("let it listen on :{first} (its PORT), or use -l {outer}={port}"),
            _ => "let it read PORT, or put {port} into the command".to_owned(),
        }
    }

    pub fn listens(&self, id: ListenerId) -> bool {
        self.listening.contains(&id)
    }

    /// Begins to listen there, unless it does already.
    ///
    /// # Errors
    /// Another socket has taken the address in between.
    pub fn listen(&mut self, id: ListenerId, policy: Policy, context: &Context) -> Result<(), CannotListen> {
        let Some(listener) = self.find(id).filter(|_| !self.listens(id)) else { return Ok(()) };
        listener.listen().map_err(|source| CannotListen { address: listener.address.clone(), source })?;
        context.orders.send(Order::Listener { service: self.service, id, socket: listener.socket.clone() });
        info!(name: "listening", service = %self.name, address = %listener.address, %policy, "listening");
        self.listening.insert(id);
        Ok(())
    }

    /// They have stopped listening: each begins anew with the next worker.
    pub fn stopped(&mut self) {
        self.listening.clear();
    }

    /// Every slot is given up: clients are refused, as long as there is nobody to wait for.
    pub fn refuse(&mut self, context: &Context) {
        if self.listening.is_empty() {
            return;
        }
        error!(name: "given-up", service = %self.name, "given up: no slot is left; clients are refused");
        for id in std::mem::take(&mut self.listening) {
            context.orders.send(Order::StopAccepting { service: self.service, id });
            if let Some(listener) = self.find(id) {
                sock::stop_listening(listener.socket.as_fd());
            }
        }
        context.orders.send(Order::Refuse(self.service));
    }

    /// Makes a server's socket a listener.
    ///
    /// # Errors
    /// As getsockname(2) and fcntl(2); EMFILE where there are too many.
    pub fn take(&mut self, socket: OwnedFd) -> io::Result<ListenerId> {
        let mut listener = Listener::of_server(socket)?;
        if let Some(at) = self.spare.pop() {
            listener.generation = (self.all[at].generation + 1) % GENERATIONS;
            self.all[at] = listener;
            return Ok(id(at, &self.all[at]));
        }
        if self.all.len() >= PLACES {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        self.all.push(listener);
        Ok(self.all.len() - 1)
    }

    /// Gives the socket of a listener that never listened back to the server that made it.
    ///
    /// # Errors
    /// EADDRINUSE where it listens, or is that of a `--listen`; without descriptors.
    pub fn give_back(&mut self, id: ListenerId) -> io::Result<OwnedFd> {
        let listens = self.listens(id);
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        let Some(listener) = self.find_mut(id) else { return error(libc::EINVAL) };
        if listener.origin != Origin::Server || listens {
            return error(libc::EADDRINUSE);
        }
        let socket = listener.socket.as_fd().try_clone_to_owned()?;
        listener.close()?;
        self.spare.push(place(id));
        Ok(socket)
    }

    /// Closes a listener that a server made. Without descriptors it stays, and is closed when somebody wants the address.
    pub fn close(&mut self, id: ListenerId, policy: Policy, context: &Context) -> bool {
        let listened = self.listening.remove(&id);
        let Some(listener) = self.find_mut(id) else { return false };
        if policy == Policy::None {
            // A keeper has a duplicate.
            sock::stop_listening(listener.socket.as_fd());
        }
        let (address, port) = (listener.address.clone(), listener.port);
        if listener.close().is_err() {
            return false;
        }
        let now = Instant::now();
        self.lately.retain(|&(_, at)| now.duration_since(at) < LATELY);
        self.lately.extend(port.map(|port| (port, now)));
        self.closing.extend(port.map(|port| (port, id)));
        self.spare.push(place(id));
        context.orders.send(Order::Forget { service: self.service, id });
        if listened {
            info!(name: "closing", service = %self.name, %address, "no longer listening: the server has closed it");
        }
        true
    }

    /// The accept thread has closed it, too.
    pub fn forgotten(&mut self, id: ListenerId) {
        self.closing.retain(|&(_, closing)| closing != id);
    }

    /// Whether a socket of that port that is to be closed is still open.
    pub fn is_closing(&self, port: u16) -> bool {
        self.closing.iter().any(|&(closing, _)| closing == port)
    }

    /// Whether a listener of that port was closed a moment ago.
    pub fn closed_lately(&self, port: u16) -> bool {
        self.lately.iter().any(|&(closed, at)| closed == port && at.elapsed() < LATELY)
    }

    /// Takes other `--listen`s. Those that are no longer wanted stay until the workers that serve them are replaced.
    pub fn reconfigure(&mut self, before: &[Listen], now: &[Listen], added: Vec<Listener>) {
        for listener in &mut self.all {
            let asked = |listens: &[Listen]| listens.iter().find(|listen| listener.serves(&listen.address)).cloned();
            match (listener.origin, asked(before), asked(now)) {
                (Origin::Flag | Origin::Leaving, _, Some(wanted)) => {
                    listener.origin = Origin::Flag;
                    listener.app_port = wanted.app_port;
                }
                // What was passed to us without being asked for stays.
                (Origin::Flag, Some(_), None) => listener.origin = Origin::Leaving,
                _ => {}
            }
        }
        self.all.extend(added);
    }

    /// The workers that come serve no port.
    pub fn all_leave(&mut self) {
        let left = self.all.iter_mut().filter(|listener| listener.origin != Origin::GivenBack);
        left.for_each(|listener| listener.origin = Origin::Leaving);
    }

    /// All workers are new: what they do not serve is closed.
    pub fn close_leaving(&mut self, policy: Policy, context: &Context) {
        for (id, listener) in self.all.iter_mut().enumerate().filter(|(_, one)| one.origin == Origin::Leaving) {
            info!(name: "closing", service = %self.name, address = %listener.address, "closing");
            self.listening.remove(&id);
            context.orders.send(Order::CloseListener { service: self.service, id });
            if policy == Policy::None {
                sock::stop_listening(listener.socket.as_fd());
            }
            // Fails only without descriptors; then the socket lives until the daemon ends.
            let _ = listener.close();
        }
    }

    /// In a stop: the accept thread closes each when it has taken its backlog.
    pub fn clear(&mut self) {
        self.all.clear();
    }
}

fn id(at: usize, listener: &Listener) -> ListenerId {
    listener.generation * PLACES + at
}
