//! The workers that may receive, with what the accept thread knows of each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::dispatcher::Held;
use super::orders::{ListenerId, SlotStats, WorkerId, place};
use super::policy::{Candidate, Policy};
use crate::handoff::page::CountersPage;
use crate::handoff::{Framing, QueueTx};
use crate::sys::clock::monotonic_ns;
use crate::sys::scm::MAX_FDS;
use crate::sys::sock::PeerAddress;

/// A worker whose oldest hand-off waits longer than this is passed over. Measured on two busy cores, 40 connections
/// at a time over 4 workers, busiest/mean: 2 ms 1.06–1.15 (it only sees who waits for a CPU), 5 ms 1.01–1.02,
/// 8 ms and more no better; whoever is really stuck is rescued after the stall timeout in any case.
pub const BEHIND: Duration = Duration::from_millis(5);
/// A worker younger than this counts at least the mean under `least-conn`.
const SLOW_START: Duration = Duration::from_secs(10);

/// A worker that was handed connections and has received none for so long is named.
const FIRST_RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a worker receives at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstReceive {
    /// It was handed nothing yet.
    NothingSent,
    /// It was handed something then.
    SentAt(Instant),
    /// It has received something, or was named.
    Settled,
}

/// One queue of a worker.
#[derive(Debug)]
struct Lane {
    listener: ListenerId,
    queue: Arc<QueueTx>,
    /// Sockets sent, ever.
    sent: u64,
    /// Upper estimate of what is pending; exact after `refresh`.
    pending: usize,
    /// For each send that may still be pending: the count of sockets sent up to it, and when.
    ages: VecDeque<(u64, Instant)>,
    /// What this burst gave the worker on this queue.
    batch: Vec<(OwnedFd, PeerAddress)>,
    /// When the first of that came; nanoseconds of the clock that workers see, too.
    batch_since: u64,
}

/// A worker that is online.
#[derive(Debug)]
pub struct Worker {
    /// Who it is.
    pub id: WorkerId,
    /// Its slot's counters.
    pub stats: Arc<SlotStats>,
    /// By the listener's place; a server need not listen on all.
    lanes: Vec<Option<Lane>>,
    /// Counts the sockets sent, for the release of our copies.
    number: u64,
    /// Of those, taken back.
    back: u64,
    page: Arc<CountersPage>,
    since: Instant,
    cap: u32,
    stalled: bool,
    /// Rescue jobs that are under way.
    rescues: usize,
    first_receive: FirstReceive,
    /// Since when it receives nothing of what waits for it.
    stuck: Option<Instant>,
    /// Under `ip-hash`: clients that wait in the master until this worker has room.
    pub line: VecDeque<Held>,
}

/// Sockets that could not be sent, with the listener they came from.
pub type Returned = Vec<(ListenerId, OwnedFd, PeerAddress)>;

impl Worker {
    /// A worker that came online at `now`.
    pub fn new(
        id: WorkerId,
        queues: Vec<(ListenerId, Arc<QueueTx>)>,
        page: Arc<CountersPage>,
        stats: Arc<SlotStats>,
        cap: u32,
        now: Instant,
    ) -> Self {
        let mut worker = Self {
            id,
            stats,
            lanes: Vec::new(),
            number: 0,
            back: 0,
            page,
            since: now,
            cap,
            stalled: false,
            rescues: 0,
            first_receive: FirstReceive::NothingSent,
            stuck: None,
            line: VecDeque::new(),
        };
        queues.into_iter().for_each(|(listener, queue)| worker.listens(listener, queue));
        worker
    }

    /// It has a queue for one more listener.
    pub fn listens(&mut self, listener: ListenerId, queue: Arc<QueueTx>) {
        let at = place(listener);
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        let (ages, batch) = (VecDeque::new(), Vec::new());
        self.lanes[at] = Some(Lane { listener, queue, sent: 0, pending: 0, ages, batch, batch_since: 0 });
    }

    /// It has closed a listener: gives up the queue for it.
    pub fn unlistens(&mut self, listener: ListenerId) -> Option<Arc<QueueTx>> {
        Some(self.lanes.get_mut(place(listener))?.take_if(|lane| lane.listener == listener)?.queue)
    }

    /// Whether it has a queue for a listener.
    pub fn serves(&self, listener: ListenerId) -> bool {
        self.serves_at(place(listener))
    }

    /// Whether it has a queue for the listener that has this place.
    pub fn serves_at(&self, place: usize) -> bool {
        self.lanes.get(place).is_some_and(Option::is_some)
    }

    /// Asks what is pending, where the estimate is above zero: the counters page, which costs nothing, whether all was
    /// received, and the kernel where it was not. Notices that a stalled worker woke up.
    pub fn refresh(&mut self) {
        let pending = self.lanes.iter().flatten().any(|lane| lane.pending > 0);
        let all = pending && !self.stalled && self.number.saturating_sub(self.back) == self.page.received_and_open().0;
        for lane in self.lanes.iter_mut().flatten().filter(|lane| lane.pending > 0) {
            lane.pending = if all { 0 } else { lane.queue.pending() };
            let received = lane.sent.saturating_sub(lane.pending as u64);
            while lane.ages.front().is_some_and(|&(upto, _)| upto <= received) {
                lane.ages.pop_front();
            }
            if lane.pending == 0 {
                lane.ages.clear();
            }
        }
        if self.pending() == 0 {
            self.stuck = None;
        }
        if matches!(self.first_receive, FirstReceive::SentAt(_)) && self.page.received_and_open().0 > 0 {
            self.first_receive = FirstReceive::Settled;
        }
        if self.stalled && self.rescues == 0 && self.pending() == 0 {
            self.stalled = false;
        }
    }

