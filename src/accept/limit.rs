//! `--max-conns`: while a service has as many connections, more clients wait in the backlog.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Context;
use super::dispatcher::ServiceDispatcher;
use super::orders::{LimitReached, Report, WorkerId};
use super::worker::Worker;
use crate::handoff::page::{CountersPage, Rings};

/// A worker that gets nothing new and still has connections.
#[derive(Debug)]
struct Leaving {
    id: WorkerId,
    page: Arc<CountersPage>,
    /// Connections that it got and that were not taken back.
    got: u64,
}

impl Leaving {
    fn connections(&self) -> u64 {
        self.got.saturating_sub(self.page.closed())
    }
}

/// What a service with `--max-conns` knows of its connections.
#[derive(Debug, Default)]
pub(super) struct Limit {
    leaving: Vec<Leaving>,
    /// How many more may be accepted in this turn.
    left: u64,
    /// In this turn no more clients were accepted because of it.
    pub(super) reached: Option<LimitReached>,
    /// Open connections cannot be counted: the limit does not hold.
    uncountable: bool,
    /// Workers that leave may have been asked to ring the bell.
    rings: bool,
}

impl Limit {
    /// A worker leaves with the connections that it has.
    pub fn leaves(&mut self, worker: &Worker) {
        let (page, got) = worker.account();
        self.leaving.push(Leaving { id: worker.id, page: page.clone(), got });
    }

    /// Workers that leave, and how many connections each got: for a daemon's record.
    pub fn all(&self) -> impl Iterator<Item = (WorkerId, u64)> {
        self.leaving.iter().map(|one| (one.id, one.got))
    }

    /// A worker leaves that was one of the program before.
    pub fn left_before(&mut self, id: WorkerId, page: Arc<CountersPage>, got: u64) {
        self.leaving.push(Leaving { id, page, got });
    }

    /// Connections that a leaving worker had not received went to others.
    pub fn taken_back(&mut self, id: WorkerId, count: usize) {
        self.leaving
            .iter_mut()
            .filter(|one| one.id == id)
            .for_each(|one| one.got = one.got.saturating_sub(count as u64));
    }

    /// A worker has ended, and its connections with it.
    pub fn ended(&mut self, id: WorkerId) {
        self.leaving.retain(|one| one.id != id);
    }

    /// Sets whether workers that leave ring the bell after a close. Whether one may have done so before it was asked to.
    pub fn ring(&mut self, on: bool) -> bool {
        let new = std::mem::replace(&mut self.rings, on) != on;
        if new {
            let rings = if on { Rings::AfterCloses } else { Rings::Never };
            self.leaving.iter().for_each(|one| one.page.want_room(rings));
        }
        new && on && !self.leaving.is_empty()
    }

    /// One more connection.
    pub fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

impl ServiceDispatcher {
    /// Counts connections, once per turn.
    pub(super) fn count_connections(&mut self, cx: &Context) {
        self.limit.reached = None;
        let Some(max) = self.rules.max_conns.filter(|_| !self.ends()) else {
            self.limit.left = u64::MAX;
            return;
        };
        if !self.limit.uncountable && self.workers.iter().any(Worker::is_estimate) {
            self.limit.uncountable = true;
            cx.report(Report::Uncountable(self.id));
        }
        self.limit.left = if self.limit.uncountable { u64::MAX } else { max.saturating_sub(self.all_connections()) };
    }

    /// Connections of its workers, in flight or open.
    pub fn connection_count(&self) -> u64 {
        self.workers.iter().map(Worker::connection_count).sum()
    }

    /// Connections open, on their way, and waiting in the master.
    pub(super) fn all_connections(&mut self) -> u64 {
        self.limit.leaving.retain(|one| one.connections() > 0);
        let leaving: u64 = self.limit.leaving.iter().map(Leaving::connections).sum();
        self.workers.connections() + leaving + (self.waiting() + self.stage.len()) as u64
    }

    /// Whether the service has as many connections as it may.
    pub(super) fn is_full(&mut self) -> bool {
        let full = self.limit.left == 0;
        if full {
            self.limit.reached = Some(LimitReached::MaxConns);
        }
        full
    }

    /// Whether there is room for one more by now.
    pub(super) fn has_room(&mut self) -> bool {
        self.rules.max_conns.is_none_or(|max| self.all_connections() < max)
    }

    /// Has status show the limit reached.
    pub(super) fn show_limit(&self) {
        self.stats.limit.store(self.limit.reached.map_or(0, |limit| limit as u64), Relaxed);
    }
}
