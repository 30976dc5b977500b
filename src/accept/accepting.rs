//! Takes connections out of the backlog, and holds those that no worker can take yet.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Context;
use super::dispatcher::{Held, RETRY, ServiceDispatcher};
use super::orders::{Addresses, ListenerId, Report, place};
use crate::sys::closer::Foreign;
use crate::sys::sock::{self, PeerAddress};

/// Connections accepted per turn before other events are handled; the loop comes back by itself.
const BUDGET: usize = 128;
/// Delay until accept(2) is called again after descriptors or memory ran out: no new edge comes for that.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Break for a service on whose listeners accept(2) blocked: the first, doubled each time up to the second.
const BREAK: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

impl ServiceDispatcher {
    /// Places held connections, oldest first. Connections held for an unserved listener do not block the others.
    pub(super) fn place_held(&mut self, now: Instant) {
        self.blocked = false;
        if self.workers.is_empty() {
            return;
        }
        for _ in 0..self.held.len() {
            let Some(held) = self.held.pop_front() else { break };
            if self.blocked || !self.workers.is_served(held.listener) {
                self.held.push_back(held);
            } else if let Some(socket) = self.place(held.listener, held.socket, held.peer, now) {
                self.held.push_back(Held { socket, ..held });
                self.paused = Some(now + RETRY);
                self.blocked = true;
            }
        }
    }

    /// Accepts from every ready listener while a worker has room.
    pub(super) fn accept_burst(&mut self, now: Instant, cx: &Context) {
        let mut budget = BUDGET;
        for at in 0..self.listeners.len() {
            let listener = &self.listeners[at];
            let Some(id) = listener.id.filter(|_| listener.ready) else { continue };
            let served = self.workers.is_served(id);
            while budget > 0 && self.may_accept(at, served, now) {
                budget -= 1;
                self.accept_one(id, served, now, cx);
            }
        }
    }

    /// Whether the listener is ready and a connection could be placed or held.
    fn may_accept(&mut self, at: usize, served: bool, now: Instant) -> bool {
        let listener = &self.listeners[at];
        if !listener.ready || listener.socket.is_none() || listener.trouble.is_some_and(|(_, at)| now < at) {
            return false;
        }
        // Held connections go before new ones. With no worker, or while the intake ends, new ones are held, too.
        let free = served && !self.blocked && self.workers.any_free();
        let hold = !served || self.ends();
        if free || (hold && self.waiting() < self.rules.max_held) {
            return true;
        }
        self.paused = Some(now + RETRY);
        false
    }

    fn accept_one(&mut self, id: ListenerId, served: bool, now: Instant, cx: &Context) {
        let listener = &mut self.listeners[place(id)];
        let closing = listener.closing;
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
                let Some(socket) = self.place(id, socket, peer, now) else { return };
                let held = Held { listener: id, socket, peer, since: now };
                if closing && !served {
                    // No worker will ever serve this listener.
                    return self.give_up(vec![held], cx);
                }
                self.blocked |= served;
                self.held.push_back(held);
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

    /// Resets clients held for longer than the queue timeout.
    pub(super) fn shed_overdue(&mut self, now: Instant, cx: &Context) {
        let overdue = |held: &Held| now.duration_since(held.since) >= self.rules.queue_timeout;
        let count = self.held.iter().take_while(|held| overdue(held)).count();
        self.shed(count, cx);
    }

    /// Resets the first `count` held connections.
    pub(super) fn shed(&mut self, count: usize, cx: &Context) {
        let first = self.held.drain(..count).collect();
        self.give_up(first, cx);
    }

    /// Resets connections that were taken out of the held ones, and counts them.
    pub(super) fn give_up(&mut self, connections: Vec<Held>, cx: &Context) {
        let count = connections.len();
        if count > 0 {
            connections.into_iter().for_each(|held| reset(held.socket));
            self.stats.shed.fetch_add(count as u64, Relaxed);
            self.stats.held.store(self.waiting() as u64, Relaxed);
            cx.report(Report::Shed { service: self.id, count });
        }
    }

    /// Rescued connections have waited longest: they go first, in their order.
    pub(super) fn hold_rescued(&mut self, listener: ListenerId, sockets: Vec<OwnedFd>, now: Instant) {
        if self.listener(listener).is_none() {
            sockets.into_iter().for_each(reset);
            return;
        }
        for socket in sockets.into_iter().rev() {
            let peer = match self.rules.addresses {
                Addresses::Wanted => PeerAddress::of(socket.as_fd()),
                Addresses::Ignored => PeerAddress::default(),
            };
            self.held.push_front(Held { listener, socket, peer, since: now });
        }
    }
}

/// Resets a connection that no worker gets. A client of a Unix listener may have passed descriptors, and a server may have
/// left a socket of its own in its queue, so the close can block: a closer thread does it.
pub(super) fn reset(socket: OwnedFd) {
    sock::reset_on_close(socket.as_fd());
    drop(Foreign::socket(socket));
}
