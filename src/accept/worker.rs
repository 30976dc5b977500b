//! A worker online, with everything the accept thread knows of it.

mod limit;
mod record;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::deaths::Processes;
use super::line::Part;
use super::orders::{ListenerId, SlotStats, WorkerId, place};
use super::policy::Candidate;
use super::weighted::FULL;
use crate::handoff::page::{CountersPage, Rings};
use crate::handoff::{Client, QueueTx};
use crate::sys::clock::monotonic_ns;
use crate::sys::closer::Foreign;

/// A worker whose oldest hand-off is older than this is passed over. Measured on two busy cores, 40 connections at a time
/// over 4 workers, busiest/mean: 2 ms 1.06–1.15 (that is a worker waiting for its CPU), 5 ms 1.01–1.02, 8 ms and more no
/// better. A worker that is really stuck is rescued after the stall timeout in any case.
const BEHIND: Duration = Duration::from_millis(5);
/// A worker younger than this is not flooded for having fewer connections than the others.
const SLOW_START: Duration = Duration::from_secs(10);
/// A worker that has received nothing this long after its first hand-off is reported.
const FIRST_RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a worker has ever received a connection. Only servers are watched for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstReceive {
    NothingSent,
    SentAt(Instant),
    /// It has received one, or was reported.
    Settled,
}

/// The queue of a worker for one listener.
#[derive(Debug)]
struct Lane {
    listener: ListenerId,
    queue: Arc<QueueTx>,
    /// Sockets sent since the start.
    sent: u64,
    /// Upper estimate of the sockets not yet received; exact after `refresh`.
    pending: usize,
    /// For each send that may still be pending: `sent` after it, and its time.
    ages: VecDeque<(u64, Instant)>,
    /// Sockets to be sent at the end of this turn.
    batch: Vec<(OwnedFd, Client)>,
    /// Time of the batch's first socket, in nanoseconds of the clock shared with workers.
    batch_since: u64,
}

impl Lane {
    fn refresh(&mut self, all_received: bool) {
        self.pending = if all_received { 0 } else { self.queue.pending() };
        let received = self.sent.saturating_sub(self.pending as u64);
        while self.ages.front().is_some_and(|&(upto, _)| upto <= received) {
            self.ages.pop_front();
        }
        if self.pending == 0 {
            self.ages.clear();
        }
    }
}

/// What was in force when a worker came.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    /// The most hand-offs that may be pending.
    pub cap: u32,
    /// `--worker-conns`.
    pub connections: Option<u32>,
    /// Whether it has the bell.
    pub bell: bool,
}

/// A worker that is online.
#[derive(Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub stats: Arc<SlotStats>,
    /// By [`place`] of the listener; a server need not listen on all of them.
    lanes: Vec<Option<Lane>>,
    /// Sockets sent over all lanes. The last number sent tells a server which of our copies are closed.
    sent: u64,
    /// Sockets of these that were taken back.
    taken_back: u64,
    page: Arc<CountersPage>,
    since: Instant,
    limits: WorkerLimits,
    stalled: bool,
    /// Its number of open connections is an estimate.
    estimated: bool,
    /// Rescue jobs not finished.
    rescues: usize,
    first_receive: FirstReceive,
    /// Something has been pending since then without interruption.
    stuck: Option<Instant>,
    /// When it rings the bell.
    rings: Rings,
    processes: Processes,
    /// With nothing pending, so many are counted as received since then, and more were sent.
    uncounted: Option<(u64, Instant)>,
    /// That [`Worker::open`] is an estimate was reported.
    estimate_reported: bool,
    /// Connections given to it from which on it is to be reported.
    served_limit: u64,
    /// Where it is hashed: clients that wait in the master until this worker has room.
    pub line: Part,
}

/// Sockets that could not be sent, with the listener they came from.
pub type Returned = Vec<(ListenerId, OwnedFd, Client)>;

impl Worker {
    pub fn new(
        id: WorkerId,
        queues: Vec<(ListenerId, Arc<QueueTx>)>,
        page: Arc<CountersPage>,
        stats: Arc<SlotStats>,
        limits: WorkerLimits,
        now: Instant,
    ) -> Self {
        let mut worker = Self {
            id,
            stats,
            lanes: Vec::new(),
            sent: 0,
            taken_back: 0,
            page,
            since: now,
            limits,
            stalled: false,
            estimated: false,
            rescues: 0,
            first_receive: FirstReceive::NothingSent,
            stuck: None,
            served_limit: u64::MAX,
            rings: Rings::Never,
            processes: Processes::default(),
            uncounted: None,
            estimate_reported: false,
            line: Part::new(),
        };
        queues.into_iter().for_each(|(listener, queue)| worker.listens(listener, queue));
        worker
    }