    /// Whether it has to be looked at in the next turn: something is on its way, or it is watched for another reason.
    pub fn is_busy(&self) -> bool {
        let waits = self.lanes.iter().flatten().any(|lane| lane.pending > 0 || !lane.ages.is_empty());
        waits
            || self.stalled
            || self.rescues > 0
            || self.stuck.is_some()
            || matches!(self.first_receive, FirstReceive::SentAt(_))
    }

    /// One more than the last place of a listener that it may serve.
    pub fn max_listeners(&self) -> usize {
        self.lanes.len()
    }

    /// The policy's view, but for what it is owed; `open` is read only for the policy that looks at it.
    pub fn candidate(&self, policy: Policy, now: Instant) -> Candidate {
        let pending = u32::try_from(self.pending()).unwrap_or(u32::MAX);
        Candidate {
            slot: self.id.slot,
            pending,
            cap: self.cap,
            open: if policy == Policy::LeastConn {
                self.connection_count().saturating_sub(u64::from(pending))
            } else {
                0
            },
            behind: self.oldest().is_some_and(|since| now.duration_since(since) > BEHIND),
            stalled: self.stalled || self.rescues > 0,
            owed: 0,
            young: now.duration_since(self.since) < SLOW_START,
        }
    }

    /// Connections that it has, received or about to be. Between a worker's receive and its count a connection is
    /// neither pending nor open, so what is on its way is what was sent and is not yet counted as received.
    pub fn connection_count(&self) -> u64 {
        let (received, open) = self.page.received_and_open();
        let coming = self.number.saturating_sub(self.back).saturating_sub(received);
        // A server's process that died in between never counts what it took.
        open + coming.min(u64::from(self.cap))
    }

    fn pending(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.pending).sum()
    }

    /// Since when the oldest hand-off waits.
    fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().flatten().filter_map(|lane| Some(lane.ages.front()?.1)).min()
    }

    /// Since when a hand-off waits that may have to be rescued; `None` for a worker already known to be stalled.
    pub fn waits_since(&self) -> Option<Instant> {
        if self.stalled || self.rescues > 0 { None } else { self.oldest() }
    }

    /// Whether it has received nothing for so long while something waited; said once.
    pub fn is_hung(&mut self, patience: Duration, now: Instant) -> bool {
        let hung = self.stuck.is_some_and(|since| now.duration_since(since) >= patience);
        if hung {
            self.stuck = None;
        }
        hung
    }

    /// Since when it is stuck.
    pub fn stuck_since(&self) -> Option<Instant> {
        self.stuck
    }

    /// Whether it was handed connections for long and has never received one; said once.
    pub fn never_received(&mut self, now: Instant) -> bool {
        if self.first_receive_due().is_none_or(|at| at > now) {
            return false;
        }
        self.first_receive = FirstReceive::Settled;
        self.page.received_and_open().0 == 0
    }

    /// When [`Worker::never_received`] is to be asked.
    pub fn first_receive_due(&self) -> Option<Instant> {
        match self.first_receive {
            FirstReceive::SentAt(since) => Some(since + FIRST_RECEIVE_TIMEOUT),
            FirstReceive::NothingSent | FirstReceive::Settled => None,
        }
    }

    /// Puts a socket into this burst's batch.
    pub fn push(&mut self, listener: ListenerId, socket: OwnedFd, peer: PeerAddress) {
        // Only workers that serve the listener are chosen.
        if let Some(Some(lane)) = self.lanes.get_mut(place(listener)) {
            if lane.batch.is_empty() {
                lane.batch_since = monotonic_ns();
            }
            lane.batch.push((socket, peer));
        }
    }

    /// Sends the batches — to a relay worker one message per queue (more only above 253 sockets), to a server one per
    /// socket — and closes our copies at once. What could not be sent is appended to `returned`.
    ///
    /// # Errors
    /// The last reason for which something could not be sent.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> io::Result<()> {
        let mut outcome = Ok(());
        for lane in self.lanes.iter_mut().flatten().filter(|lane| !lane.batch.is_empty()) {
            let listener = lane.listener;
            while !lane.batch.is_empty() {
                let (count, sent) = match lane.queue.framing() {
                    Framing::Batched => {
                        let count = lane.batch.len().min(MAX_FDS);
                        (
                            count,
                            lane.queue
                                .send(lane.batch[..count].iter().map(|(socket, _)| socket.as_fd()), lane.batch_since),
                        )
                    }
                    Framing::Single => {
                        let (socket, peer) = &lane.batch[0];
                        (1, lane.queue.send_direct(socket.as_fd(), peer, self.number + 1, lane.batch_since))
                    }
                };
                if let Err(error) = sent {
                    outcome = Err(error);
                    returned.extend(lane.batch.drain(..).map(|(socket, peer)| (listener, socket, peer)));
                    break;
                }
                lane.batch.drain(..count);
                self.number += count as u64;
                if lane.queue.framing() == Framing::Single {
                    // Only now: a server that closes a socket waits for this number.
                    self.page.release(self.number);
                }
                if self.first_receive == FirstReceive::NothingSent && lane.queue.framing() == Framing::Single {
                    self.first_receive = FirstReceive::SentAt(now);
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

    /// Marks the worker stalled and returns the queues that the rescue thread shall empty.
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
        self.back += sockets as u64;
        for lane in self.lanes.iter_mut().flatten() {
            lane.pending = lane.queue.pending();
            lane.ages.clear();
        }
    }

    /// Gives up the queues: for a rescue, or to let the worker see their end.
    pub fn into_queues(self) -> impl Iterator<Item = (ListenerId, Arc<QueueTx>)> {
        self.lanes.into_iter().flatten().map(|lane| (lane.listener, lane.queue))
    }
}
