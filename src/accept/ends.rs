//! The end of a listener, and of a service's intake, final or for a pause: the backlog is taken, the listeners close, held connections are
//! handed over.

use std::os::fd::AsFd;

use super::Context;
use super::dispatcher::{Phase, ServiceDispatcher};
use super::orders::{AcceptedBy, ListenerId, Report};
use super::waits::ShedReason;
use crate::sys::sock;

impl ServiceDispatcher {
    pub fn stop(&mut self) {
        if self.phase == Phase::Serving {
            self.take_backlog();
        }
        if self.phase != Phase::Stopped {
            self.phase = Phase::Stopping;
        }
    }

    pub fn pause(&mut self) {
        if self.phase == Phase::Serving {
            self.take_backlog();
            self.phase = Phase::Pausing;
        }
    }

    /// One look at each backlog, whether or not an edge came.
    fn take_backlog(&mut self) {
        for listener in &mut self.listeners {
            listener.ready = listener.socket.is_some() && self.rules.by != AcceptedBy::Servers;
        }
    }

    /// Whether listeners close once their backlog is empty.
    pub(super) fn ends(&self) -> bool {
        matches!(self.phase, Phase::Stopping | Phase::Pausing)
    }

    /// Resets all clients that wait, for a worker or in the stage.
    pub fn refuse_all(&mut self, cx: &Context) {
        self.refuse(cx);
        let staged = self.stage.len();
        self.clear_stage(None, cx);
        if staged > 0 {
            self.stats.shed.add(ShedReason::NoWorker, staged as u64);
            self.report_shed(staged, ShedReason::NoWorker, cx);
        }
    }

    /// Ends a stop at once: held connections are reset.
    pub fn stop_now(&mut self, cx: &Context) {
        if self.phase != Phase::Stopped {
            self.refuse_all(cx);
            self.listeners.iter_mut().for_each(|listener| listener.close(cx));
            self.finish(cx);
        }
    }

    /// Ends a pause at once: the listeners refuse clients, held connections are reset.
    pub fn pause_now(&mut self, cx: &Context) {
        if self.phase == Phase::Pausing {
            self.refuse_all(cx);
            for listener in &mut self.listeners {
                if let Some(socket) = &listener.socket {
                    sock::stop_listening(socket.as_fd());
                }
                listener.close(cx);
            }
            self.finish(cx);
        }
    }

    fn finish(&mut self, cx: &Context) {
        self.workers.clear();
        self.stage.clear_sessions();
        if self.phase == Phase::Pausing {
            self.phase = Phase::Serving;
            cx.report(Report::Paused(self.id));
        } else {
            self.phase = Phase::Stopped;
            cx.report(Report::Stopped(self.id));
        }
    }

    pub(super) fn close_empty_listeners(&mut self, cx: &Context) {
        let ends = self.ends();
        for listener in self.listeners.iter_mut().filter(|listener| !listener.ready && (listener.closing || ends)) {
            if self.phase == Phase::Pausing
                && let Some(socket) = &listener.socket
            {
                // The control thread keeps the socket bound for the next start; without this, clients would wait.
                sock::stop_listening(socket.as_fd());
            }
            listener.close(cx);
        }
    }

    pub(super) fn finish_when_empty(&mut self, cx: &Context) {
        let closed = self.listeners.iter().all(|listener| listener.socket.is_none());
        if closed && self.waiting() == 0 && self.stage.is_empty() && self.rescues == 0 {
            self.finish(cx);
        }
    }

    /// Closes a listener for good and resets the clients held for it; the kernel resets those in its backlog.
    pub fn forget_listener(&mut self, cx: &Context, id: ListenerId) {
        if let Some(listener) = self.listener(id) {
            listener.close(cx);
            listener.id = None;
        }
        self.workers.forget(id);
        for (ticket, held) in self.workers.take_lines() {
            self.line.insert(ticket, held);
        }
        self.clear_stage(Some(id), cx);
        self.line.take_listener(id).into_values().for_each(|held| self.reset(held, cx));
        self.show_waiting();
        cx.report(Report::Forgotten { service: self.id, listener: id });
    }
}
