//! One service on the accept thread: its listeners, its workers, and the connections between the two.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Context;
use super::limit::Limit;
use super::line::{Held, Line};
use super::orders::{
    AcceptedBy, ListenerId, Report, RescueKey, Rules, ServiceId, ServiceStats, SlotStats, WorkerId, place,
};
use super::pace::Pace;
use super::stage::Stage;
use super::waits::ShedReason;
use super::worker::{Returned, Worker, WorkerLimits};
use super::worker_set::WorkerSet;
use crate::handoff::QueueTx;
use crate::handoff::page::{CountersPage, Rings};
use crate::handoff::rescue::Mark;
use crate::sys::interrupt::impatiently;

/// Retry delay while every worker is at its cap.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// While clients wait for the bell, workers are looked at this often in any case: a process may have ended between what it
/// did and the ring.
const BELL_LOST: Duration = Duration::from_secs(1);

/// A place for a listener. Places are used again, ids are not.
#[derive(Default)]
pub(super) struct Listener {
    /// The present owner of this place.
    pub(super) id: Option<ListenerId>,
    /// `None` once closed.
    pub(super) socket: Option<Arc<OwnedFd>>,
    pub(super) watched: bool,
    /// To be closed as soon as its backlog is empty.
    pub(super) closing: bool,
    /// An edge came and accept(2) has not returned WouldBlock since.
    pub(super) ready: bool,
    /// accept(2) failed with this errno; it is called again at that time.
    pub(super) trouble: Option<(i32, Instant)>,
    /// In the last turn there was no room for its connections.
    pub(super) full: bool,
}

impl Listener {
    pub(super) fn close(&mut self, cx: &Context) {
        if let Some(socket) = self.socket.take() {
            cx.unwatch(&socket);
            impatiently(|| drop(socket));
            (self.watched, self.ready) = (false, false);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// The backlog is being taken; each listener closes when its backlog is empty.
    Stopping,
    Stopped,
    /// As `Stopping`, but afterwards the service may be started again.
    Pausing,
}

/// A service's part of the accept thread.
pub struct ServiceDispatcher {
    pub(super) id: ServiceId,
    pub(super) rules: Rules,
    pub(super) stats: Arc<ServiceStats>,
    /// By [`place`].
    pub(super) listeners: Vec<Listener>,
    /// Workers online.
    pub(super) workers: WorkerSet,
    pub(super) line: Line,
    /// Connections that waited after the last turn.
    pub(super) counted: usize,
    /// Connections of which something has to be known first.
    pub(super) stage: Stage,
    /// Listeners whose workers are all full, with clients in the line. Nobody may overtake these; clients of other listeners
    /// may have workers of their own.
    pub(super) blocked: Vec<ListenerId>,
    /// Jobs that the rescue thread has not finished.
    pub(super) rescues: usize,
    /// Every worker is full: the next attempt is at this time.
    pub(super) paused: Option<Instant>,
    /// Every worker is full, and rings the bell when it has closed a connection.
    pub(super) until_bell: bool,
    pub(super) pace: Pace,
    pub(super) limit: Limit,
    pub(super) phase: Phase,
    /// Clients reset because too many wait: those not reported yet, and the time of the last report.
    pub(super) overflow: (usize, Option<Instant>),
    /// accept(2) blocked on a listener: the length and the end of the break taken from all of them.
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
            line: Line::default(),
            counted: 0,
            stage: Stage::default(),
            blocked: Vec::new(),
            rescues: 0,
            paused: None,
            until_bell: false,
            pace: Pace::default(),
            limit: Limit::default(),
            phase: Phase::Serving,
            overflow: (0, None),
            waited: None,
        }
    }

    pub fn add_listener(&mut self, cx: &Context, id: ListenerId, socket: Arc<OwnedFd>) {
        let at = place(id);
        if self.listeners.len() <= at {
            self.listeners.resize_with(at + 1, Listener::default);
        }
        self.listeners[at] = Listener { id: Some(id), socket: Some(socket), ..Listener::default() };
        self.watch_if_ours(cx);
    }

    pub(super) fn listener(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.listeners.get_mut(place(id)).filter(|listener| listener.id == Some(id))
    }

    pub fn remove_listener(&mut self, cx: &Context, id: ListenerId) {
        if let Some(listener) = self.listener(id) {
            listener.close(cx);
        }
    }

    /// Resets all clients that wait for a worker.
    pub fn refuse(&mut self, cx: &Context) {
        let mut all: Vec<Held> = self.workers.take_lines().into_values().collect();
        all.extend(self.line.take());
        self.give_up(all, ShedReason::NoWorker, cx);
    }

