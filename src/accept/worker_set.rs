//! The workers online and the policy's view of them, kept up so that a turn costs what happens in it and not how many
//! workers there are: only who has something on its way is looked at again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::dispatcher::Held;
use super::orders::{ListenerId, Rules, WorkerId, place};
use super::policy::{Candidate, MAX_OWED, Policy, Turn, home, pick};
use super::worker::{Returned, Worker};
use crate::handoff::QueueTx;
use crate::sys::sock::PeerAddress;

/// The workers of a service.
#[derive(Default)]
pub(super) struct WorkerSet {
    /// By slot and generation.
    workers: Vec<Worker>,
    /// The policy's view of each.
    views: Vec<Candidate>,
    /// Who has to be looked at, and whether it is in that list.
    busy: Vec<usize>,
    is_busy: Vec<bool>,
    /// Who got something in this turn.
    touched: Vec<usize>,
    /// How many serve each listener, by its place.
    serving: Vec<usize>,
    /// The policy's rotation.
    turn: Turn,
    /// Connections in all workers' lines.
    in_line: usize,
}

/// What became of a connection that was to be placed.
pub(super) enum Placed {
    /// It is in a worker's batch.
    Sent,
    /// Under `ip-hash`: it shall wait for the worker at this index.
    Waits(usize, OwnedFd),
    /// No worker may get one.
    NoRoom(OwnedFd),
}

/// A choice.
enum Choice {
    Gets(usize),
    Waits(usize),
    Nobody,
}

impl WorkerSet {
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// A worker came online.
    pub fn insert(&mut self, worker: Worker, policy: Policy, now: Instant) {
        let at = self.workers.partition_point(|other| other.id < worker.id);
        self.views.insert(at, worker.candidate(policy, now));
        self.workers.insert(at, worker);
        self.turn.inserted(at);
        self.changed();
    }

