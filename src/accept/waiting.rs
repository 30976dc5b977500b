//! Clients that wait in the master: for room in a worker, or for a worker. First come first served.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Context;
use super::dispatcher::{Phase, RETRY, ServiceDispatcher};
use super::hash::Key;
use super::line::{Held, Ticket};
use super::orders::{Addresses, LimitReached, ListenerId, Report, SlotStats};
use super::waits::ShedReason;
use super::worker::Worker;
use super::worker_set::Choice;
use crate::affinity::HashOn;
use crate::handoff::{Client, TakenBack};
use crate::sys::clock::monotonic_ns;
use crate::sys::closer::Foreign;
use crate::sys::sock::{self, PeerAddress};

/// Clients reset because too many wait are reported this often at most.
const OVERFLOW_REPORTS: Duration = Duration::from_secs(1);

impl ServiceDispatcher {
    /// Gives workers that have room the clients that wait.
    pub(super) fn serve_line(&mut self, cx: &Context, now: Instant) {
        let stats = &self.stats;
        let overdue = self.workers.serve_lines(&self.rules, now, |held| {
            leaves_line(held, cx);
            stats.waits.record(now.duration_since(held.since));
        });
        self.give_up(overdue, ShedReason::QueueTimeout, cx);
        self.place_held(now, cx);
    }

    /// While clients wait for room, workers ring the bell when they may have some.
    pub(super) fn want_room(&mut self, cx: &Context, now: Instant) {
        self.until_bell = false;
        let full = self.limit.reached == Some(LimitReached::MaxConns);
        let waits = |it: &Self| it.rules.worker_conns.is_some() && (!it.blocked.is_empty() || it.workers.in_line() > 0);
        let leaving = self.limit.ring(full);
        if !full && !waits(self) {
            return self.workers.want_no_room();
        }
        // What was closed or received before a worker knew of it was read after that.
        if self.workers.want_room(&self.rules, full, now, cx) || leaving {
            self.serve_line(cx, now);
            let room = if full { self.has_room() } else { !waits(self) };
            if room || self.workers.want_room(&self.rules, full, now, cx) {
                self.paused = Some(now);
                return;
            }
        }
        // Workers that came before a reload set a limit have no bell.
        self.until_bell = self.workers.iter().all(Worker::has_bell);
        self.paused = (!self.until_bell).then_some(now + RETRY);
    }

    /// Chooses a worker. Where it is hashed a connection may have to wait for the worker that its key belongs to.
    pub(super) fn choose(&mut self, listener: ListenerId, key: Option<Key>, now: Instant, cx: &Context) -> Choice {
        let may_wait = key.is_some() && self.may_hold(cx);
        self.workers.choose(self.rules.policy, listener, key, may_wait, now)
    }

    /// What decides which worker a client belongs to.
    pub(super) fn key(&self, client: &Client) -> Option<Key> {
        match (&self.rules.hash_on, client.key) {
            (Some(HashOn::SocketIo), Some(session)) => {
                self.workers.position(self.stage.session(session)?).map(Key::Worker)
            }
            _ => self.rules.key(client),
        }
    }

    /// Has a connection wait, with its ticket: in the line of the worker at an index, or in that of the service.
    pub(super) fn hold(&mut self, ticket: Ticket, mut held: Held, worker: Option<usize>, cx: &Context) {
        if self.rules.worker_conns.is_some() && !held.watched {
            held.watched = cx.watch_client(&held.socket, self.id, ticket).is_ok();
        }
        match worker {
            Some(at) => self.workers.line_up(at, ticket, held),
            None => self.line.insert(ticket, held),
        }
    }

    /// Shows who waits.
    pub(super) fn show_waiting(&self) {
        let waiting = self.waiting();
        self.stats.held.store(waiting as u64, Relaxed);
        let oldest =
            if waiting == 0 { None } else { self.line.oldest().into_iter().chain(self.workers.oldest()).min() };
        let ago = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stats.oldest.store(oldest.map_or(0, |since| monotonic_ns().saturating_sub(ago(since)).max(1)), Relaxed);
    }

    /// Connections that wait in the master.
    pub(super) fn waiting(&self) -> usize {
        self.line.len() + self.workers.in_line()
    }

    /// Whether one more may wait: there are bounds for this service, and for all of them together.
    pub(super) fn may_hold(&self, cx: &Context) -> bool {
        let waiting = self.waiting();
        let others = cx.held.get().saturating_sub(self.counted);
        waiting < self.rules.max_held && waiting + others < self.rules.max_held_by_all
    }

    /// After a turn: how many wait now, for the other services.
    pub(super) fn count_waiting(&mut self, cx: &Context) {
        let waiting = self.waiting();
        cx.held.set((cx.held.get() + waiting).saturating_sub(self.counted));
        self.counted = waiting;
    }

    /// No worker that serves the listener has room: clients that come to it wait.
    pub(super) fn block(&mut self, listener: ListenerId) {
        if !self.blocked.contains(&listener) {
            self.blocked.push(listener);
        }
    }

