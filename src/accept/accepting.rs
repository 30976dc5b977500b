//! Takes connections out of the backlog, and holds those that no worker can take yet.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Context;
use super::dispatcher::{RETRY, ServiceDispatcher};
use super::line::Held;
use super::orders::{Addresses, LimitReached, ListenerId, Report, place};
use super::stage::Arrival;
use super::waits::ShedReason;
use super::worker_set::Choice;
use crate::sys::sock::{self, PeerAddress};

/// Connections accepted per turn before other events are handled; the loop comes back by itself.
const BUDGET: usize = 128;
/// Delay until accept(2) is called again after descriptors or memory ran out: no new edge comes for that.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Break for a service on whose listeners accept(2) blocked: the first, doubled each time up to the second.
const BREAK: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

impl ServiceDispatcher {
    /// Accepts from every ready listener while a worker has room.
    pub(super) fn accept_burst(&mut self, now: Instant, cx: &Context) {
        let mut budget = BUDGET;
        let mut full = Vec::new();
        for at in 0..self.listeners.len() {
            let listener = &self.listeners[at];
            let Some(id) = listener.id.filter(|_| listener.ready) else { continue };
            let served = self.workers.is_served(id);
            while budget > 0 && self.may_accept(at, served, now, cx) {
                budget -= 1;
                self.accept_one(id, served, now, &mut full, cx);
            }
        }
        self.give_up(full, ShedReason::QueueFull, cx);
    }

    /// Whether the listener is ready and a connection could be placed or held.
    fn may_accept(&mut self, at: usize, served: bool, now: Instant, cx: &Context) -> bool {
        let listener = &self.listeners[at];
        let (Some(id), Some(socket)) = (listener.id, listener.socket.as_ref()) else { return false };
        if !listener.ready || listener.trouble.is_some_and(|(_, at)| now < at) {
            return false;
        }
        // A stop takes the backlog whatever the rate.
        if self.rules.accept_rate.is_some() && !self.ends() && self.pace.is_reached(now) {
            if self.pace.makes_wait(|| sock::is_readable(socket.as_fd())) {
                self.stats.paced.fetch_add(1, Relaxed);
            }
            if self.pace.somebody_waits() {
                self.limit.reached = Some(LimitReached::AcceptRate);
            }
            self.listeners[at].full = false;
            return false;
        }
        if self.is_full() {
            self.listeners[at].full = true;
            self.paused = Some(now + RETRY);
            return false;
        }
        let room = self.has_place(id, served, cx);
        self.listeners[at].full = !room;
        if !room {
            self.paused = Some(now + RETRY);
        }
        room
    }

    /// Whether a connection of a listener could be placed or held, or would be one too many.
    pub(super) fn has_place(&self, id: ListenerId, served: bool, cx: &Context) -> bool {
        // Held connections go before new ones. With no worker, while the intake ends, or where workers have a limit, new ones
        // are held, too.
        let free = served && !self.blocked.contains(&id) && self.workers.any_free();
        let hold = !served || self.ends() || self.rules.worker_conns.is_some();
        free || (hold && self.may_hold(cx)) || (served && self.queue_is_full())
    }

    /// Whether more clients than `--max-queue` would wait for room in a worker.
    fn queue_is_full(&self) -> bool {
        self.rules.max_queue.is_some_and(|max| self.waiting() >= max)
    }

    /// `full`: gets a client that is one too many.
    fn accept_one(&mut self, id: ListenerId, served: bool, now: Instant, full: &mut Vec<Held>, cx: &Context) {
        let listener = &mut self.listeners[place(id)];
        let Some(socket) = &listener.socket else { return };
        let trouble = |errno| Report::AcceptTrouble { service: self.id, listener: id, errno };
        let accepted = match self.rules.addresses {
            Addresses::Wanted => sock::accept_with_peer(socket.as_fd()),
            Addresses::Ignored => sock::accept(socket.as_fd()).map(|socket| (socket, PeerAddress::default())),
        };
        match accepted {
            Ok((socket, peer)) => {
                if listener.trouble.take().is_some() {
                    cx.report(trouble(None));
                }
                self.stats.accepted.fetch_add(1, Relaxed);
                self.limit.count();
                if let Some(rate) = self.rules.accept_rate {
                    self.pace.count(rate, now);
                }
                let arrival = Arrival { listener: id, socket, client: peer.into(), peer, looked: 0 };
                if let Some(arrival) = self.pass_stage(arrival, now, cx) {
                    self.admit(arrival, served, now, full, cx);
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                match errno {
                    libc::EAGAIN => listener.ready = false,
                    libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EBADF | libc::EINVAL => {
                        let is_new = listener.trouble.replace((errno, now + RETRY_AFTER)).is_none();
                        if is_new {
                            cx.report(trouble(Some(errno)));
                        }
                    }
                    libc::EINTR if sock::is_blocking(socket.as_fd()) => self.accept_blocked(id, cx),
                    // ECONNABORTED, EINTR, EPROTO and the network errors that accept(2) passes on belong to
                    // one connection: the next one may be fine.
                    _ => {}
                }
            }
        }
    }

    /// Gives a connection to a worker, or has it wait for one. `full`: gets a client that is one too many.
    pub(super) fn admit(
        &mut self,
        Arrival { listener: id, socket, client, .. }: Arrival,
        served: bool,
        now: Instant,
        full: &mut Vec<Held>,
        cx: &Context,
    ) {
        // Nobody overtakes those that wait.
        let key = self.key(&client);
        let choice = if self.blocked.contains(&id) { Choice::NoWorker } else { self.choose(id, key, now, cx) };
        let worker = match choice {
            Choice::Gets(at) => return self.workers.push(at, id, socket, client),
            Choice::Waits(at) => Some(at),
            Choice::NoWorker => None,
        };
        let held = Held { listener: id, socket, client, since: now, watched: false, slot: None };
        // No worker will ever serve a listener that closes and has none.
        if !served && self.listeners[place(id)].closing {
            return self.give_up(vec![held], ShedReason::NoWorker, cx);
        }
        if served && self.queue_is_full() {
            full.push(held);
            return;
        }
        if served && worker.is_none() {
            self.block(id);
        }
        let ticket = self.line.ticket();
        self.hold(ticket, held, worker, cx);
    }

    /// Another process that has a listening socket made it blocking. One that does so repeatedly must not slow down the
    /// other services, hence the growing break.
    fn accept_blocked(&mut self, id: ListenerId, cx: &Context) {
        let now = Instant::now();
        let pause = match self.waited {
            Some((pause, until)) if now.duration_since(until) < BREAK[1] => (pause * 2).min(BREAK[1]),
            _ => BREAK[0],
        };
        self.waited = Some((pause, now + pause));
        for listener in &mut self.listeners {
            let Some(socket) = &listener.socket else { continue };
            sock::unblock(socket.as_fd());
            if listener.id == Some(id) && listener.trouble.is_none() {
                cx.report(Report::AcceptTrouble { service: self.id, listener: id, errno: Some(libc::EINTR) });
            }
            listener.trouble = Some((libc::EINTR, now + pause));
        }
    }
}
