//! The server that all slots share. There is no room for another one beside it: to start it anew its relay workers finish what
//! they have, then it ends, then the next one comes; meanwhile clients wait as they do while no worker is alive.

use std::time::Instant;

use tracing::{info, warn};

use super::awaited::{Awaited, Verb};
use super::lifecycle::{Event, Lifecycle, Phase, Wanted};
use super::reload::LAST_LINES;
use super::slot::Slot;
use super::{Context, Service};
use crate::accept::orders::WorkerId;
use crate::config::Backend;
use crate::config::options::OnExit;
use crate::sys::process;
use crate::worker::Seat;
use crate::worker::decisive::decisive;
use crate::worker::exit::LastExit;
use crate::worker::listen_watch;
use crate::worker::probe::Probe;
use crate::worker::server::{Server, StopRequest};
use crate::worker::start::start_server;

/// A server that all slots share.
#[derive(Debug)]
pub struct SharedServer {
    /// Its own life.
    pub lifecycle: Lifecycle,
    /// Its process.
    pub server: Option<Server>,
    /// Whether relay workers take clients for it.
    turn: Turn,
    /// The last one that ended without being told to.
    failed: Option<(u32, String)>,
}

/// How far the change from one server to the next is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// None is under way. When the server dies now its workers stay and wait for the next one connection by connection.
    None,
    /// Its relay workers finish what they have.
    Draining,
    /// It got its stop signal then.
    Stopping(Instant),
    /// It was killed.
    Killed,
    /// The next one does not accept yet; until it does no worker is online.
    Starting,
}

impl SharedServer {
    /// To be started at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { lifecycle: Lifecycle::new(now), server: None, turn: Turn::Starting, failed: None }
    }

    /// How the last one ended that was not told to.
    pub fn last_exit(&self) -> Option<&str> {
        self.failed.as_ref().map(|(_, exit)| exit.as_str())
    }

    /// Whether relay workers may take clients for it.
    pub(super) fn is_ready(&self) -> bool {
        self.turn == Turn::None
    }

    /// Whether a server has still to make room for the next one.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.turn, Turn::Draining | Turn::Stopping(_) | Turn::Killed)
    }

    /// Whether it died too often: no other one comes by itself.
    pub(super) fn is_given_up(&self) -> bool {
        self.lifecycle.phase == Phase::Errored
    }

    /// Why it is not ready.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.server.as_ref().and_then(|server| server.trouble.as_deref());
        match (self.turn, trouble, &self.failed) {
            (Turn::None, ..) => None,
            (Turn::Draining | Turn::Stopping(_) | Turn::Killed, ..) => {
                Some("the server they share has not ended yet".to_owned())
            }
            (_, Some(trouble), _) => Some(trouble.to_owned()),
            (_, None, Some((_, how))) => Some(format!("the server they share failed: {how}")),
            (_, None, None) => Some("the server they share does not listen".to_owned()),
        }
    }
}

impl Service {
    /// All workers end and come anew, and with them a server that they share.
    pub(super) fn begin_all_again(&mut self, verb: Verb, context: &Context, now: Instant) {
        let backoff = self.backoff();
        for slot in &mut self.slots {
            slot.begin_again(context, &backoff, now);
        }
        self.end_shared(now);
        self.awaiting = Some(Awaited::new(verb, &self.times(), now));
    }

    /// The shared server is to end as soon as nobody is being served; the next one comes when the service is to run.
    pub(super) fn end_shared(&mut self, now: Instant) {
        let Some(shared) = &mut self.shared else { return };
        shared.failed = None;
        match (&shared.server, shared.turn) {
            (Some(_), Turn::Stopping(_) | Turn::Killed) => {}
            (Some(_), Turn::None | Turn::Draining | Turn::Starting) => shared.turn = Turn::Draining,
            (None, _) => {
                shared.turn = Turn::Starting;
                shared.lifecycle = shared.lifecycle.again_as_known(now);
            }
        }
    }