    pub fn set_weight(&mut self, slot: u32, weight: u16) {
        self.workers.set_weight(slot, weight);
        self.paused = None;
    }

    /// `by` stays what it was: workers and listeners were set up for it.
    pub fn set_rules(&mut self, rules: Rules) {
        self.stage.follow(rules.stage.as_deref());
        self.rules = Rules { by: self.rules.by, ..rules };
        if !self.rules.has_sessions() {
            self.stage.clear_sessions();
        }
    }

    /// Closes a listener that left the configuration, where the master accepts only after its backlog was taken.
    pub fn close_listener(&mut self, cx: &Context, id: ListenerId) {
        let master_accepts = self.rules.by == AcceptedBy::Master;
        match self.listener(id) {
            Some(listener) if master_accepts && listener.socket.is_some() => {
                listener.closing = true;
                // One look at the backlog, whether or not an edge came.
                listener.ready = true;
            }
            _ => self.remove_listener(cx, id),
        }
    }

    /// Watches or unwatches the listeners: under `none` the master accepts only while there is no worker.
    fn watch_if_ours(&mut self, cx: &Context) {
        let ours = match self.rules.by {
            AcceptedBy::Master => true,
            AcceptedBy::Workers => self.workers.is_empty(),
            AcceptedBy::Servers => false,
        };
        for (at, listener) in self.listeners.iter_mut().enumerate() {
            let Some(socket) = &listener.socket else { continue };
            if ours && !listener.watched {
                match cx.watch(socket, self.id, at) {
                    Ok(()) => listener.watched = true,
                    Err(error) => listener.trouble = Some((error.raw_os_error().unwrap_or(0), Instant::now())),
                }
            } else if !ours && listener.watched {
                cx.unwatch(socket);
                (listener.watched, listener.ready) = (false, false);
            }
        }
    }

    /// Notes an edge of the listener at a place.
    pub fn readable(&mut self, place: usize) {
        if let Some(listener) = self.listeners.get_mut(place) {
            // An order that came with the same events may have closed it: then `watched` is false.
            listener.ready |= listener.watched;
        }
    }

    pub fn online(
        &mut self,
        cx: &Context,
        id: WorkerId,
        queues: Vec<(ListenerId, Arc<QueueTx>)>,
        page: Arc<CountersPage>,
        stats: Arc<SlotStats>,
        now: Instant,
    ) {
        let bell = self.rules.worker_conns.is_some() || self.rules.max_conns.is_some();
        let limits = WorkerLimits { cap: self.rules.cap, connections: self.rules.worker_conns, bell };
        let worker = Worker::new(id, queues, page, stats, limits, now);
        self.workers.insert(worker, self.rules.slow_start(), now);
        self.paused = None;
        self.watch_if_ours(cx);
    }

    /// A live worker has closed a listener: the rescue thread empties its queue.
    pub fn unlistens(&mut self, cx: &Context, id: WorkerId, listener: ListenerId) {
        if let Some((worker, queue)) = self.workers.unlistens(id, listener) {
            let stats = worker.stats.clone();
            self.rescue(RescueKey { worker: id, listener, stats }, queue, Mark::None, cx);
        }
    }

    /// Removes a worker. The clients waiting for it alone go to others, each in its turn.
    fn remove(&mut self, cx: &Context, id: WorkerId) -> Option<Worker> {
        let mut worker = self.workers.remove(id)?;
        self.stage.forget_sessions(id);
        self.watch_if_ours(cx);
        for (ticket, held) in std::mem::take(&mut worker.line) {
            self.line.insert(ticket, held);
        }
        Some(worker)
    }

    /// A live worker leaves: its queues are emptied by the rescue thread, then closed.
    pub fn drain(&mut self, cx: &Context, id: WorkerId) {
        if let Some(worker) = self.remove(cx, id) {
            if self.rules.max_conns.is_some() {
                self.limit.leaves(&worker);
            }
            let stats = worker.stats.clone();
            for (listener, queue) in worker.into_queues() {
                self.rescue(RescueKey { worker: id, listener, stats: stats.clone() }, queue, Mark::None, cx);
            }
        }
        cx.report(Report::Drained(id));
    }

    /// A process of a server that is one of several has ended.
    pub fn process_died(&mut self) {
        self.workers.settle();
    }

    /// A dead worker leaves. No other process reads its queues, so they can be emptied here without blocking.
    pub fn worker_died(&mut self, cx: &Context, id: WorkerId, now: Instant) {
        self.limit.ended(id);
        if let Some(worker) = self.remove(cx, id) {
            let stats = worker.stats.clone();
            let mut count = 0;
            for (listener, queue) in worker.into_queues() {
                let sockets = queue.take_back();
                count += sockets.len();
                self.hold_rescued(listener, sockets, now, cx);
            }
            self.count_rescued(id, &stats, count, cx);
        }
    }

