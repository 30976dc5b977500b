//! Clients that wait for a worker: where it is hashed each worker has a line of its own; and the bell that a worker rings when it
//! has room again.

use std::time::Instant;

use super::{Choice, WorkerSet};
use crate::accept::Context;
use crate::accept::line::{Held, Part, Ticket};
use crate::accept::orders::{Rules, place};
use crate::accept::worker::Worker;
use crate::handoff::page::Rings;

impl WorkerSet {
    /// Connections that wait in the workers' lines.
    pub fn in_line(&self) -> usize {
        self.in_line
    }

    /// Has a connection wait for the worker at an index from [`Choice::Waits`].
    pub fn line_up(&mut self, at: usize, ticket: Ticket, held: Held) {
        self.workers[at].line.insert(ticket, held);
        self.in_line += 1;
    }

    /// Empties all lines.
    pub fn take_lines(&mut self) -> Part {
        self.in_line = 0;
        self.workers.iter_mut().flat_map(|worker| std::mem::take(&mut worker.line)).collect()
    }

    /// Moves connections from a worker's line into its batch as soon as it has room; when their patience is over, or (without
    /// sessions) once the worker is stalled, into another worker's. `leaves` is called for each of these. Returns the connections that found no room
    /// within the queue timeout.
    pub fn serve_lines(&mut self, rules: &Rules, now: Instant, mut leaves: impl FnMut(&Held)) -> Vec<Held> {
        let mut overdue = Vec::new();
        if self.in_line == 0 {
            return overdue;
        }
        for at in 0..self.workers.len() {
            while let Some((ticket, held)) = self.workers[at].line.pop_first() {
                let view = &mut self.views[at];
                let own = view.weight > 0 && self.workers[at].serves_at(place(held.listener)) && rules.policy.hashes();
                let waited = now.duration_since(held.since);
                let patient = own && (!view.stalled || rules.has_sessions()) && waited < rules.patience();
                let choice = if own && !view.stalled && view.has_room() {
                    view.gets_one();
                    Choice::Gets(at)
                } else if patient {
                    Choice::NoWorker
                } else {
                    self.choose(rules.policy, held.listener, rules.key(&held.client), false, now)
                };
                match choice {
                    Choice::Gets(to) => {
                        leaves(&held);
                        self.push(to, held.listener, held.socket, held.client);
                    }
                    _ if !patient && waited >= rules.queue_timeout => overdue.push(held),
                    _ => {
                        self.workers[at].line.insert(ticket, held);
                        break;
                    }
                }
                self.in_line -= 1;
            }
        }
        overdue
    }

    /// When [`WorkerSet::serve_lines`] has something to do by the clock alone.
    pub fn lines_due(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        let first = self.workers.iter().filter_map(|worker| Some(worker.line.first_key_value()?.1.since));
        let due =
            |since: Instant| [since + rules.patience(), since + rules.queue_timeout].into_iter().find(|&at| at > now);
        first.filter_map(due).min()
    }

    /// Since when the one that has waited longest in a worker's line waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.workers.iter().filter_map(|worker| Some(worker.line.first_key_value()?.1.since)).min()
    }

    /// A client that waits in a worker's line.
    pub fn get_in_line(&self, ticket: Ticket) -> Option<&Held> {
        self.workers.iter().find_map(|worker| worker.line.get(&ticket))
    }

    /// Takes a client out of a worker's line.
    pub fn leave_line(&mut self, ticket: Ticket) -> Option<Held> {
        let held = self.workers.iter_mut().find_map(|worker| worker.line.remove(&ticket))?;
        self.in_line -= 1;
        Some(held)
    }

    /// Has workers ring the bell when they may have room again: after a close, all where `everybody` is set, else those without
    /// room; after a receive, too, those that are behind or stalled or have as much pending as they may. Whether to look again:
    /// one that did not ring before may have room by now.
    pub fn want_room(&mut self, rules: &Rules, everybody: bool, now: Instant, cx: &Context) -> bool {
        self.rings = true;
        let mut look = false;
        for at in 0..self.workers.len() {
            let (worker, view) = (&mut self.workers[at], &self.views[at]);
            let rings = if worker.is_overdue(rules.rescue_after(), now) || view.lags() {
                Rings::AfterReceives
            } else if everybody || view.room == 0 {
                Rings::AfterCloses
            } else {
                // Some that had none may still be found without: no need to have them start again.
                worker.rings().min(Rings::AfterCloses)
            };
            let new = worker.ring(rings);
            if everybody || view.room == 0 {
                worker.watch_ends(now, cx);
            }
            // The others were looked at since they ring.
            if new {
                self.look_at(at, now);
                self.distrust(rules.policy);
                look |= everybody || self.views[at].eligible();
            }
        }
        look
    }

    /// Processes of a server have ended.
    pub fn settle(&mut self) {
        self.workers.iter_mut().for_each(Worker::settle);
    }

    /// Connections of all workers, open or on their way.
    pub fn connections(&self) -> u64 {
        self.workers.iter().map(Worker::has).sum()
    }

    /// Whether workers may have been asked to ring the bell.
    pub fn ring(&self) -> bool {
        self.rings
    }

    /// No client waits any more.
    pub fn want_no_room(&mut self) {
        if std::mem::take(&mut self.rings) {
            for worker in &mut self.workers {
                worker.ring(Rings::Never);
            }
        }
    }
}