    /// Goes on with the change from one server to the next.
    pub(super) fn step_shared(&mut self, now: Instant) -> Option<Instant> {
        let limits = &self.config.limits;
        let shared = self.shared.as_mut().filter(|_| self.stop.is_none())?;
        let server = shared.server.as_mut()?;
        match shared.turn {
            Turn::Draining if self.slots.iter().all(Slot::has_drained) => {
                server.request_stop(None, limits.stop_signal);
                shared.turn = Turn::Stopping(now);
                Some(now + limits.kill_timeout)
            }
            Turn::Stopping(since) if now >= since + limits.kill_timeout => {
                let pid = server.pid;
                warn!(service = %self.config.name, pid, "killed: it did not end within the kill timeout");
                process::kill_tree(pid);
                shared.turn = Turn::Killed;
                None
            }
            Turn::Stopping(since) => Some(since + limits.kill_timeout),
            Turn::None | Turn::Draining | Turn::Killed | Turn::Starting => None,
        }
    }

    /// Starts the shared server when it is due.
    pub(super) fn start_shared(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let (Backend::Upstreams(_, Some(command)), Some(SharedServer { lifecycle, server: None, .. }), Wanted::Running) =
            (&self.config.backend, &self.shared, self.wanted())
        else {
            return None;
        };
        let Phase::Waiting { until } = lifecycle.phase else { return None };
        if until > now {
            return Some(until);
        }
        let id = WorkerId { service: self.id, slot: 0, generation: 0 };
        let seat = Seat { config: &self.config, id, listeners: 0, told: None, now };
        let probe = self.resolved.first().map(|first| Probe::upstream(first, now));
        let started = start_server(&seat, None, command, None, Vec::new(), context);
        let started = started.map(|server| Server { probe, ..server });
        let backoff = self.backoff();
        let SharedServer { lifecycle, server, .. } = self.shared.as_mut()?;
        match started {
            Ok(started) => {
                *server = Some(started);
                lifecycle.apply(Event::Started, now, &backoff);
            }
            Err(exit) => {
                warn!(service = %self.config.name, "server not started: {exit}");
                lifecycle.apply(Event::Died, now, &backoff);
            }
        }
        Some(now)
    }

    /// Looks whether the shared server accepts by now.
    pub(super) fn check_shared(&mut self, now: Instant) -> Option<Instant> {
        let backoff = self.backoff();
        let SharedServer { lifecycle, server: Some(server), turn, .. } = self.shared.as_mut()? else { return None };
        if server.probe.is_none() || server.stop_request != StopRequest::NotSent {
            return None;
        }
        listen_watch::look(server, &self.config.name, None, self.config.limits.listen_timeout, now);
        if let Some(probe) = &server.probe {
            return Some(probe.due());
        }
        lifecycle.apply(Event::Ready, now, &backoff);
        if *turn == Turn::Starting {
            *turn = Turn::None;
        }
        Some(now)
    }

    /// The shared server is gone. Where nobody asked for that its relay workers stay, and their clients wait for the next
    /// one.
    pub(super) fn shared_gone(&mut self, pid: u32, exit: LastExit, now: Instant) {
        let backoff = self.backoff();
        process::kill_tree(pid);
        let Some(shared) = &mut self.shared else { return };
        let told = shared.server.take().is_some_and(|server| server.stop_request != StopRequest::NotSent);
        if self.stop.is_some() {
            return;
        }
        let turns = shared.is_ending();
        if turns {
            shared.turn = Turn::Starting;
        }
        let name = &self.config.name;
        if told {
            // That its code is 0 does not mean that its work is done.
            info!(service = %name, pid, status = exit.text, "server stopped");
            shared.lifecycle.apply(Event::Replace, now, &backoff);
            return;
        }
        let finished = exit.code == 0 && self.config.limits.on_exit == OnExit::Ok;
        let (how, event) = if finished { ("finished", Event::Finish) } else { ("exited", Event::Died) };
        warn!(service = %name, pid, status = exit.text, "server {how}");
        shared.lifecycle.apply(if turns { Event::Replace } else { event }, now, &backoff);
        shared.failed = Some((pid, exit.text.clone()));
        if let Some(slot) = self.slots.first_mut() {
            slot.history.last_exit = Some(exit);
        }
    }

    /// The decisive lines of the shared server that failed.
    pub(super) fn shared_said(&self, context: &Context) -> String {
        let failed = self.shared.as_ref().and_then(|shared| shared.failed.as_ref());
        let Some((pid, _)) = failed else { return String::new() };
        let written = context.launcher.outputs.last(&self.config.name, *pid, LAST_LINES);
        decisive(&written).iter().map(|line| format!("\n  | {line}")).collect()
    }
}
