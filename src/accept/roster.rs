//! The workers that may receive, with what the accept thread knows of each.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::orders::{ListenerId, SlotStats, WorkerId};
use super::policy::{Candidate, MOST_OWED, Policy};
use crate::handoff::QueueTx;
use crate::handoff::page::CountersPage;
use crate::sys::scm::MAX_FDS;

/// A worker whose oldest hand-off waits longer than this is passed over. Measured on two busy cores, 40 connections
/// at a time over 4 workers, busiest/mean: 2 ms 1.06–1.15 (it only sees who waits for a CPU), 5 ms 1.01–1.02,
/// 8 ms and more no better; whoever is really stuck is rescued after the stall timeout in any case.
pub const BEHIND: Duration = Duration::from_millis(5);
/// A worker younger than this counts at least the mean under `least-conn`.
const SLOW_START: Duration = Duration::from_secs(10);

/// One queue of a member.
#[derive(Debug)]
struct Lane {
    queue: Arc<QueueTx>,
    /// Sockets sent, ever.
    sent: u64,
    /// Upper estimate of what is pending; exact after `refresh`.
    pending: usize,
    /// For each send that may still be pending: the count of sockets sent up to it, and when.
    ages: VecDeque<(u64, Instant)>,
    /// What this burst gave the worker on this queue.
    batch: Vec<OwnedFd>,
}

/// A worker that is online.
#[derive(Debug)]
pub struct Member {
    /// Who it is.
    pub id: WorkerId,
    /// Its slot's counters.
    pub stats: Arc<SlotStats>,
    lanes: Vec<Lane>,
    page: Arc<CountersPage>,
    since: Instant,
    cap: u32,
    stalled: bool,
    /// Turns that it was passed over and has not had back.
    pub owed: u32,
    /// Rescue jobs that are under way.
    rescues: usize,
}

/// Sockets that could not be sent, with the listener they came from.
pub type Returned = Vec<(ListenerId, OwnedFd)>;

impl Member {
    /// A worker that came online at `now`.
    pub fn new(
        id: WorkerId,
        queues: Vec<Arc<QueueTx>>,
        page: Arc<CountersPage>,
        stats: Arc<SlotStats>,
        cap: u32,
        now: Instant,
    ) -> Self {
        let lane = |queue| Lane { queue, sent: 0, pending: 0, ages: VecDeque::new(), batch: Vec::new() };
        let lanes = queues.into_iter().map(lane).collect();
        Self { id, stats, lanes, page, since: now, cap, stalled: false, owed: 0, rescues: 0 }
    }

    /// Asks the kernel what is pending, where the estimate is above zero; notices that a stalled worker woke up.
    pub fn refresh(&mut self) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.pending > 0) {
            lane.pending = lane.queue.pending();
            let received = lane.sent.saturating_sub(lane.pending as u64);
            while lane.ages.front().is_some_and(|&(upto, _)| upto <= received) {
                lane.ages.pop_front();
            }
            if lane.pending == 0 {
                lane.ages.clear();
            }
        }
        if self.stalled && self.rescues == 0 && self.pending() == 0 {
            self.stalled = false;
        }
    }

    /// The policy's view; `open` is read only for the policy that looks at it.
    pub fn candidate(&self, policy: Policy, now: Instant) -> Candidate {
        Candidate {
            slot: self.id.slot,
            pending: u32::try_from(self.pending()).unwrap_or(u32::MAX),
            cap: self.cap,
            open: if policy == Policy::LeastConn { self.page.open() } else { 0 },
            behind: self.oldest().is_some_and(|since| now.duration_since(since) > BEHIND),
            stalled: self.stalled || self.rescues > 0,
            owed: self.owed,
            young: now.duration_since(self.since) < SLOW_START,
        }
    }

    fn pending(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pending).sum()
    }

    /// Since when the oldest hand-off waits.
    fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| Some(lane.ages.front()?.1)).min()
    }

    /// Since when a hand-off waits that may have to be rescued; `None` for a worker already known to be stalled.
    pub fn waits_since(&self) -> Option<Instant> {
        if self.stalled || self.rescues > 0 { None } else { self.oldest() }
    }

    /// Puts a socket into this burst's batch.
    pub fn push(&mut self, listener: ListenerId, socket: OwnedFd) {
        // Every worker has a queue for every listener of its service.
        if let Some(lane) = self.lanes.get_mut(listener) {
            lane.batch.push(socket);
        }
    }

    /// Sends the batches, one message per queue (more only above 253 sockets), and closes our copies at once.
    /// What could not be sent is appended to `returned`.
    ///
    /// # Errors
    /// The last reason for which something could not be sent.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> io::Result<()> {
        let mut outcome = Ok(());
        for (listener, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.batch.is_empty()) {
            while !lane.batch.is_empty() {
                let count = lane.batch.len().min(MAX_FDS);
                if let Err(error) = lane.queue.send(lane.batch[..count].iter().map(AsFd::as_fd)) {
                    outcome = Err(error);
                    returned.extend(lane.batch.drain(..).map(|socket| (listener, socket)));
                    break;
                }
                lane.batch.drain(..count);
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
        let busy = self.lanes.iter().enumerate().filter(|(_, lane)| lane.pending > 0);
        let queues: Vec<_> = busy.map(|(listener, lane)| (listener, lane.queue.clone())).collect();
        self.rescues += queues.len();
        queues
    }

    /// The rescue thread has taken `sockets` out of one of the queues and left an empty message in it: turns that
    /// the worker did not have.
    pub fn rescued(&mut self, sockets: usize) {
        self.rescues = self.rescues.saturating_sub(1);
        self.owed = (self.owed + u32::try_from(sockets).unwrap_or(MOST_OWED)).min(MOST_OWED);
        for lane in &mut self.lanes {
            lane.pending = lane.queue.pending();
            lane.ages.clear();
        }
    }

    /// Gives up the queues: for a rescue, or to let the worker see their end.
    pub fn into_queues(self) -> Vec<Arc<QueueTx>> {
        self.lanes.into_iter().map(|lane| lane.queue).collect()
    }
}