    pub fn listens(&mut self, listener: ListenerId, queue: Arc<QueueTx>) {
        let at = place(listener);
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        let (ages, batch) = (VecDeque::new(), Vec::new());
        self.lanes[at] = Some(Lane { listener, queue, sent: 0, pending: 0, ages, batch, batch_since: 0 });
    }

    /// Gives up the queue for a listener.
    pub fn unlistens(&mut self, listener: ListenerId) -> Option<Arc<QueueTx>> {
        Some(self.lanes.get_mut(place(listener))?.take_if(|lane| lane.listener == listener)?.queue)
    }

    /// Whether its hand-offs carry what PROXY headers say.
    pub fn translates(&self) -> bool {
        self.lanes.iter().flatten().all(|lane| lane.queue.translates())
    }

    /// Whether it has a queue for the listener at this place.
    pub fn serves_at(&self, place: usize) -> bool {
        self.lanes.get(place).is_some_and(Option::is_some)
    }

    /// One more than the last place that it may serve.
    pub fn places(&self) -> usize {
        self.lanes.len()
    }

    /// How long it has been online.
    pub fn age(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }

    /// Sockets sent that should show as received in the end.
    fn expected(&self) -> u64 {
        self.sent.saturating_sub(self.taken_back)
    }

    /// Updates what is pending. Lanes with nothing pending cost nothing; if the counters page says that all was received,
    /// the others do not, either; otherwise the kernel is asked. Notices that a stalled worker has woken up.
    pub fn refresh(&mut self) {
        let pending = self.lanes.iter().flatten().any(|lane| lane.pending > 0);
        let all = pending && !self.stalled && self.expected() == self.page.received_and_open().0;
        self.lanes.iter_mut().flatten().filter(|lane| lane.pending > 0).for_each(|lane| lane.refresh(all));
        if self.pending() == 0 {
            self.stuck = None;
        }
        self.estimated = self.estimated || self.page.is_estimate();
        if matches!(self.first_receive, FirstReceive::SentAt(_)) && self.page.received_and_open().0 > 0 {
            self.first_receive = FirstReceive::Settled;
        }
        if self.stalled && self.rescues == 0 && self.pending() == 0 {
            self.stalled = false;
        }
    }

    /// Whether it has to be refreshed in the next turn: hand-offs are in flight, or it is watched for another reason.
    pub fn is_busy(&self) -> bool {
        let waits = self.lanes.iter().flatten().any(|lane| lane.pending > 0 || !lane.ages.is_empty());
        waits || self.stalled || self.rescues > 0 || self.stuck.is_some() || self.first_receive_due().is_some()
    }

    /// The policy's view. The caller fills in `owed`, `weight` and `newcomer`.
    pub fn candidate(&self, now: Instant) -> Candidate {
        Candidate {
            slot: self.id.slot,
            pending: u32::try_from(self.pending() + self.batched()).unwrap_or(u32::MAX),
            cap: self.limits.cap,
            open: self.open(),
            room: self.room(),
            behind: self.oldest().is_some_and(|since| now.duration_since(since) > BEHIND),
            stalled: self.stalled || self.rescues > 0,
            owed: 0,
            weight: 1,
            share: FULL,
            credit: 0,
            young: self.is_young(now),
            newcomer: true,
        }
    }

    /// Connections that are not pending any more and not over yet, as far as the worker is concerned.
    pub fn open(&self) -> u64 {
        let (received, unfinished) = self.page.received_and_unfinished();
        (unfinished + self.in_flight(received)).saturating_sub(self.pending() as u64)
    }

    /// Whether [`Worker::open`] is an estimate: processes of the server close connections that others received.
    pub fn is_estimate(&self) -> bool {
        self.estimated
    }

    pub fn is_young(&self, now: Instant) -> bool {
        now.duration_since(self.since) < SLOW_START
    }

    /// Reports it from so many connections on.
    pub fn count_served(&mut self, limit: u64) {
        self.served_limit = limit;
    }

    /// Whether it has been given as many connections as it may get; true once.
    pub fn has_served(&mut self) -> bool {
        let served = self.expected() >= self.served_limit;
        if served {
            self.served_limit = u64::MAX;
        }
        served
    }

    /// Connections in flight or open.
    pub fn connection_count(&self) -> u64 {
        let (received, open) = self.page.received_and_open();
        open + self.in_flight(received)
    }

    /// Between a worker's receive and its count a connection is neither pending nor open, so everything sent and not yet
    /// counted as received is in flight.
    fn in_flight(&self, received: u64) -> u64 {
        // A server's process that died in between never counts what it received: hence the bound.
        self.expected().saturating_sub(received).min(u64::from(self.limits.cap))
    }

