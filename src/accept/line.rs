//! The line of connections that wait in the master, first come first served over all listeners of a service.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::orders::{ListenerId, place};
use crate::handoff::Client;

/// A place in the line: the smallest is served first.
pub(super) type Ticket = i64;

/// A connection that was accepted (or taken back) and has no worker yet.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) listener: ListenerId,
    pub(super) socket: OwnedFd,
    pub(super) client: Client,
    pub(super) since: Instant,
    /// The accept thread's epoll reports that its client left.
    pub(super) watched: bool,
    /// The slot whose worker gave it back between two requests.
    pub(super) slot: Option<u32>,
}

/// A part of the line.
pub(super) type Part = BTreeMap<Ticket, Held>;

/// The line.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// By the listeners' places, so that connections for an unserved listener do not block the others.
    parts: Vec<Part>,
    len: usize,
    /// Tickets given out at the end of the line count up from 0, those at its head count down from -1.
    last: Ticket,
    first: Ticket,
}

impl Line {
    pub fn len(&self) -> usize {
        self.len
    }

    /// A ticket for the end of the line.
    pub fn ticket(&mut self) -> Ticket {
        self.last += 1;
        self.last
    }

    /// A ticket for the head of the line: for one that has waited longest.
    pub fn ticket_at_head(&mut self) -> Ticket {
        self.first -= 1;
        self.first
    }

    pub fn insert(&mut self, ticket: Ticket, held: Held) {
        let at = place(held.listener);
        if self.parts.len() <= at {
            self.parts.resize_with(at + 1, BTreeMap::new);
        }
        self.len += usize::from(self.parts[at].insert(ticket, held).is_none());
    }

    /// The ticket served next among those whose listener is served.
    pub fn next(&self, is_served: impl Fn(ListenerId) -> bool) -> Option<(Ticket, &Held)> {
        let heads = self.parts.iter().filter_map(|part| part.first_key_value());
        let (&ticket, held) = heads.filter(|(_, held)| is_served(held.listener)).min_by_key(|(ticket, _)| **ticket)?;
        Some((ticket, held))
    }

    /// All, in any order.
    pub fn all(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.parts.iter().flatten().map(|(ticket, held)| (*ticket, held))
    }

    pub fn get(&self, ticket: Ticket) -> Option<&Held> {
        self.parts.iter().find_map(|part| part.get(&ticket))
    }

    pub fn remove(&mut self, ticket: Ticket) -> Option<Held> {
        let held = self.parts.iter_mut().find_map(|part| part.remove(&ticket))?;
        self.len -= 1;
        Some(held)
    }

    /// Takes out all that wait for a listener.
    pub fn take_listener(&mut self, listener: ListenerId) -> Part {
        let Some(part) = self.parts.get_mut(place(listener)) else { return Part::new() };
        let (gone, stay) = std::mem::take(part).into_iter().partition(|(_, held)| held.listener == listener);
        *part = stay;
        let gone: Part = gone;
        self.len -= gone.len();
        gone
    }

    /// Takes out all.
    pub fn take(&mut self) -> Vec<Held> {
        self.len = 0;
        self.parts.iter_mut().flat_map(|part| std::mem::take(part).into_values()).collect()
    }

    /// Takes out all that have waited for at least `timeout`.
    pub fn take_overdue(&mut self, timeout: Duration, now: Instant) -> Vec<Held> {
        let overdue = |held: &Held| now.duration_since(held.since) >= timeout;
        let mut tickets = Vec::new();
        for part in &self.parts {
            // Tickets at the head are not in the order of their times; the others are.
            let at_head = part.range(..0).filter(|(_, held)| overdue(held));
            tickets.extend(at_head.chain(part.range(0..).take_while(|(_, held)| overdue(held))).map(|(&at, _)| at));
        }
        tickets.into_iter().filter_map(|ticket| self.remove(ticket)).collect()
    }

    /// Since when the one that has waited longest waits.
    pub fn oldest(&self) -> Option<Instant> {
        let of = |part: &Part| {
            let at_head = part.range(..0).map(|(_, held)| held.since).min();
            let behind = part.range(0..).next().map(|(_, held)| held.since);
            at_head.into_iter().chain(behind).min()
        };
        self.parts.iter().filter_map(of).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "line_tests.rs"]
mod tests;
