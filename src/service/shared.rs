//! The server that all slots share. There is no room for another one beside it: to start it anew its relay workers finish what
//! they have, then it ends, then the next one comes; meanwhile clients wait as they do while no worker is alive.

use std::io;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Context;
use super::reload::LAST_LINES;
use crate::accept::orders::{ServiceId, WorkerId};
use crate::config::options::OnExit;
use crate::config::{Backend, ServiceConfig};
use crate::record::{Found, Kept};
use crate::relay::protocol::Resolved;
use crate::slot::lifecycle::{Backoff, Event, Lifecycle, LifecycleRecord, Phase};
use crate::sys::process;
use crate::worker::Seat;
use crate::worker::children::Owner;
use crate::worker::decisive::decisive;
use crate::worker::exit::LastExit;
use crate::worker::listen_watch;
use crate::worker::probe::Probe;
use crate::worker::record::ServerRecord;
use crate::worker::server::{Server, StopRequest};
use crate::worker::start::{Extras, start_server};

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

/// The same in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedRecord {
    lifecycle: LifecycleRecord,
    server: Option<ServerRecord>,
    failed: Option<(u32, String)>,
}

impl SharedServer {
    /// # Errors
    /// Why it cannot be taken over now.
    pub(super) fn record(&self, kept: &mut Kept) -> Result<SharedRecord, String> {
        let Self { lifecycle, server, turn, failed } = self;
        if *turn != Turn::None {
            return Err("the server is being started or stopped".to_owned());
        }
        let server = server.as_ref().map(|server| server.record(kept)).transpose()?;
        Ok(SharedRecord { lifecycle: lifecycle.record(), server, failed: failed.clone() })
    }

    /// # Errors
    /// When a descriptor is not there.
    pub(super) fn adopt(
        SharedRecord { lifecycle, server, failed }: SharedRecord,
        owner: Owner,
        found: &mut Found,
        context: &Context,
    ) -> io::Result<Self> {
        let server = server.map(|server| Server::adopt(server, owner, found, context)).transpose()?;
        Ok(Self { lifecycle: Lifecycle::adopt(lifecycle), server, turn: Turn::None, failed })
    }

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

    pub(super) fn request_stop(&mut self, signal: Signal) {
        self.server.iter_mut().for_each(|server| server.request_stop(None, signal));
    }

    /// It is to end as soon as nobody is being served; the next one comes when the service is to run.
    pub(super) fn end(&mut self, now: Instant) {
        self.failed = None;
        match (&self.server, self.turn) {
            (Some(_), Turn::Stopping(_) | Turn::Killed) => {}
            (Some(_), Turn::None | Turn::Draining | Turn::Starting) => self.turn = Turn::Draining,
            (None, _) => {
                self.turn = Turn::Starting;
                self.lifecycle = self.lifecycle.again_as_known(now);
            }
        }
    }

    /// Goes on with the change from one server to the next. `drained`: no relay worker has anything left to finish.
    pub(super) fn step(&mut self, config: &ServiceConfig, drained: bool, now: Instant) -> Option<Instant> {
        let limits = &config.limits;
        let server = self.server.as_mut()?;
        match self.turn {
            Turn::Draining if drained => {
                server.request_stop(None, limits.stop_signal);
                self.turn = Turn::Stopping(now);
                Some(now + limits.kill_timeout)
            }
            Turn::Stopping(since) if now >= since + limits.kill_timeout => {
                let pid = server.pid;
                warn!(name: "worker-killed", service = %config.name, pid, "killed: it did not end within the kill timeout");
                process::kill_tree(pid);
                self.turn = Turn::Killed;
                None
            }
            Turn::Stopping(since) => Some(since + limits.kill_timeout),
            Turn::None | Turn::Draining | Turn::Killed | Turn::Starting => None,
        }
    }

    /// Starts it when it is due.
    pub(super) fn start(
        &mut self,
        (id, config): (ServiceId, &ServiceConfig),
        upstream: Option<&Resolved>,
        context: &Context,
        now: Instant,
    ) -> Option<Instant> {
        let (Backend::Upstreams(_, Some(command)), None, Phase::Waiting { until }) =
            (&config.backend, &self.server, self.lifecycle.phase)
        else {
            return None;
        };
        if until > now {
            return Some(until);
        }
        let id = WorkerId { service: id, slot: 0, generation: 0 };
        let seat = Seat { config, id, listeners: 0, told: None, now };
        let probe = upstream.map(|first| Probe::upstream(first, now));
        let backoff = Backoff::of(&config.limits);
        match start_server(&seat, None, command, None, Extras::default(), context) {
            Ok(server) => {
                self.server = Some(Server { probe, ..server });
                self.lifecycle.apply(Event::Started, now, &backoff);
            }
            Err(error) => {
                warn!(name: "worker-failed", service = %config.name, "server not started: {error}");
                self.lifecycle.apply(Event::Died, now, &backoff);
            }
        }
        Some(now)
    }

    /// Looks whether it accepts by now.
    pub(super) fn check(&mut self, config: &ServiceConfig, now: Instant) -> Option<Instant> {
        let server = self.server.as_mut()?;
        if server.probe.is_none() || server.stop_request != StopRequest::NotSent {
            return None;
        }
        listen_watch::look(server, &config.name, None, config.limits.listen_timeout, now);
        if let Some(probe) = &server.probe {
            return Some(probe.due());
        }
        self.lifecycle.apply(Event::Ready, now, &Backoff::of(&config.limits));
        if self.turn == Turn::Starting {
            self.turn = Turn::None;
        }
        Some(now)
    }

    /// It is gone, by itself: whether it has failed. Where nobody asked for that its relay workers stay, and their clients
    /// wait for the next one.
    pub(super) fn exited(
        &mut self,
        config: &ServiceConfig,
        pid: u32,
        exit: &LastExit,
        stopping: bool,
        now: Instant,
    ) -> bool {
        process::kill_tree(pid);
        let told = self.server.take().is_some_and(|server| server.stop_request != StopRequest::NotSent);
        if stopping {
            return false;
        }
        let turns = self.is_ending();
        if turns {
            self.turn = Turn::Starting;
        }
        let (name, backoff) = (&config.name, Backoff::of(&config.limits));
        if told {
            // That its code is 0 does not mean that its work is done.
            info!(name: "worker-stopped", service = %name, pid, status = exit.text, "server stopped");
            self.lifecycle.apply(Event::Replace, now, &backoff);
            return false;
        }
        let finished = exit.code == 0 && config.limits.on_exit == OnExit::Ok;
        let (how, event) = if finished { ("finished", Event::Finish) } else { ("exited", Event::Died) };
        warn!(name: "worker-exited", service = %name, pid, status = exit.text, "server {how}");
        self.lifecycle.apply(if turns { Event::Replace } else { event }, now, &backoff);
        self.failed = Some((pid, exit.text.clone()));
        true
    }

    /// The decisive lines of the last one that failed.
    pub(super) fn said(&self, service: &str, context: &Context) -> String {
        let Some((pid, _)) = self.failed else { return String::new() };
        let written = context.launcher.outputs.last(service, pid, LAST_LINES);
        decisive(&written).iter().map(|line| format!("\n  | {line}")).collect()
    }
}
