//! The workers online and the policy's view of them, kept up to date so that a turn costs what happens in it and not how
//! many workers there are: only workers with hand-offs in flight are re-examined. Connections end without the accept
//! thread; how many are open is read where the choice depends on it.

mod lines;
mod record;

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hash::{Key, home};
use super::orders::{ListenerId, SlotStats, WorkerId, place};
use super::policy::{Candidate, MAX_OWED, Policy, Turn, pick, takes_turns};
use super::shares::Shares;
use super::worker::{Returned, Worker};
use crate::handoff::{Client, QueueTx};

/// Up to so many workers, `rr` reads all loads for each choice that needs them.
const FEW: usize = 16;
/// Beyond, this long after the last time, times the number of workers, at the earliest.
const READ_EACH: Duration = Duration::from_micros(1);

/// The workers of a service, by slot and generation.
#[derive(Default)]
pub(super) struct WorkerSet {
    workers: Vec<Worker>,
    /// The policy's view of each.
    views: Vec<Candidate>,
    /// Indices of the workers to be re-examined in the next turn, and for each worker whether it is among them.
    busy: Vec<usize>,
    is_busy: Vec<bool>,
    /// Indices of the workers with a batch to send in this turn.
    touched: Vec<usize>,
    /// How many workers serve each listener, by its place: all of them, and those with a weight above 0.
    serving: Vec<(usize, usize)>,
    shares: Shares,
    turn: Turn,
    /// When the open connections of all workers were last read.
    read_at: Option<Instant>,
    /// Under `rr`: open connections count. Not once any worker's number is an estimate: it may only ever grow.
    trusted: bool,
    /// All were started to be told what PROXY headers say.
    translate: bool,
    /// Connections in all workers' lines.
    in_line: usize,
    /// Workers may have been asked to ring the bell.
    rings: bool,
    /// Workers that have been given as many connections as they may get, to be reported.
    served: Vec<WorkerId>,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// To the worker at this index, which counts it already.
    Gets(usize),
    /// Where it is hashed: into the line of the worker at this index.
    Waits(usize),
    /// No worker may get one.
    NoWorker,
}

/// A stalled worker, its slot's counters, and its queues with something pending.
type Stalled = (WorkerId, Arc<SlotStats>, Vec<(ListenerId, Arc<QueueTx>)>);

impl Deref for WorkerSet {
    type Target = [Worker];

    fn deref(&self) -> &[Worker] {
        &self.workers
    }
}

impl WorkerSet {
    /// Beside a worker that is past its `slow_start`, or in it, the worker begins with a small share.
    pub fn insert(&mut self, worker: Worker, slow_start: Duration, now: Instant) {
        let at = self.workers.partition_point(|other| other.id < worker.id);
        let weight = self.shares.weight(worker.id.slot);
        self.views.insert(at, Candidate { weight, ..worker.candidate(now) });
        self.shares.joins(worker.id, &self.workers, slow_start, now);
        self.workers.insert(at, worker);
        self.turn.inserted(at);
        self.changed();
    }

