//! One service on the accept thread: its listeners, its workers, and the connections between the two.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::Poll;

use super::accepting::reset;
use super::orders::{
    AcceptedBy, ListenerId, Report, RescueKey, Rules, ServiceId, ServiceStats, SlotStats, WorkerId, place,
};
use super::policy::Policy;
use super::worker::{Returned, Worker};
use super::worker_set::{Placed, WorkerSet};
use super::{RescueJob, let_go, unwatch, watch};
use crate::handoff::QueueTx;
use crate::handoff::page::CountersPage;
use crate::handoff::rescue::Mark;
use crate::sys::sock::PeerAddress;

/// How soon a full house is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// Where the accept thread sends what it learns.
pub struct Reporter {
    pub rescue: Sender<RescueJob>,
    pub report: Box<dyn Fn(Report) + Send>,
}

impl Reporter {
    pub(super) fn send(&self, report: Report) {
        (self.report)(report);
    }
}

pub(super) struct Listener {
    /// Who has this place.
    pub(super) id: Option<ListenerId>,
    /// `None` once closed.
    pub(super) socket: Option<Arc<OwnedFd>>,
    pub(super) watched: bool,
    /// It leaves the service, once its backlog is empty.
    pub(super) closing: bool,
    /// An edge came and WouldBlock has not been seen since.
    pub(super) ready: bool,
    /// accept(2) failed with this errno and is tried again then.
    pub(super) trouble: Option<(i32, Instant)>,
}

/// A connection that was accepted (or taken back) and has no worker yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) listener: ListenerId,
    pub(super) socket: OwnedFd,
    pub(super) peer: PeerAddress,
    pub(super) since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// The backlog is being taken; the listeners close at its end.
    Stopping,
    Stopped,
    /// As `Stopping`; at its end the service may begin anew.
    Pausing,
}

/// A service's part of the accept thread.
pub struct ServiceDispatcher {
    pub(super) id: ServiceId,
    pub(super) rules: Rules,
    pub(super) stats: Arc<ServiceStats>,
    pub(super) listeners: Vec<Listener>,
    /// Workers online.
    pub(super) workers: WorkerSet,
    pub(super) held: VecDeque<Held>,
    /// Something held has a worker that serves it, and none that has room.
    pub(super) blocked: bool,
    /// Jobs that the rescue thread has not finished.
    pub(super) rescues: usize,
    /// No worker can take more: tried again then.
    pub(super) paused: Option<Instant>,
    pub(super) phase: Phase,
    /// How long nothing was accepted after the last time that accept(2) waited, and until when.
    pub(super) waited: Option<(Duration, Instant)>,
}

impl ServiceDispatcher {
    pub fn new(id: ServiceId, rules: Rules, stats: Arc<ServiceStats>) -> Self {
        Self {
            id,
            rules,
            stats,
            listeners: Vec::new(),
            workers: WorkerSet::default(),
            held: VecDeque::new(),
            blocked: false,
            rescues: 0,
            paused: None,
            phase: Phase::Serving,
            waited: None,
        }
    }

    pub fn add_listener(&mut self, poll: &Poll, id: ListenerId, socket: Arc<OwnedFd>) {
        let (watched, closing, ready, trouble) = (false, false, false, None);
        let new = |id, socket| Listener { id, socket, watched, closing, ready, trouble };
        let at = place(id);
        if self.listeners.len() <= at {
            self.listeners.resize_with(at + 1, || new(None, None));
        }
        self.listeners[at] = new(Some(id), Some(socket));
        self.watch_if_ours(poll);
    }

    /// Nobody accepts there for now.
    pub fn remove_listener(&mut self, poll: &Poll, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(place(id)).filter(|listener| listener.id == Some(id))
            && let Some(socket) = listener.socket.take()
        {
            unwatch(poll, &socket);
            let_go(socket);
            listener.watched = false;
            listener.ready = false;
        }
    }

    /// Nobody is left to wait for: clients that wait are reset.
    pub fn refuse(&mut self, reporter: &Reporter) {
        self.held.extend(self.workers.take_lines());
        let count = self.held.len();
        self.shed(count, reporter);
    }

    /// A listener is gone for good; the kernel resets who is in its backlog.
    pub fn forget_listener(&mut self, poll: &Poll, id: ListenerId) {
        self.remove_listener(poll, id);
        self.workers.forget(id);
        if let Some(listener) = self.listeners.get_mut(place(id)).filter(|listener| listener.id == Some(id)) {
            listener.id = None;
        }
        self.held.extend(self.workers.take_lines());
        let (gone, stay): (VecDeque<Held>, _) = self.held.drain(..).partition(|held| held.listener == id);
        self.held = stay;
        gone.into_iter().for_each(|held| reset(held.socket));
        self.stats.held.store(self.held.len() as u64, Relaxed);
    }

