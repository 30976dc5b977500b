//! Clients that wait for a worker: under `ip-hash` each worker has a line of its own; and the bell that a worker rings when it
//! has room again.

use std::time::Instant;

use super::{Choice, WorkerSet};
use crate::accept::Context;
use crate::accept::line::{Held, Part, Ticket};
use crate::accept::orders::{ListenerId, Rules, place};
use crate::accept::policy::Policy;
use crate::accept::worker::Worker;

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

    /// Moves connections from a worker's line into its batch as soon as it has room; after `hash_wait`, or once the worker
    /// is stalled, into another worker's. `leaves` is called for each of these. Returns the connections that found no room
    /// within the queue timeout.
    pub fn serve_lines(&mut self, rules: &Rules, now: Instant, mut leaves: impl FnMut(&Held)) -> Vec<Held> {
        let mut overdue = Vec::new();
        if self.in_line == 0 {
            return overdue;
        }
        for at in 0..self.workers.len() {
            while let Some((ticket, held)) = self.workers[at].line.pop_first() {
                let view = &mut self.views[at];
                let own = view.weight > 0
                    && !view.stalled
                    && self.workers[at].serves_at(place(held.listener))
                    && rules.policy == Policy::IpHash;
                let waited = now.duration_since(held.since);
                let patient = own && waited < rules.hash_wait;
                let choice = if own && view.has_room() {
                    view.gets_one();
                    Choice::Gets(at)
                } else if patient {
                    Choice::NoWorker
                } else {
                    self.choose(rules.policy, held.listener, held.peer, false, now)
                };
                match choice {
                    Choice::Gets(to) => {
                        leaves(&held);
                        self.push(to, held.listener, held.socket, held.peer);
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
            |since: Instant| [since + rules.hash_wait, since + rules.queue_timeout].into_iter().find(|&at| at > now);
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

    /// Has workers without room ring the bell at each close from now on. Whether one has room by now.
    pub fn want_room(&mut self, now: Instant, cx: &Context) -> bool {
        self.rings = true;
        let mut found = false;
        for (worker, view) in self.workers.iter_mut().zip(&mut self.views).filter(|(_, view)| view.room == 0) {
            let new = worker.ring_at_close(true);
            worker.watch_ends(now, cx);
            // Those that ring already were looked at since.
            if new {
                view.room = worker.room();
                self.turn.fell(view);
                found |= view.eligible();
            }
        }
        found
    }

    /// Processes of a server have ended.
    pub fn settle(&mut self) {
        self.workers.iter_mut().for_each(Worker::settle);
    }

    /// Sets whether all workers ring the bell at each close. Whether that is new for one.
    pub fn ring_at_every_close(&mut self, on: bool, now: Instant, cx: &Context) -> bool {
        self.rings = on;
        let mut any = false;
        for worker in &mut self.workers {
            any |= worker.ring_at_close(on);
            if on {
                worker.watch_ends(now, cx);
            }
        }
        any
    }

    /// Connections of all workers, open or on their way.
    pub fn connections(&self) -> u64 {
        self.workers.iter().map(Worker::has).sum()
    }

    /// No client waits any more.
    pub fn want_no_room(&mut self) {
        if std::mem::take(&mut self.rings) {
            for worker in &mut self.workers {
                worker.ring_at_close(false);
            }
        }
    }

    /// Whether a worker without room for clients of these listeners, or with a line of its own, can get room without a close:
    /// by a receive, or by waking up.
    pub fn makes_room_silently(&self, listeners: &[ListenerId]) -> bool {
        self.workers.iter().zip(&self.views).any(|(worker, view)| {
            let wanted = !worker.line.is_empty() || listeners.iter().any(|&id| worker.serves_at(place(id)));
            wanted && view.weight > 0 && view.room > 0
        })
    }
}
