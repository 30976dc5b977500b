//! How a service's intake ends, for good or for now: the backlog is taken, the listeners close, what is held is handed over.

use std::os::fd::AsFd;

use mio::Poll;

use super::dispatcher::{Phase, Reporter, ServiceDispatcher};
use super::orders::{AcceptedBy, Report};
use super::{let_go, unwatch};
use crate::sys::sock;

impl ServiceDispatcher {
    /// Begins to stop: see [`Phase::Stopping`].
    pub fn stop(&mut self) {
        if self.phase == Phase::Serving {
            self.take_backlog();
        }
        if self.phase != Phase::Stopped {
            self.phase = Phase::Stopping;
        }
    }

    /// Begins to stop for now: see [`Phase::Pausing`].
    pub fn pause(&mut self) {
        if self.phase == Phase::Serving {
            self.take_backlog();
            self.phase = Phase::Pausing;
        }
    }

    /// One look at the backlog, whether or not an edge came.
    fn take_backlog(&mut self) {
        for listener in &mut self.listeners {
            listener.ready = listener.socket.is_some() && self.rules.by != AcceptedBy::Servers;
        }
    }

    /// Whether it stops, for good or for now: what lies in the backlog is taken and nothing after it.
    pub(super) fn ends(&self) -> bool {
        matches!(self.phase, Phase::Stopping | Phase::Pausing)
    }

    /// Ends the stop: what is still held is reset.
    pub fn stop_now(&mut self, reporter: &Reporter) {
        if self.phase != Phase::Stopped {
            self.refuse(reporter);
            self.listeners.iter_mut().filter_map(|listener| listener.socket.take()).for_each(let_go);
            self.finish(reporter);
        }
    }

    /// Ends the pause's beginning: what is still held is reset.
    pub fn pause_now(&mut self, poll: &Poll, reporter: &Reporter) {
        if self.phase == Phase::Pausing {
            self.refuse(reporter);
            for listener in &mut self.listeners {
                if let Some(socket) = listener.socket.take() {
                    sock::stop_listening(socket.as_fd());
                    unwatch(poll, &socket);
                    let_go(socket);
                    (listener.watched, listener.ready) = (false, false);
                }
            }
            self.finish(reporter);
        }
    }

    fn finish(&mut self, reporter: &Reporter) {
        self.workers.clear();
        if self.phase == Phase::Pausing {
            self.phase = Phase::Serving;
            reporter.send(Report::Paused(self.id));
        } else {
            self.phase = Phase::Stopped;
            reporter.send(Report::Stopped(self.id));
        }
    }

    pub(super) fn close_empty_listeners(&mut self, poll: &Poll) {
        let ends = self.ends();
        for listener in &mut self.listeners {
            if !listener.ready
                && (listener.closing || ends)
                && let Some(socket) = listener.socket.take()
            {
                if self.phase == Phase::Pausing {
                    // Others have it, too. At once: who comes later would wait in vain.
                    sock::stop_listening(socket.as_fd());
                }
                unwatch(poll, &socket);
                let_go(socket);
                listener.watched = false;
            }
        }
    }

    pub(super) fn finish_when_empty(&mut self, reporter: &Reporter) {
        let closed = self.listeners.iter().all(|listener| listener.socket.is_none());
        if closed && self.waiting() == 0 && self.rescues == 0 {
            self.finish(reporter);
        }
    }
}
