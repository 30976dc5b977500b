//! A server's process, and how it is asked to stop.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::ipc::Ipc;
use super::listen_watch::ListenWatch;
use super::notify::Notify;
use super::probe::Probe;
use crate::sys::{clock, process};

/// A handler of the stop signal has so long before its worker is told to disconnect.
pub const HANDLER_GRACE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Server {
    /// The process that we started, or the one that took its place (gunicorn's USR2).
    pub pid: u32,
    /// Behind a relay worker: the private address, corrected to what really accepts.
    pub address: Option<SocketAddr>,
    /// Looks whether it accepts; `None` once it does.
    pub probe: Option<Probe>,
    /// When it was started.
    pub since: Instant,
    pub listen_watch: ListenWatch,
    /// Why it is not online, as far as is known.
    pub trouble: Option<String>,
    /// The address that it wanted and did not get, and why.
    pub refused: Option<String>,
    pub stop_request: StopRequest,
    /// What its processes have in their environment, and no other server's.
    pub mark: String,
    /// As long as READY=1 is waited for.
    pub notify: Option<Notify>,
    /// Node's channel.
    pub ipc: Option<Ipc>,
    /// The port of Node's inspector: nobody's but its own.
    pub inspect: Option<u16>,
}

/// How far the request to stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    NotSent,
    /// By `--stop-message` then; the signal follows.
    ByMessage(Instant),
    BySignal(Instant),
}

impl Server {
    pub fn new(
        pid: u32,
        since: Instant,
        mark: String,
        notify: Option<Notify>,
        ipc: Option<Ipc>,
        inspect: Option<u16>,
    ) -> Self {
        Self {
            pid,
            address: None,
            probe: None,
            since,
            listen_watch: ListenWatch::NotYet,
            trouble: None,
            refused: None,
            stop_request: StopRequest::NotSent,
            mark,
            notify,
            ipc,
            inspect,
        }
    }

    /// Whether it has said that it is ready, or need not.
    pub fn has_said_ready(&mut self) -> bool {
        let by_message = self.ipc.as_ref().is_some_and(|ipc| ipc.ready);
        let pid = self.pid;
        // Read in any case: nothing may be left over for the next turn for ever.
        let by_notify = self.notify.as_mut().is_none_or(|notify| notify.is_ready(pid));
        by_message || by_notify
    }

    /// Asks it to stop, once: by its stop message, where there is one, else by the signal.
    pub fn request_stop(&mut self, attached: Option<u32>, signal: Signal) {
        if self.stop_request != StopRequest::NotSent {
            return;
        }
        if self.ipc.as_mut().is_some_and(Ipc::stop) {
            self.stop_request = StopRequest::ByMessage(clock::now());
        } else {
            self.signal(attached, signal);
        }
    }

    fn signal(&mut self, attached: Option<u32>, signal: Signal) {
        self.stop_request = StopRequest::BySignal(clock::now());
        process::signal(attached.unwrap_or(self.pid), signal);
    }

    /// What it was asked to stop was a child of something that replaced it: the same for what we started.
    pub fn repeat_stop(&mut self, signal: Signal) {
        if matches!(self.stop_request, StopRequest::BySignal(_)) {
            self.stop_request = StopRequest::NotSent;
            self.request_stop(None, signal);
        }
    }

    /// The stop signal for one that a message did not end, and `disconnect` for one that a signal did not: its handler may
    /// have closed the servers and left the end to the primary, as it may in Node's cluster. When the next is due.
    pub fn step_stop(&mut self, signal: Signal, message_grace: Duration, now: Instant) -> Option<Instant> {
        if let StopRequest::ByMessage(at) = self.stop_request {
            if now < at + message_grace {
                return Some(at + message_grace);
            }
            self.signal(None, signal);
        }
        let (StopRequest::BySignal(at), Some(ipc)) = (self.stop_request, &mut self.ipc) else { return None };
        if !ipc.can_disconnect() || ipc.disconnected {
            return None;
        }
        if now < at + HANDLER_GRACE {
            return Some(at + HANDLER_GRACE);
        }
        ipc.disconnect();
        None
    }
}