    /// Places held connections, oldest first. Those whose listener has no worker, or only full ones, do not block the others.
    pub(super) fn place_held(&mut self, now: Instant, cx: &Context) {
        self.blocked.clear();
        if self.workers.is_empty() {
            return;
        }
        while let Some((ticket, held)) =
            self.line.next(|listener| self.workers.is_served(listener) && !self.blocked.contains(&listener))
        {
            let (listener, key) = (held.listener, self.key(&held.client));
            // The others are older, and may be replaced next.
            let newest = held.slot.filter(|_| key.is_none()).and_then(|slot| self.workers.newest_of(slot, listener));
            let choice = match newest {
                Some(at) => Choice::Gets(at),
                None => self.choose(listener, key, now, cx),
            };
            if choice == Choice::NoWorker {
                self.paused = Some(now + RETRY);
                self.block(listener);
                continue;
            }
            let Some(held) = self.line.remove(ticket) else { return };
            match choice {
                Choice::Waits(at) => self.workers.line_up(at, ticket, held),
                Choice::Gets(at) => {
                    leaves_line(&held, cx);
                    self.stats.waits.record(now.duration_since(held.since));
                    self.workers.push(at, listener, held.socket, held.client);
                }
                Choice::NoWorker => {}
            }
        }
    }

    /// Resets clients held for longer than the queue timeout.
    pub(super) fn shed_overdue(&mut self, now: Instant, cx: &Context) {
        let overdue = self.line.take_overdue(self.rules.queue_timeout, now);
        self.give_up(overdue, ShedReason::QueueTimeout, cx);
    }

    /// Resets connections that were taken out of the held ones, and counts them.
    pub(super) fn give_up(&mut self, connections: Vec<Held>, reason: ShedReason, cx: &Context) {
        let count = connections.len();
        if count > 0 {
            connections.into_iter().for_each(|held| self.reset(held, cx));
            self.stats.shed.add(reason, count as u64);
            self.show_waiting();
            self.report_shed(count, reason, cx);
        }
    }

    /// Clients that come and go as they like write at most one line a second.
    pub(super) fn report_shed(&mut self, count: usize, reason: ShedReason, cx: &Context) {
        let count = match reason {
            ShedReason::ClientLeft => return,
            ShedReason::QueueFull => {
                self.overflow.0 += count;
                if self.overflow.1.is_some_and(|last| last.elapsed() < OVERFLOW_REPORTS) {
                    return;
                }
                self.overflow.1 = Some(Instant::now());
                std::mem::take(&mut self.overflow.0)
            }
            ShedReason::QueueTimeout | ShedReason::NoWorker => count,
        };
        cx.report(Report::Shed { service: self.id, count, reason });
    }

    pub(super) fn reset(&self, held: Held, cx: &Context) {
        leaves_line(&held, cx);
        reset(held.socket);
    }

    /// A connection that a leaving worker gave back goes on with another one, unless the service ends or too many wait: then it
    /// is closed. `from`: that one's slot, and its counters.
    pub fn moved(
        &mut self,
        (slot, stats): (u32, &SlotStats),
        listener: ListenerId,
        (socket, translated): (Foreign, Option<Client>),
        now: Instant,
        cx: &Context,
    ) {
        if self.phase == Phase::Serving && self.listener(listener).is_some() && self.may_hold(cx) {
            stats.moved.fetch_add(1, Relaxed);
            let connection = TakenBack { socket: socket.into_owned(), translated };
            self.hold_again(listener, vec![connection], Some(slot), now, cx);
        }
    }

    /// Rescued connections have waited longest: they go first, in their order.
    pub(super) fn hold_rescued(&mut self, listener: ListenerId, sockets: Vec<TakenBack>, now: Instant, cx: &Context) {
        self.hold_again(listener, sockets, None, now, cx);
    }

    /// `slot`: that of the worker that gave them back.
    fn hold_again(
        &mut self,
        listener: ListenerId,
        sockets: Vec<TakenBack>,
        slot: Option<u32>,
        now: Instant,
        cx: &Context,
    ) {
        if self.listener(listener).is_none() {
            sockets.into_iter().for_each(|taken| reset(taken.socket));
            return;
        }
        for TakenBack { socket, translated } in sockets.into_iter().rev() {
            let mut client = translated.unwrap_or_else(|| match self.rules.addresses {
                Addresses::Wanted => PeerAddress::of(socket.as_fd()).into(),
                Addresses::Ignored => Client::default(),
            });
            // A server may still have a copy, and have its close block.
            client.foreign = true;
            let has_left = self.find_key_again(&socket, &mut client).is_err();
            let held = Held { listener, socket, client, since: now, watched: false, slot };
            if has_left {
                self.give_up(vec![held], ShedReason::ClientLeft, cx);
            } else {
                let ticket = self.line.ticket_at_head();
                self.hold(ticket, held, None, cx);
            }
        }
    }
}

/// A connection is about to leave the line. What watches its client belongs to the open file, which goes to the worker.
pub(super) fn leaves_line(held: &Held, cx: &Context) {
    if held.watched {
        cx.unwatch(&held.socket);
    }
}

/// Resets a connection that no worker gets. A client of a Unix listener may have passed descriptors, and a server may have
/// left a socket of its own in its queue, so the close can block: a closer thread does it.
pub(super) fn reset(socket: OwnedFd) {
    sock::reset_on_close(socket.as_fd());
    drop(Foreign::socket(socket));
}
