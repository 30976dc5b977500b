//! Workers that do not receive: they are reported, and their queues go to others.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::Context;
use super::dispatcher::{Phase, ServiceDispatcher};
use super::orders::{Report, RescueKey, SlotStats, WorkerId};
use super::worker::Worker;
use crate::handoff::rescue::{Job, Mark};
use crate::handoff::{QueueTx, TakenBack};

impl ServiceDispatcher {
    pub(super) fn rescue(&mut self, key: RescueKey, queue: Arc<QueueTx>, mark: Mark, cx: &Context) {
        if cx.rescue.send(Job { key, queue, mark }).is_ok() {
            self.rescues += 1;
        }
    }

    /// The rescue thread has emptied a queue of a live worker.
    pub fn rescued(&mut self, cx: &Context, from: &RescueKey, sockets: Vec<TakenBack>, now: Instant) {
        self.rescues = self.rescues.saturating_sub(1);
        let count = sockets.len();
        self.count_rescued(from.worker, &from.stats, count, cx);
        self.hold_rescued(from.listener, sockets, now, cx);
        self.workers.rescued(from.worker, count);
        self.limit.taken_back(from.worker, count);
        if self.phase == Phase::Stopped {
            // The stop timed out before this came back: no later turn would reset these clients.
            self.refuse(cx);
        }
    }

    pub(super) fn count_rescued(&self, worker: WorkerId, stats: &SlotStats, count: usize, cx: &Context) {
        if count > 0 {
            stats.rescued.fetch_add(count as u64, Relaxed);
            stats.connections.fetch_sub(count as u64, Relaxed);
            cx.report(Report::Rescued { worker, count });
        }
    }

    pub(super) fn rescue_stalled(&mut self, now: Instant, cx: &Context) {
        self.workers.each_busy(|worker| {
            if self.rules.hang_timeout.is_some_and(|timeout| worker.is_hung(timeout, now)) {
                cx.report(Report::Hung(worker.id));
            }
            if worker.exceeds_limit() {
                cx.report(Report::Inexact(worker.id));
            }
            if worker.never_received(now) {
                cx.report(Report::NeverReceived(worker.id));
            }
        });
        let timeout = self.rules.rescue_after();
        let overdue = |worker: &Worker| worker.is_overdue(timeout, now);
        let clients_wait = self.rules.worker_conns.is_some() && self.waiting() > 0;
        for (id, stats, queues) in self.workers.stall(clients_wait, overdue) {
            cx.report(Report::Stalled(id));
            for (listener, queue) in queues {
                self.rescue(RescueKey { worker: id, listener, stats: stats.clone() }, queue, Mark::Empty, cx);
            }
        }
    }
}
