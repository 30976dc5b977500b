//! Listeners that servers made and have closed again: when they go.
//!
//! Clients of a server that restarts wait, so its listener outlives it. A server that lives and has closed its listener
//! does not want it: natively its clients would be refused.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::binding::{Binder, find, find_mut, ids};
use crate::accept::orders::{ListenerId, Order, place};
use crate::direct::attach::Secret;
use crate::limited::Limited;
use crate::listener::{Listener, Origin};
use crate::service::pausing::Paused;
use crate::service::slot::Slot;
use crate::service::{Context, Service};
use crate::sys::{process, sock};
use crate::worker::server::StopRequest;

/// A server that closes its listener to open it anew has so long; one that closes it to end, too.
const GRACE: Duration = Duration::from_secs(1);

/// A copy of a closed listener, which came with a request, is closed within this, if nothing holds that up.
const LATELY: Duration = Duration::from_millis(500);

/// What there is to know of listeners that servers make.
#[derive(Debug, Default)]
pub struct Opened {
    /// Servers that bind an address at this moment.
    pub(in crate::service) binders: Vec<Binder>,
    /// Places of listeners that are gone.
    pub(in crate::service) spare: Vec<usize>,
    /// Listeners that were closed and may go.
    unused: Vec<Unused>,
    /// Processes whose end is to be watched, each with its worker's proof.
    pub watch: Vec<(u32, Secret)>,
    /// Listeners that are being closed, with their ports: until the accept thread has said that it has closed them, too,
    /// these are taken.
    closing: Vec<(u16, ListenerId)>,
    /// Ports whose listeners were closed a moment ago: a copy of one may wait to be closed.
    lately: Vec<(u16, Instant)>,
    /// Warnings of a worker with too many listeners.
    pub(in crate::service) crowded: Limited,
}

#[derive(Debug)]
struct Unused {
    id: ListenerId,
    /// Who closed it.
    pid: u32,
    process: Arc<OwnedFd>,
    until: Instant,
}

impl Opened {
    /// It is used again.
    pub(in crate::service) fn uses(&mut self, id: ListenerId) {
        self.unused.retain(|unused| unused.id != id);
    }

    fn next_due(&self) -> Option<Instant> {
        self.unused.iter().map(|unused| unused.until).min()
    }

    /// Whether a socket of that port that is to be closed is still open.
    pub(in crate::service) fn is_closing(&self, port: u16) -> bool {
        self.closing.iter().any(|&(closing, _)| closing == port)
    }

    /// Whether a listener of that port was closed a moment ago.
    pub(in crate::service) fn closed_lately(&self, port: u16, now: Instant) -> bool {
        self.lately.iter().any(|&(closed, at)| closed == port && now.duration_since(at) < LATELY)
    }

    fn note_closed(&mut self, port: u16, now: Instant) {
        self.lately.retain(|&(_, at)| now.duration_since(at) < LATELY);
        self.lately.push((port, now));
    }

    /// It is not.
    pub(in crate::service) fn is_closed(&mut self, id: ListenerId) {
        self.closing.retain(|&(_, closing)| closing != id);
    }
}

impl Service {
    /// Processes with stand-ins whose end nobody watches yet, each with its worker's secret.
    pub fn take_unwatched(&mut self) -> Vec<(u32, Secret)> {
        std::mem::take(&mut self.opened.watch)
    }

    /// A process has closed a listener, and its worker has it no more.
    pub(in crate::service) fn closed(&mut self, at: usize, id: ListenerId, pid: u32, context: &Context, now: Instant) {
        let by_server = find(&self.listeners, id).is_some_and(|listener| listener.origin == Origin::Server);
        if !by_server || self.stop.is_some() || self.paused != Paused::No || self.is_had(id, Whose::Current) {
            return;
        }
        if !self.listening.contains(&id) {
            return self.close_unused(id, context);
        }
        if self.slots[at].server().is_none_or(|server| server.stop_request != StopRequest::NotSent) {
            return;
        }
        let known = self.opened.unused.iter().find(|unused| unused.pid == pid && !process::has_ended(&unused.process));
        let process =
            known.map(|unused| unused.process.clone()).or_else(|| process::pidfd_open(pid).ok().map(Arc::new));
        if let Some(process) = process {
            self.opened.uses(id);
            self.opened.unused.push(Unused { id, pid, process, until: now + GRACE });
        }
    }

    /// Closes what was closed by a process that lives on.
    pub(in crate::service) fn step_unused(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let next = self.opened.next_due()?;
        if now < next {
            return Some(next);
        }
        let (due, rest) = std::mem::take(&mut self.opened.unused).into_iter().partition(|unused| unused.until <= now);
        self.opened.unused = rest;
        let due: Vec<Unused> = due;
        for unused in due {
            if self.is_had(unused.id, Whose::Current) || process::has_ended(&unused.process) || self.stop.is_some() {
                continue;
            }
            match self.is_had(unused.id, Whose::Any) {
                // One on its way out may come back.
                true => self.opened.unused.push(Unused { until: now + GRACE, ..unused }),
                false => self.close_unused(unused.id, context),
            }
        }
        self.opened.next_due()
    }

    /// Closes what no worker has and what is in the way of a server that binds now.
    pub(in crate::service) fn make_way(&mut self, address: SocketAddr, context: &Context) {
        let conflicts = |listener: &Listener| {
            if listener.origin != Origin::Server || listener.port != Some(address.port()) {
                return false;
            }
            let Some(own) = sock::local_addr(listener.socket.as_fd()) else { return false };
            own.ip() == address.ip() || own.ip().is_unspecified() || address.ip().is_unspecified()
        };
        let ids: Vec<_> = ids(&self.listeners).filter(|(_, listener)| conflicts(listener)).map(|(id, _)| id).collect();
        for id in ids {
            if !self.is_had(id, Whose::Any) {
                self.close_unused(id, context);
            }
        }
    }

    fn is_had(&self, id: ListenerId, whose: Whose) -> bool {
        let current = self.slots.iter().filter_map(|slot| slot.attachment());
        let of = |slot: &Slot| slot.retiring.iter().any(|old| old.worker.attachment().is_some_and(|old| old.has(id)));
        current.into_iter().any(|direct| direct.has(id)) || (whose == Whose::Any && self.slots.iter().any(of))
    }

    fn close_unused(&mut self, id: ListenerId, context: &Context) {
        let heard = self.listening.remove(&id);
        let Some(listener) = find_mut(&mut self.listeners, id) else { return };
        let (address, port) = (listener.address.clone(), listener.port);
        if listener.close().is_err() {
            // Without descriptors; it is tried again when somebody wants the address.
            return;
        }
        self.opened.uses(id);
        self.opened.closing.extend(port.map(|port| (port, id)));
        port.iter().for_each(|&port| self.opened.note_closed(port, Instant::now()));
        self.opened.spare.push(place(id));
        self.node.forget(id);
        context.orders.send(Order::Forget { service: self.id, id });
        if heard {
            info!(service = %self.config.name, %address, "no longer listening: the server has closed it");
        }
    }
}

/// Whose listeners are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those of the workers in charge.
    Current,
    /// Also those of workers on their way out.
    Any,
}