    /// Sockets of this turn.
    fn batched(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.batch.len()).sum()
    }

    fn pending(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.pending).sum()
    }

    /// Time of the oldest hand-off not yet received.
    fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().flatten().filter_map(|lane| Some(lane.ages.front()?.1)).min()
    }

    /// Time of the oldest hand-off that may have to be rescued; `None` for a worker already known to be stalled.
    pub fn waits_since(&self) -> Option<Instant> {
        if self.stalled || self.rescues > 0 { None } else { self.oldest() }
    }

    /// Whether it has a hand-off that may have to be rescued and is as old as that.
    pub fn is_overdue(&self, timeout: Duration, now: Instant) -> bool {
        self.waits_since().is_some_and(|since| now.duration_since(since) >= timeout)
    }

    /// Whether it has received nothing for `timeout` while something waited; true once.
    pub fn is_hung(&mut self, timeout: Duration, now: Instant) -> bool {
        self.stuck.take_if(|since| now.duration_since(*since) >= timeout).is_some()
    }

    pub fn stuck_since(&self) -> Option<Instant> {
        self.stuck
    }

    /// Whether it has received nothing although its first hand-off was long ago; true once.
    pub fn never_received(&mut self, now: Instant) -> bool {
        if self.first_receive_due().is_none_or(|at| at > now) {
            return false;
        }
        self.first_receive = FirstReceive::Settled;
        self.page.received_and_open().0 == 0
    }

    /// The time for [`Worker::never_received`].
    pub fn first_receive_due(&self) -> Option<Instant> {
        match self.first_receive {
            FirstReceive::SentAt(since) => Some(since + FIRST_RECEIVE_TIMEOUT),
            FirstReceive::NothingSent | FirstReceive::Settled => None,
        }
    }

    /// Puts a socket into this turn's batch.
    pub fn push(&mut self, listener: ListenerId, socket: OwnedFd, client: Client) {
        // Only workers that serve the listener are chosen.
        if let Some(Some(lane)) = self.lanes.get_mut(place(listener)) {
            if lane.batch.is_empty() {
                lane.batch_since = monotonic_ns();
            }
            lane.batch.push((socket, client));
        }
    }

    /// Sends the batches and closes our copies at once. Sockets that could not be sent are appended to `returned`.
    ///
    /// # Errors
    /// The last reason for which something could not be sent.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> io::Result<()> {
        let mut outcome = Ok(());
        for lane in self.lanes.iter_mut().flatten() {
            while !lane.batch.is_empty() {
                let count = match lane.queue.send_batch(&lane.batch, self.sent + 1, lane.batch_since) {
                    Ok(count) => count,
                    Err(error) => {
                        outcome = Err(error);
                        returned.extend(lane.batch.drain(..).map(|(socket, client)| (lane.listener, socket, client)));
                        break;
                    }
                };
                for (socket, client) in lane.batch.drain(..count) {
                    if client.foreign {
                        drop(Foreign::received(socket));
                    }
                }
                self.sent += count as u64;
                if lane.queue.is_direct() {
                    // After the close of our copy: a server that closes a socket waits for its number.
                    self.page.release(self.sent);
                    if self.first_receive == FirstReceive::NothingSent {
                        self.first_receive = FirstReceive::SentAt(now);
                    }
                }
                self.stuck.get_or_insert(now);
                lane.sent += count as u64;
                lane.pending += count;
                lane.ages.push_back((lane.sent, now));
                self.stats.connections.fetch_add(count as u64, Relaxed);
            }
        }
        outcome
    }

    /// Marks the worker stalled and returns the queues for the rescue thread to empty.
    pub fn stall(&mut self) -> Vec<(ListenerId, Arc<QueueTx>)> {
        self.stalled = true;
        let busy = self.lanes.iter().flatten().filter(|lane| lane.pending > 0);
        let queues: Vec<_> = busy.map(|lane| (lane.listener, lane.queue.clone())).collect();
        self.rescues += queues.len();
        queues
    }

    /// The rescue thread has taken `sockets` out of one of the queues and left an empty message in it.
    pub fn rescued(&mut self, sockets: usize) {
        self.rescues = self.rescues.saturating_sub(1);
        self.taken_back += sockets as u64;
        for lane in self.lanes.iter_mut().flatten() {
            lane.pending = lane.queue.pending();
            lane.ages.clear();
        }
    }

    pub fn into_queues(self) -> impl Iterator<Item = (ListenerId, Arc<QueueTx>)> {
        self.lanes.into_iter().flatten().map(|lane| (lane.listener, lane.queue))
    }
}