    /// One turn: snapshot, place what is held, accept a burst, hand off, look for stalled workers.
    pub fn turn(&mut self, cx: &Context, now: Instant) {
        let idle = self.waiting() == 0 && !self.has_ready() && !self.stage.is_due(now);
        let waiting = self.workers.ring()
            || self.workers.busy().any(|worker| {
                worker.waits_since().is_some()
                    || worker.first_receive_due().is_some_and(|at| at <= now)
                    || (self.rules.hang_timeout.is_some() && worker.stuck_since().is_some())
            });
        if self.phase == Phase::Stopped || (idle && !waiting && self.phase == Phase::Serving) {
            return;
        }
        self.workers.refresh(self.rules.policy, self.rules.slow_start(), now);
        self.paused = None;
        self.serve_line(cx, now);
        self.count_connections(cx);
        self.leave_stage(now, cx);
        self.accept_burst(now, cx);
        self.report_refused(now, cx);
        self.want_room(cx, now);
        self.flush(now, cx);
        self.shed_overdue(now, cx);
        self.rescue_stalled(now, cx);
        self.show_waiting();
        self.show_limit();
        self.close_empty_listeners(cx);
        if self.phase == Phase::Pausing && self.workers.is_empty() {
            // No worker comes before the next start.
            self.refuse(cx);
        }
        if self.ends() {
            self.finish_when_empty(cx);
        }
    }

    fn flush(&mut self, now: Instant, cx: &Context) {
        let mut returned: Returned = Vec::new();
        let refused = self.workers.flush(now, &mut returned);
        self.workers.take_served().for_each(|worker| cx.report(Report::Served(worker)));
        for (listener, socket, client) in returned.into_iter().rev() {
            self.block(listener);
            let ticket = self.line.ticket_at_head();
            self.hold(ticket, Held { listener, socket, client, since: now, watched: false, slot: None }, None, cx);
        }
        if refused {
            self.paused = Some(now + RETRY);
            self.until_bell = false;
        }
    }

    /// Whether accept(2) on some listener may return a connection.
    pub fn has_ready(&self) -> bool {
        self.listeners.iter().any(|listener| listener.ready)
    }

    /// Connections accepted by the master since the start.
    pub fn accepted(&self) -> u64 {
        self.stats.accepted.load(Relaxed)
    }

    /// The time of the next turn if no event comes before.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.phase == Phase::Stopped {
            return None;
        }
        let mut next: Option<Instant> = None;
        let mut at = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        for listener in self.listeners.iter().filter(|listener| listener.ready) {
            match listener.trouble {
                // Every worker may be full at that time.
                _ if listener.full && self.until_bell => {}
                Some((_, retry)) => at(self.paused.map_or(retry, |paused| retry.max(paused))),
                None => at(self.paused.max(self.pace.until()).unwrap_or(now)),
            }
        }
        if let Some(due) = self.stage.deadline(now) {
            at(due);
        }
        if self.until_bell {
            at(now + BELL_LOST);
        } else if self.stage.is_stuck() {
            at(self.paused.unwrap_or(now));
        }
        if let Some(oldest) = self.line.oldest() {
            at(oldest + self.rules.queue_timeout);
            // While no worker serves the listener, only an order changes anything.
            if !self.blocked.is_empty() && !self.until_bell {
                at(self.paused.unwrap_or(now));
            }
        }
        if let Some(timeout) = self.rules.hang_timeout
            && let Some(since) = self.workers.busy().filter_map(Worker::stuck_since).min()
        {
            at((since + timeout).max(now));
        }
        if let Some(due) = self.workers.busy().filter_map(Worker::first_receive_due).min() {
            at(due.max(now));
        }
        if self.workers.len() > 1 {
            for (worker, since) in self.workers.busy().filter_map(|worker| Some((worker, worker.waits_since()?))) {
                let due = since + self.rules.rescue_after();
                // An overdue worker without a free one to take over is checked again at the stall timeout's interval, unless
                // all ring when that may change.
                if due > now {
                    at(due);
                } else if !self.until_bell || worker.rings() < Rings::AfterReceives {
                    at(now + self.rules.stall_timeout.max(RETRY));
                }
            }
        }
        // A worker that receives makes room without an event.
        if self.ends() || (self.workers.in_line() > 0 && !self.until_bell) {
            at(now + RETRY);
        } else if let Some(due) = self.workers.lines_due(&self.rules, now) {
            at(due);
        }
        next
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "dispatcher_tests.rs"]
mod tests;
