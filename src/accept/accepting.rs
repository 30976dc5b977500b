//! Taking connections out of the backlog, and holding those that have no worker yet.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::dispatcher::{Held, RETRY, Reporter, ServiceDispatcher};
use super::orders::{Addresses, ListenerId, Report, place};
use crate::sys::closer::Foreign;
use crate::sys::sock::{self, PeerAddress};

/// Connections that one turn accepts before it looks at other events; the loop comes back by itself.
const BUDGET: usize = 128;
/// How soon accept(2) is tried again when descriptors or memory ran out: no new edge will come for it.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// A service whose sockets had accept(2) wait is left alone for so long; each time twice as long, up to the second number.
const WAITED: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];

impl ServiceDispatcher {
    /// Places what is held, in its order. What waits for a listener that nobody serves lets the others go past.
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

    /// Accepts from every listener that has something, as long as there is somebody to take it.
    pub(super) fn accept_burst(&mut self, now: Instant, reporter: &Reporter) {
        let mut budget = BUDGET;
        for at in 0..self.listeners.len() {
            let listener = &self.listeners[at];
            let Some(id) = listener.id.filter(|_| listener.ready) else { continue };
            let served = self.workers.is_served(id);
            while budget > 0 && self.may_accept(at, served, now) {
                budget -= 1;
                self.accept_one(id, served, now, reporter);
            }
        }
    }

    /// Whether the listener has something and there is somebody (or room) to take it.
    fn may_accept(&mut self, at: usize, served: bool, now: Instant) -> bool {
        let listener = &self.listeners[at];
        if !listener.ready || listener.socket.is_none() || listener.trouble.is_some_and(|(_, at)| now < at) {
            return false;
        }
        // What is held for those who serve goes first. While nobody does, or at the end, connections are held here.
        let free = served && !self.blocked && self.workers.any_free();
        let hold = !served || self.ends();
        if free || (hold && self.waiting() < self.rules.max_held) {
            return true;
        }
        self.paused = Some(now + RETRY);
        false
    }

    fn accept_one(&mut self, id: ListenerId, served: bool, now: Instant, reporter: &Reporter) {
        let listener = &mut self.listeners[place(id)];
        let closing = listener.closing;
        let Some(socket) = &listener.socket else { return };
        let accepted = match self.rules.addresses {
            Addresses::Wanted => sock::accept_with_peer(socket.as_fd()),
            Addresses::Ignored => sock::accept(socket.as_fd()).map(|socket| (socket, PeerAddress::default())),
        };
        match accepted {
            Ok((socket, peer)) => {
                if listener.trouble.take().is_some() {
                    reporter.send(Report::AcceptTrouble { service: self.id, listener: id, errno: None });
                }
                self.stats.accepted.fetch_add(1, Relaxed);
                let Some(socket) = self.place(id, socket, peer, now) else { return };
                if closing && !served {
                    // Nobody will ever come for it.
                    reset(socket);
                    self.stats.shed.fetch_add(1, Relaxed);
                    reporter.send(Report::Shed { service: self.id, count: 1 });
                    return;
                }
                self.blocked |= served;
                self.held.push_back(Held { listener: id, socket, peer, since: now });
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                match errno {
                    libc::EAGAIN => listener.ready = false,
                    libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EBADF | libc::EINVAL => {
                        if listener.trouble.is_none() {
                            let report = Report::AcceptTrouble { service: self.id, listener: id, errno: Some(errno) };
                            reporter.send(report);
                        }
                        listener.trouble = Some((errno, now + RETRY_AFTER));
                    }
                    libc::EINTR if sock::is_blocking(socket.as_fd()) => self.waited_for(id, reporter),
                    // ECONNABORTED, EINTR, EPROTO and the network errors that accept(2) passes on belong to
                    // one connection: the next one may be fine.
                    _ => {}
                }
            }
        }
    }

    /// Somebody who has a listening socket, too, has made it blocking. Whoever does that again and again takes little of
    /// the other services' time.
    fn waited_for(&mut self, id: ListenerId, reporter: &Reporter) {
        let now = Instant::now();
        let pause = match self.waited {
            Some((pause, until)) if now.duration_since(until) < WAITED[1] => (pause * 2).min(WAITED[1]),
            _ => WAITED[0],
        };
        self.waited = Some((pause, now + pause));
        for listener in &mut self.listeners {
            let Some(socket) = &listener.socket else { continue };
            sock::unblock(socket.as_fd());
            if listener.id == Some(id) && listener.trouble.is_none() {
                reporter.send(Report::AcceptTrouble { service: self.id, listener: id, errno: Some(libc::EINTR) });
            }
            listener.trouble = Some((libc::EINTR, now + pause));
        }
    }

    /// Resets clients that have waited too long.
    pub(super) fn shed_overdue(&mut self, now: Instant, reporter: &Reporter) {
        let overdue = |held: &Held| now.duration_since(held.since) >= self.rules.queue_timeout;
        let count = self.held.iter().take_while(|held| overdue(held)).count();
        self.shed(count, reporter);
    }

    /// Resets the first `count` held connections.
    pub(super) fn shed(&mut self, count: usize, reporter: &Reporter) {
        let first = self.held.drain(..count).collect();
        self.give_up(first, reporter);
    }

    /// Resets connections that wait no longer.
    pub(super) fn give_up(&mut self, connections: Vec<Held>, reporter: &Reporter) {
        let count = connections.len();
        if count > 0 {
            connections.into_iter().for_each(|held| reset(held.socket));
            self.stats.shed.fetch_add(count as u64, Relaxed);
            self.stats.held.store(self.waiting() as u64, Relaxed);
            reporter.send(Report::Shed { service: self.id, count });
        }
    }

    /// Rescued connections have waited longest: they go first, in their order.
    pub(super) fn hold_rescued(&mut self, listener: ListenerId, sockets: Vec<OwnedFd>, now: Instant) {
        if self.has_forgotten(listener) {
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
/// left a socket of its own in its queue: the close is not ours to wait for.
pub(super) fn reset(socket: OwnedFd) {
    sock::reset_on_close(socket.as_fd());
    drop(Foreign::socket(socket));
}
