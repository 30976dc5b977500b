//! Listeners that servers made and have closed again: when they go.
//!
//! Clients of a server that restarts wait, so its listener outlives it. A server that lives and has closed its listener, or
//! lost those of its processes that had it, does not want it: natively its clients would be refused.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Handler, State};
use crate::accept::orders::{ListenerId, WorkerId};
use crate::listener::Origin;
use crate::slot::Slot;
use crate::sys::process;
use crate::worker::Worker;
use crate::worker::server::StopRequest;

/// A server that closes its listener to open it anew has so long; one that closes it to end, too.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Unused {
    pub(super) id: ListenerId,
    /// The last one that had it.
    pub(super) worker: WorkerId,
    pub(super) until: Instant,
}

impl State {
    /// It is used again.
    pub(super) fn uses(&mut self, id: ListenerId) {
        self.unused.retain(|unused| unused.id != id);
    }

    fn next_unused(&self) -> Option<Instant> {
        self.unused.iter().map(|unused| unused.until).min()
    }
}

impl Handler<'_> {
    /// A worker has a listener no more: its processes have closed it, or those that had it have ended.
    pub(super) fn closed(&mut self, at: usize, id: ListenerId, now: Instant) {
        let by_server = self.listeners.find(id).is_some_and(|listener| listener.origin == Origin::Server);
        if !by_server || self.stopping || self.paused || self.is_had(id, Whose::Current) {
            return;
        }
        if !self.listeners.listens(id) {
            return self.close_unused(id);
        }
        let Some(worker) = self.slots[at].current.as_ref().filter(|worker| lives_on(worker)) else { return };
        self.state.uses(id);
        self.state.unused.push(Unused { id, worker: worker.id, until: now + GRACE });
    }

    /// Closes what is not wanted by a server that lives on.
    pub(super) fn step_unused(&mut self, now: Instant) -> Option<Instant> {
        let next = self.state.next_unused()?;
        if now < next {
            return Some(next);
        }
        let (due, rest) = std::mem::take(&mut self.state.unused).into_iter().partition(|unused| unused.until <= now);
        self.state.unused = rest;
        let due: Vec<Unused> = due;
        for unused in due {
            let lives = self.slots.iter().flat_map(Slot::workers).any(|it| it.id == unused.worker && lives_on(it));
            if self.is_had(unused.id, Whose::Current) || !lives || self.stopping {
                continue;
            }
            match self.is_had(unused.id, Whose::Any) {
                // One on its way out may come back.
                true => self.state.unused.push(Unused { until: now + GRACE, ..unused }),
                false => self.close_unused(unused.id),
            }
        }
        self.state.next_unused()
    }

    /// Closes what no worker has and what is in the way of a server that binds now.
    pub(super) fn make_way(&mut self, address: SocketAddr) {
        for id in self.listeners.conflicts(address) {
            if !self.is_had(id, Whose::Any) {
                self.close_unused(id);
            }
        }
    }

    fn is_had(&self, id: ListenerId, whose: Whose) -> bool {
        let current = self.slots.iter().filter_map(|slot| slot.attachment());
        let of = |slot: &Slot| slot.retiring.iter().any(|old| old.worker.attachment().is_some_and(|old| old.has(id)));
        current.into_iter().any(|direct| direct.has(id)) || (whose == Whose::Any && self.slots.iter().any(of))
    }

    fn close_unused(&mut self, id: ListenerId) {
        if self.listeners.close(id, self.config.policy, self.context) {
            self.state.uses(id);
            self.state.node.forget(id);
        }
    }
}

/// Whether its server has not ended, nor been asked to: its end may be there before its SIGCHLD is read.
fn lives_on(worker: &Worker) -> bool {
    let runs = |pid| process::pidfd_open(pid).is_ok_and(|process| !process::has_ended(&process));
    worker.server().is_some_and(|server| server.stop_request == StopRequest::NotSent && runs(server.pid))
}

/// Whose listeners are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those of the workers in charge.
    Current,
    /// Also those of workers on their way out.
    Any,
}