    /// Whether a listener is gone for good.
    pub(super) fn has_forgotten(&self, id: ListenerId) -> bool {
        self.listeners.get(place(id)).is_none_or(|listener| listener.id != Some(id))
    }

    /// Other rules; who accepts stays as it is.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = Rules { by: self.rules.by, ..rules };
    }

    /// A listener leaves the service: what lies in its backlog is taken first, where that is ours.
    pub fn close_listener(&mut self, poll: &Poll, id: ListenerId) {
        match (self.rules.by, self.listeners.get_mut(place(id))) {
            (AcceptedBy::Master, Some(listener)) if listener.socket.is_some() => {
                listener.closing = true;
                // One look at the backlog, whether or not an edge came.
                listener.ready = true;
            }
            _ => self.remove_listener(poll, id),
        }
    }

    /// Under `none` the listeners are the workers' own, as long as there is one.
    fn watch_if_ours(&mut self, poll: &Poll) {
        let ours = match self.rules.by {
            AcceptedBy::Master => true,
            AcceptedBy::Workers => self.workers.is_empty(),
            AcceptedBy::Servers => false,
        };
        for (at, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = &listener.socket else { continue };
            if ours && !listener.watched {
                match watch(poll, socket, self.id, at) {
                    Ok(()) => listener.watched = true,
                    Err(error) => listener.trouble = Some((error.raw_os_error().unwrap_or(0), Instant::now())),
                }
            } else if !ours && listener.watched {
                unwatch(poll, socket);
                listener.watched = false;
                listener.ready = false;
            }
        }
    }

    pub fn readable(&mut self, place: usize) {
        if let Some(listener) = self.listeners.get_mut(place) {
            // The same look at events may have brought the order to close it: what is closed is never accepted from.
            listener.ready |= listener.watched;
        }
    }

    pub fn online(
        &mut self,
        poll: &Poll,
        id: WorkerId,
        queues: Vec<(ListenerId, Arc<QueueTx>)>,
        page: Arc<CountersPage>,
        stats: Arc<SlotStats>,
        now: Instant,
    ) {
        self.workers.insert(Worker::new(id, queues, page, stats, self.rules.cap, now), self.rules.policy, now);
        self.paused = None;
        self.watch_if_ours(poll);
    }

    /// A worker listens on one more listener.
    pub fn listens(&mut self, id: WorkerId, listener: ListenerId, queue: Arc<QueueTx>) {
        self.workers.listens(id, listener, queue);
    }

    /// A worker has closed a listener.
    pub fn unlistens(&mut self, id: WorkerId, listener: ListenerId, reporter: &Reporter) {
        if let Some((worker, queue)) = self.workers.unlistens(id, listener) {
            let stats = worker.stats.clone();
            self.rescue(RescueKey { worker: id, listener, stats }, queue, Mark::None, reporter);
        }
    }

    fn remove(&mut self, poll: &Poll, id: WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(id)?;
        self.watch_if_ours(poll);
        Some(worker)
    }

    /// A live worker leaves: its queue is emptied by the rescue thread, then closed.
    pub fn drain(&mut self, poll: &Poll, id: WorkerId, reporter: &Reporter) {
        if let Some(mut worker) = self.remove(poll, id) {
            self.hold_line(&mut worker);
            let stats = worker.stats.clone();
            for (listener, queue) in worker.into_queues() {
                self.rescue(RescueKey { worker: id, listener, stats: stats.clone() }, queue, Mark::None, reporter);
            }
        }
    }

    /// A dead worker leaves: nobody else reads its queue, so it can be emptied here.
    pub fn gone(&mut self, poll: &Poll, id: WorkerId, now: Instant, reporter: &Reporter) {
        if let Some(mut worker) = self.remove(poll, id) {
            self.hold_line(&mut worker);
            let stats = worker.stats.clone();
            let mut count = 0;
            for (listener, queue) in worker.into_queues() {
                let sockets = queue.take_back();
                count += sockets.len();
                self.hold_rescued(listener, sockets, now);
            }
            self.count_rescued(id, &stats, count, reporter);
        }
    }

    /// One turn: snapshot, place what is held, accept a burst, hand off, look for stalled workers.
    pub fn turn(&mut self, poll: &Poll, now: Instant, reporter: &Reporter) {
        let idle = self.held.is_empty() && self.workers.in_line() == 0 && !self.has_ready();
        let waiting = self.workers.busy().any(|worker| {
            worker.waits_since().is_some()
                || worker.first_receive_due().is_some_and(|at| at <= now)
                || (self.rules.hang_timeout.is_some() && worker.stuck_since().is_some())
        });
        if self.phase == Phase::Stopped || (idle && !waiting && self.phase == Phase::Serving) {
            return;
        }
        self.workers.look(self.rules.policy, now);
        self.paused = None;
        let overdue = self.workers.serve_lines(&self.rules, now);
        self.give_up(overdue, reporter);
        self.place_held(now);
        self.accept_burst(now, reporter);
        self.flush(now);
        self.shed_overdue(now, reporter);
        self.rescue_stalled(now, reporter);
        self.stats.held.store(self.waiting() as u64, Relaxed);
        self.close_empty_listeners(poll);
        if self.phase == Phase::Pausing && self.workers.is_empty() {
            // No worker comes before the next start.
            self.refuse(reporter);
        }
        if self.ends() {
            self.finish_when_empty(reporter);
        }
    }

    /// Puts a connection into a worker's batch, or gives it back when no worker may get one.
    /// One that is to wait for its own worker gets into that worker's line.
    pub(super) fn place(
        &mut self,
        listener: ListenerId,
        socket: OwnedFd,
        peer: PeerAddress,
        now: Instant,
    ) -> Option<OwnedFd> {
        let may_wait = self.rules.policy == Policy::IpHash && self.waiting() < self.rules.max_held;
        match self.workers.place(self.rules.policy, listener, socket, peer, may_wait) {
            Placed::Sent => None,
            Placed::NoRoom(socket) => Some(socket),
            Placed::Waits(at, socket) => {
                self.workers.line_up(at, Held { listener, socket, peer, since: now });
                None
            }
        }
    }

    /// Connections that wait in the master.
    pub(super) fn waiting(&self) -> usize {
        self.held.len() + self.workers.in_line()
    }

    /// A worker leaves: who waited for it goes elsewhere at once.
    fn hold_line(&mut self, worker: &mut Worker) {
        worker.line.drain(..).rev().for_each(|held| self.held.push_front(held));
    }

    fn flush(&mut self, now: Instant) {
        let mut returned: Returned = Vec::new();
        let refused = self.workers.flush(now, &mut returned);
        self.blocked |= !returned.is_empty();
        for (listener, socket, peer) in returned.into_iter().rev() {
            self.held.push_front(Held { listener, socket, peer, since: now });
        }
        if refused {
            self.paused = Some(now + RETRY);
        }
    }

    /// Whether a listener may have something.
    pub fn has_ready(&self) -> bool {
        self.listeners.iter().any(|listener| listener.ready)
    }

    /// Connections accepted by the master, ever.
    pub fn accepted(&self) -> u64 {
        self.stats.accepted.load(Relaxed)
    }

    /// Connections that its workers have, received or about to be.
    pub fn connection_count(&self) -> u64 {
        self.workers.connection_count()
    }

    /// When the next turn is due without an event.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.phase == Phase::Stopped {
            return None;
        }
        let mut next: Option<Instant> = None;
        let mut at = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        for listener in self.listeners.iter().filter(|listener| listener.ready) {
            match listener.trouble {
                // At that time there may have been no room.
                Some((_, retry)) => at(self.paused.map_or(retry, |paused| retry.max(paused))),
                None => at(self.paused.unwrap_or(now)),
            }
        }
        if let Some(oldest) = self.held.front() {
            at(oldest.since + self.rules.queue_timeout);
            // While no worker listens there, time alone changes nothing.
            if self.blocked {
                at(self.paused.unwrap_or(now));
            }
        }
        if let Some(patience) = self.rules.hang_timeout
            && let Some(since) = self.workers.busy().filter_map(Worker::stuck_since).min()
        {
            at((since + patience).max(now));
        }
        if let Some(deaf) = self.workers.busy().filter_map(Worker::first_receive_due).min() {
            at(deaf.max(now));
        }
        if self.workers.len() > 1 {
            for since in self.workers.busy().filter_map(Worker::waits_since) {
                // While nobody else is free it is looked at again at the same interval.
                let due = since + self.rules.rescue_after();
                at(if due > now { due } else { now + self.rules.stall_timeout.max(RETRY) });
            }
        }
        // Room in a worker's queue is no event.
        if self.ends() || self.workers.in_line() > 0 {
            at(now + RETRY);
        }
        next
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "dispatcher_tests.rs"]
mod tests;