    pub fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let at = self.position(id)?;
        self.views.remove(at);
        let worker = self.workers.remove(at);
        self.in_line -= worker.line.len();
        self.turn.removed(at);
        self.changed();
        Some(worker)
    }

    pub fn clear(&mut self) {
        self.workers.clear();
        self.views.clear();
        self.changed();
    }

    /// A worker that is online listens on one more listener.
    pub fn listens(&mut self, id: WorkerId, listener: ListenerId, queue: Arc<QueueTx>) {
        if let Some(at) = self.position(id) {
            self.workers[at].listens(listener, queue);
            self.changed();
        }
    }

    /// A worker has closed a listener: gives up its queue.
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

    /// After a rare change: rebuilds indices and counts, and has every worker re-examined once.
    fn changed(&mut self) {
        self.all_busy();
        self.touched.clear();
        self.shares.set((&self.workers, &mut self.views), &mut self.turn, None);
        self.views.iter_mut().for_each(|view| view.credit = 0);
        self.read_at = None;
        self.turn.loads_changed();
        self.trusted = true;
        self.translate = self.workers.iter().all(Worker::translates);
        let places = self.workers.iter().map(Worker::places).max().unwrap_or(0);
        let (workers, views) = (&self.workers, &self.views);
        let serving = |at| {
            let serving = workers.iter().zip(views).filter(move |(worker, _)| worker.serves_at(at));
            serving.fold((0, 0), |(all, weighty), (_, view)| (all + 1, weighty + usize::from(view.weight > 0)))
        };
        self.serving.clear();
        self.serving.extend((0..places).map(serving));
    }

    fn all_busy(&mut self) {
        self.busy.clear();
        self.busy.extend(0..self.workers.len());
        self.is_busy.clear();
        self.is_busy.resize(self.workers.len(), true);
    }

    /// Sets the weight of a slot's workers, present and future. `slot` is below the limit of `--instances`.
    pub fn set_weight(&mut self, slot: u32, weight: u16) {
        self.shares.set_weight(slot, weight);
        let of_slot = self.workers.iter().zip(&mut self.views).filter(|(worker, _)| worker.id.slot == slot);
        of_slot.for_each(|(_, view)| view.weight = weight);
        self.changed();
    }

    pub fn position(&self, id: WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == id)
    }

    fn serving(&self, listener: ListenerId) -> (usize, usize) {
        self.serving.get(place(listener)).copied().unwrap_or_default()
    }

    /// Whether a worker with a weight above 0 serves a listener now.
    pub fn is_served(&self, listener: ListenerId) -> bool {
        self.serving(listener).1 > 0
    }

    /// Workers with hand-offs in flight, or watched for another reason.
    pub fn busy(&self) -> impl Iterator<Item = &Worker> {
        self.busy.iter().filter_map(|&at| self.workers.get(at))
    }

    pub fn each_busy(&mut self, mut act: impl FnMut(&mut Worker)) {
        for &at in &self.busy {
            act(&mut self.workers[at]);
        }
    }

    /// Refreshes the busy workers; under `least-conn` all of them, since connections end without our doing.
    pub fn refresh(&mut self, policy: Policy, slow_start: Duration, now: Instant) {
        if self.shares.any_warming() {
            self.shares.set((&self.workers, &mut self.views), &mut self.turn, Some((slow_start, now)));
        }
        if policy == Policy::LeastConn {
            self.all_busy();
        }
        let mut busy = std::mem::take(&mut self.busy);
        busy.retain(|&at| {
            self.look_at(at, now);
            // One that is full gets room without our doing.
            self.is_busy[at] = self.workers[at].is_busy() || self.views[at].room == 0;
            self.is_busy[at]
        });
        self.busy = busy;
        self.distrust(policy);
    }

    /// Under `rr`: no open connections count once the number of any worker is an estimate.
    fn distrust(&mut self, policy: Policy) {
        if !self.trusted && policy != Policy::LeastConn {
            self.views.iter_mut().for_each(|view| view.open = 0);
            self.turn.loads_changed();
        }
    }

    /// Brings the policy's view of the worker at an index up to date.
    fn look_at(&mut self, at: usize, now: Instant) {
        let (worker, view) = (&mut self.workers[at], &mut self.views[at]);
        worker.refresh();
        self.trusted &= !worker.is_estimate();
        let Candidate { owed, weight, share, credit, newcomer, .. } = *view;
        *view = Candidate { owed, weight, share, credit, newcomer, ..worker.candidate(now) };
        self.turn.fell(view);
    }

    /// Reads the loads that a choice in turn depends on: that of the worker whose turn it is and, unless it has nothing in
    /// hand (or shares differ), those of all others: with many workers at most once per [`READ_EACH`] and worker.
    fn read_loads(&mut self, now: Instant) {
        let Some(due) = self.turn.due(&self.views).filter(|_| self.trusted) else { return };
        self.views[due].open = self.workers[due].open();
        self.turn.fell(&self.views[due]);
        if self.views[due].load() == 0 && !self.turn.uneven {
            return;
        }
        let count = self.workers.len();
        if count > FEW {
            let valid = READ_EACH * u32::try_from(count).unwrap_or(u32::MAX);
            if self.read_at.is_some_and(|at| now.duration_since(at) < valid) {
                return;
            }
            self.read_at = Some(now);
        }
        for (view, worker) in self.views.iter_mut().zip(&self.workers) {
            view.open = worker.open();
        }
        self.turn.loads_changed();
    }

    /// Whether all workers can be told what PROXY headers say; without a worker, those that come can.
    pub fn translate(&self) -> bool {
        self.translate || self.workers.is_empty()
    }

    /// Whether a worker has room for a connection.
    pub fn any_free(&self) -> bool {
        self.views.iter().any(Candidate::eligible)
    }

    fn another_is_free(&self, than: usize) -> bool {
        self.views.iter().enumerate().any(|(at, view)| at != than && view.eligible() && !view.behind)
    }

    /// As [`WorkerSet::another_is_free`], but one that has no room now will do.
    fn another_keeps_up(&self, than: usize) -> bool {
        let keeps_up = |view: &Candidate| view.weight > 0 && !view.stalled && !view.behind;
        self.views.iter().enumerate().any(|(at, view)| at != than && keeps_up(view))
    }

    /// Puts a connection into the batch of the worker at an index from [`Choice::Gets`].
    pub fn push(&mut self, at: usize, listener: ListenerId, socket: OwnedFd, client: Client) {
        self.workers[at].push(listener, socket, client);
        self.touched.push(at);
        if !self.is_busy[at] {
            self.is_busy[at] = true;
            self.busy.push(at);
        }
    }

    /// Chooses a worker that has room. With `may_wait` (where it is hashed) only the worker that the key belongs to may get
    /// the connection.
    pub fn choose(
        &mut self,
        policy: Policy,
        listener: ListenerId,
        key: Option<Key>,
        may_wait: bool,
        now: Instant,
    ) -> Choice {
        if takes_turns(policy, key) {
            self.read_loads(now);
        }
        if self.serving(listener).0 == self.workers.len() {
            let own = if may_wait { key.and_then(|key| home(&self.views, &self.turn, key)) } else { None };
            return match own {
                Some(at) if self.has_to_wait(at) => Choice::Waits(at),
                Some(at) => {
                    self.views[at].gets_one();
                    Choice::Gets(at)
                }
                None => pick(policy, &mut self.views, &mut self.turn, key).map_or(Choice::NoWorker, Choice::Gets),
            };
        }
        // Rare: some servers do not listen here. They count as stalled for this choice.
        self.turn.loads_changed();
        let mut views = self.views.clone();
        for (view, worker) in views.iter_mut().zip(&self.workers) {
            view.stalled |= !worker.serves_at(place(listener));
        }
        if may_wait
            && let Some(at) = key.and_then(|key| home(&views, &self.turn, key))
            && self.workers[at].serves_at(place(listener))
            && self.has_to_wait(at)
        {
            return Choice::Waits(at);
        }
        let chosen = pick(policy, &mut views, &mut self.turn, key);
        self.turn.loads_changed();
        let Some(at) = chosen else { return Choice::NoWorker };
        self.views.iter_mut().zip(&views).for_each(|(view, after)| view.credit = after.credit);
        self.views[at] = views[at];
        Choice::Gets(at)
    }

    /// Whether a connection that belongs to the worker at an index has to wait for it.
    fn has_to_wait(&self, at: usize) -> bool {
        let view = &self.views[at];
        view.stalled || !view.has_room() || !self.workers[at].line.is_empty()
    }

    /// The last worker of a slot, which counts a connection more, if it has room.
    pub fn newest_of(&mut self, slot: u32, listener: ListenerId) -> Option<usize> {
        let at = self.workers.iter().rposition(|worker| worker.id.slot == slot)?;
        let view = self.views.get_mut(at).filter(|view| view.eligible())?;
        if !self.workers[at].serves_at(place(listener)) {
            return None;
        }
        view.gets_one();
        Some(at)
    }

    /// Sends the batches. Returns whether a worker took less than it was given; the rest is appended to `returned`.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> bool {
        let mut refused = false;
        for at in self.touched.drain(..) {
            // EAGAIN and ETOOMANYREFS are back-pressure; after any error the sockets are placed again.
            let worker = &mut self.workers[at];
            refused |= worker.flush(now, returned).is_err();
            if worker.has_served() {
                self.served.push(worker.id);
            }
        }
        refused
    }

    pub fn count_served(&mut self, id: WorkerId, limit: u64) {
        if let Some(at) = self.position(id) {
            self.workers[at].count_served(limit);
        }
    }

    /// Workers to be reported as having been given as many connections as they may get.
    pub fn take_served(&mut self) -> impl Iterator<Item = WorkerId> {
        self.served.drain(..)
    }

    /// The rescue thread has emptied a queue: the worker is owed the turns it did not have.
    pub fn rescued(&mut self, id: WorkerId, sockets: usize) {
        if let Some(at) = self.position(id) {
            self.workers[at].rescued(sockets);
            let owed = u32::try_from(sockets).unwrap_or(MAX_OWED);
            self.views[at].owed = self.views[at].owed.saturating_add(owed).min(MAX_OWED);
        }
    }

    /// Marks `overdue` workers as stalled, as long as another one is free, and returns their queues for a rescue. While
    /// `clients_wait` in the line, they would take every room before: then it is enough that another one keeps up, and those
    /// taken back go to the head of the line.
    pub fn stall(&mut self, clients_wait: bool, overdue: impl Fn(&Worker) -> bool) -> Vec<Stalled> {
        let mut stalled = Vec::new();
        for n in 0..self.busy.len() {
            let at = self.busy[n];
            let taken_over = if clients_wait { self.another_keeps_up(at) } else { self.another_is_free(at) };
            if overdue(&self.workers[at]) && taken_over {
                self.views[at].stalled = true;
                let worker = &mut self.workers[at];
                stalled.push((worker.id, worker.stats.clone(), worker.stall()));
            }
        }
        stalled
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "worker_set_tests.rs"]
mod tests;
