//! Workers that do not receive: their queues go to others, and they are named.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::RescueJob;
use super::dispatcher::{Phase, Reporter, ServiceDispatcher};
use super::orders::{Report, RescueKey, SlotStats, WorkerId};
use super::worker::Worker;
use crate::handoff::QueueTx;
use crate::handoff::rescue::Mark;

impl ServiceDispatcher {
    pub(super) fn rescue(&mut self, key: RescueKey, queue: Arc<QueueTx>, mark: Mark, reporter: &Reporter) {
        if reporter.rescue.send(RescueJob { key, queue, mark }).is_ok() {
            self.rescues += 1;
        }
    }

    /// The rescue thread has emptied a queue of a live worker.
    pub fn rescued(&mut self, from: &RescueKey, sockets: Vec<OwnedFd>, now: Instant, reporter: &Reporter) {
        self.rescues = self.rescues.saturating_sub(1);
        let sockets_taken = sockets.len();
        self.count_rescued(from.worker, &from.stats, sockets_taken, reporter);
        self.hold_rescued(from.listener, sockets, now);
        self.workers.rescued(from.worker, sockets_taken);
        if self.phase == Phase::Stopped {
            // The stop time was up before it came back, and nobody looks after it any more.
            self.refuse(reporter);
        }
    }

    pub(super) fn count_rescued(&self, worker: WorkerId, stats: &SlotStats, count: usize, reporter: &Reporter) {
        if count > 0 {
            stats.rescued.fetch_add(count as u64, Relaxed);
            stats.connections.fetch_sub(count as u64, Relaxed);
            reporter.send(Report::Rescued { worker, count });
        }
    }

    pub(super) fn rescue_stalled(&mut self, now: Instant, reporter: &Reporter) {
        let hang_timeout = self.rules.hang_timeout;
        self.workers.each_busy(|worker| {
            if hang_timeout.is_some_and(|patience| worker.is_hung(patience, now)) {
                reporter.send(Report::Hung(worker.id));
            }
            if worker.never_received(now) {
                reporter.send(Report::NeverReceived(worker.id));
            }
        });
        let patience = self.rules.rescue_after();
        let overdue = |worker: &Worker| worker.waits_since().is_some_and(|since| now.duration_since(since) >= patience);
        let mut jobs = Vec::new();
        self.workers.stall(overdue, |worker| {
            let (id, stats) = (worker.id, worker.stats.clone());
            let queues = worker.stall().into_iter();
            jobs.extend(
                queues.map(|(listener, queue)| (RescueKey { worker: id, listener, stats: stats.clone() }, queue)),
            );
            reporter.send(Report::Stalled(id));
        });
        for (key, queue) in jobs {
            self.rescue(key, queue, Mark::Empty, reporter);
        }
    }
}