    /// One leaves.
    pub fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let at = self.position(id)?;
        self.views.remove(at);
        let worker = self.workers.remove(at);
        self.in_line -= worker.line.len();
        self.turn.removed(at);
        self.changed();
        Some(worker)
    }

    /// All leave.
    pub fn clear(&mut self) {
        self.workers.clear();
        self.views.clear();
        self.changed();
    }

    /// A worker listens on one more listener.
    pub fn listens(&mut self, id: WorkerId, listener: ListenerId, queue: Arc<QueueTx>) {
        if let Some(at) = self.position(id) {
            self.workers[at].listens(listener, queue);
            self.changed();
        }
    }

    /// One has closed a listener: gives up its queue.
    pub fn unlistens(&mut self, id: WorkerId, listener: ListenerId) -> Option<(&Worker, Arc<QueueTx>)> {
        let at = self.position(id)?;
        let queue = self.workers[at].unlistens(listener)?;
        self.changed();
        Some((&self.workers[at], queue))
    }

    /// A listener is gone for good.
    pub fn forget(&mut self, listener: ListenerId) {
        for worker in &mut self.workers {
            worker.unlistens(listener);
        }
        self.changed();
    }

    /// Rare changes: indices and counts are made anew, and everybody is looked at once.
    fn changed(&mut self) {
        self.everybody_is_busy();
        self.touched.clear();
        let most = self.workers.iter().map(Worker::max_listeners).max().unwrap_or(0);
        self.serving.clear();
        self.serving.extend((0..most).map(|at| self.workers.iter().filter(|worker| worker.serves_at(at)).count()));
    }

    fn everybody_is_busy(&mut self) {
        self.busy.clear();
        self.busy.extend(0..self.workers.len());
        self.is_busy.clear();
        self.is_busy.resize(self.workers.len(), true);
    }

    fn position(&self, id: WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == id)
    }

    fn serve(&self, listener: ListenerId) -> usize {
        self.serving.get(place(listener)).copied().unwrap_or(0)
    }

    /// Whether a worker serves a listener now.
    pub fn is_served(&self, listener: ListenerId) -> bool {
        self.serve(listener) > 0
    }

    /// Those who have something on its way, or are watched for another reason.
    pub fn busy(&self) -> impl Iterator<Item = &Worker> {
        self.busy.iter().filter_map(|&at| self.workers.get(at))
    }

    /// Connections that they have, received or about to be.
    pub fn connection_count(&self) -> u64 {
        self.workers.iter().map(Worker::connection_count).sum()
    }

    /// Looks at who is busy; under `least-conn` at everybody, since connections end without us.
    pub fn look(&mut self, policy: Policy, now: Instant) {
        if policy == Policy::LeastConn {
            self.everybody_is_busy();
        }
        let Self { workers, views, busy, is_busy, .. } = self;
        busy.retain(|&at| {
            let (worker, view) = (&mut workers[at], &mut views[at]);
            worker.refresh();
            *view = Candidate { owed: view.owed, ..worker.candidate(policy, now) };
            is_busy[at] = worker.is_busy();
            is_busy[at]
        });
    }

    /// Whether anybody may get a connection.
    pub fn any_free(&self) -> bool {
        self.views.iter().any(|view| !view.stalled && view.pending < view.cap)
    }

    fn another_is_free(&self, than: usize) -> bool {
        let free = |view: &Candidate| !view.stalled && !view.behind && view.pending < view.cap;
        self.views.iter().enumerate().any(|(at, view)| at != than && free(view))
    }

    /// Puts a connection into a worker's batch, if one may get it. With `may_wait` (under `ip-hash`) only the worker that
    /// the client belongs to is asked.
    pub fn place(
        &mut self,
        policy: Policy,
        listener: ListenerId,
        socket: OwnedFd,
        peer: PeerAddress,
        may_wait: bool,
    ) -> Placed {
        match self.choose(policy, listener, peer, may_wait) {
            Choice::Gets(at) => {
                self.push(at, listener, socket, peer);
                Placed::Sent
            }
            Choice::Waits(at) => Placed::Waits(at, socket),
            Choice::Nobody => Placed::NoRoom(socket),
        }
    }

    fn push(&mut self, at: usize, listener: ListenerId, socket: OwnedFd, peer: PeerAddress) {
        self.workers[at].push(listener, socket, peer);
        self.touched.push(at);
        if !self.is_busy[at] {
            self.is_busy[at] = true;
            self.busy.push(at);
        }
    }

    fn choose(&mut self, policy: Policy, listener: ListenerId, peer: PeerAddress, may_wait: bool) -> Choice {
        let client = peer.ip();
        if self.serve(listener) == self.workers.len() {
            let own = if may_wait { client.and_then(|client| home(&self.views, client)) } else { None };
            return match own {
                Some(at) if self.views[at].pending >= self.views[at].cap || !self.workers[at].line.is_empty() => {
                    Choice::Waits(at)
                }
                Some(at) => {
                    self.views[at].pending += 1;
                    Choice::Gets(at)
                }
                None => pick(policy, &mut self.views, &mut self.turn, client).map_or(Choice::Nobody, Choice::Gets),
            };
        }
        // Rare: a server does not (yet, or any more) listen here. It counts as stalled for this choice.
        let mut those_here = self.views.clone();
        for (view, worker) in those_here.iter_mut().zip(&self.workers) {
            view.stalled |= !worker.serves(listener);
        }
        if may_wait
            && let Some(at) = client.and_then(|client| home(&those_here, client))
            && (those_here[at].pending >= those_here[at].cap || !self.workers[at].line.is_empty())
        {
            return Choice::Waits(at);
        }
        let Some(at) = pick(policy, &mut those_here, &mut self.turn, client) else { return Choice::Nobody };
        self.views[at] = those_here[at];
        Choice::Gets(at)
    }

    /// Connections that wait in the workers' lines.
    pub fn in_line(&self) -> usize {
        self.in_line
    }

    /// A connection waits for the worker at an index that [`WorkerSet::place`] gave.
    pub fn line_up(&mut self, at: usize, held: Held) {
        self.workers[at].line.push_back(held);
        self.in_line += 1;
    }

    /// Empties all lines.
    pub fn take_lines(&mut self) -> Vec<Held> {
        self.in_line = 0;
        self.workers.iter_mut().flat_map(|worker| worker.line.drain(..)).collect()
    }

    /// Connections in a worker's line go into its batch as soon as it has room; after `hash_wait`, or once the worker is
    /// stalled, into another worker's. Returns those for which nobody had room within the queue timeout.
    pub fn serve_lines(&mut self, rules: &Rules, now: Instant) -> Vec<Held> {
        let mut overdue = Vec::new();
        if self.in_line == 0 {
            return overdue;
        }
        for at in 0..self.workers.len() {
            while let Some(held) = self.workers[at].line.pop_front() {
                self.in_line -= 1;
                let view = &self.views[at];
                let own = !view.stalled && self.workers[at].serves(held.listener) && rules.policy == Policy::IpHash;
                if own && view.pending < view.cap {
                    self.views[at].pending += 1;
                    self.push(at, held.listener, held.socket, held.peer);
                    continue;
                }
                let waited = now.duration_since(held.since);
                let patient = own && waited < rules.hash_wait;
                let choice =
                    if patient { Choice::Nobody } else { self.choose(rules.policy, held.listener, held.peer, false) };
                match choice {
                    Choice::Gets(other) => self.push(other, held.listener, held.socket, held.peer),
                    Choice::Waits(_) | Choice::Nobody if !patient && waited >= rules.queue_timeout => {
                        overdue.push(held)
                    }
                    Choice::Waits(_) | Choice::Nobody => {
                        self.workers[at].line.push_front(held);
                        self.in_line += 1;
                        break;
                    }
                }
            }
        }
        overdue
    }

    /// Sends the batches. What could not be sent is appended to `returned`; whether there was such.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> bool {
        let mut refused = false;
        for at in self.touched.drain(..) {
            // EAGAIN and ETOOMANYREFS: the kernel's own back-pressure. Nothing is lost, all is tried again.
            refused |= self.workers[at].flush(now, returned).is_err();
        }
        refused
    }

    /// The rescue thread has emptied a queue: turns that the worker did not have.
    pub fn rescued(&mut self, id: WorkerId, sockets: usize) {
        if let Some(at) = self.position(id) {
            self.workers[at].rescued(sockets);
            let owed = u32::try_from(sockets).unwrap_or(MAX_OWED);
            self.views[at].owed = self.views[at].owed.saturating_add(owed).min(MAX_OWED);
        }
    }

    /// Calls `act` with each who is busy.
    pub fn each_busy(&mut self, mut act: impl FnMut(&mut Worker)) {
        for &at in &self.busy {
            act(&mut self.workers[at]);
        }
    }

    /// The workers that `overdue` names while another one is free, marked as stalled.
    pub fn stall(&mut self, overdue: impl Fn(&Worker) -> bool, mut act: impl FnMut(&mut Worker)) {
        for n in 0..self.busy.len() {
            let at = self.busy[n];
            if overdue(&self.workers[at]) && self.another_is_free(at) {
                self.views[at].stalled = true;
                act(&mut self.workers[at]);
            }
        }
    }
}
