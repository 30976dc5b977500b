//! A process of a slot has exited: why, what follows, and what the log says.

use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::Slot;
use super::lifecycle::{Backoff, Event, Phase};
use super::orphans::LeftBehind;
use super::retiring::Escaped;
use crate::accept::orders::{Order, WorkerId};
use crate::config::options::OnExit;
use crate::config::{Backend, ServiceConfig};
use crate::worker::Context;
use crate::worker::children::Owner;
use crate::worker::exit::LastExit;
use crate::worker::relay::Relay;
use crate::worker::server::Server;
use crate::worker::{Ended, Worker};

/// Where and when something happens to a slot.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub config: &'a ServiceConfig,
    pub at: usize,
    pub stopping: bool,
    pub context: &'a Context,
    pub now: Instant,
}

/// What is left for the service to do.
#[derive(Debug)]
pub enum ExitEffect {
    Nothing,
    /// The server of a worker on its way out is gone, and may have left processes behind.
    Retired(Escaped),
    /// The current server is: [`Slot::server_gone`] follows when it is known what it left behind, and of which port it died.
    ServerGone(Escaped, LastExit),
}

/// The unexpected end of a process, for the log.
struct Crash {
    who: &'static str,
    pid: u32,
    status: String,
    reason: Option<String>,
    open: Option<u64>,
    event: Event,
}

impl Slot {
    pub fn exited(&mut self, scene: &Scene, pid: u32, exit: LastExit) -> ExitEffect {
        let (name, context) = (&scene.config.name, scene.context);
        self.finishing.retain(|relay| relay.pid != pid);
        if let Some(escaped) = self.retiring_exited((name, scene.at), pid, &exit, context) {
            return escaped.map_or(ExitEffect::Nothing, ExitEffect::Retired);
        }
        if self.server().is_some_and(|server| server.pid == pid)
            && self.adopt_successor(name, scene.at, &context.children)
        {
            if let Some((id, server)) = self.current.as_ref().and_then(|worker| Some((worker.id, worker.server()?))) {
                context.children.add(server.pid, Owner { service: id.service, slot: Some(id.slot) });
            }
            return ExitEffect::Nothing;
        }
        let Some(worker) = self.current.take_if(|worker| worker.pids().any(|own| own == pid)) else {
            return ExitEffect::Nothing;
        };
        let id = worker.id;
        let (rest, ended) = worker.without(pid);
        self.current = rest;
        match ended {
            Some(Ended::Relay(relay)) => self.relay_gone(scene, id, &relay, exit),
            Some(Ended::Server(server, attachment)) => {
                if attachment.is_some() {
                    context.orders.send(Order::WorkerDied(id));
                }
                self.history.failed_successor = Some(server.pid);
                self.history.last_address = server.address.filter(|_| server.probe.is_none());
                return ExitEffect::ServerGone(Escaped { server, attachment }, exit);
            }
            None => {}
        }
        ExitEffect::Nothing
    }

    fn relay_gone(&mut self, scene: &Scene, id: WorkerId, relay: &Relay, exit: LastExit) {
        let history = &mut self.history;
        if scene.stopping {
            let name = &scene.config.name;
            debug!(service = %name, slot = scene.at, pid = relay.pid, "relay worker ended: {}", exit.text);
        } else {
            scene.context.orders.send(Order::WorkerDied(id));
            let how = || format!("relay worker: {}", exit.text);
            history.reason = Some(history.kill_reason.take().unwrap_or_else(how));
        }
        let status = exit.text.clone();
        history.last_exit = Some(exit);
        self.lifecycle.apply(Event::Died, scene.now, &Backoff::of(&scene.config.limits));
        let open = Some(relay.page.open());
        self.after_death(
            scene,
            Crash { who: "relay worker", pid: relay.pid, status, reason: None, open, event: Event::Died },
        );
    }

    /// `insisted`: the port, no `--listen`'s, of which it died, and what to do about it.
    pub fn server_gone(
        &mut self,
        scene: &Scene,
        server: Server,
        insisted: &Option<(u16, String)>,
        left_behind: &LeftBehind,
        mut exit: LastExit,
    ) {
        let (config, name, at, pid) = (scene.config, &scene.config.name, scene.at, server.pid);
        let launching = matches!(self.lifecycle.phase, Phase::Launching { .. });
        let history = &mut self.history;
        let (mut event, mut reason) = (Event::Died, None);
        if scene.stopping {
            debug!(service = %name, slot = at, pid, "server ended: {}", exit.text);
        } else if let Some(text) = into_background(left_behind, launching).filter(|_| exit.code == 0) {
            (history.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if let Some((port, instead)) = insisted {
            let text = history.kill_reason.take().unwrap_or_else(|| {
                format!("address already in use: its servers all listen on :{port}, which no -l serves; {instead}")
            });
            // One that we killed for it has no code of its own.
            exit.code = if history.insisted.is_some() { 1 } else { exit.code };
            history.insisted = Some(*port);
            (history.reason, reason) = (Some(text.clone()), Some(text));
            event = Event::GiveUp;
        } else if exit.code == 0 && config.limits.on_exit == OnExit::Ok {
            info!(name: "worker-finished", service = %name, slot = at, pid, status = exit.text, "server finished");
            history.reason = Some(format!("finished: {}", exit.text));
            event = Event::Finish;
        } else {
            let hint = match &config.backend {
                _ if exit.code != 0 => None,
                Backend::NoPort(_) => Some("if it is a job that is done: --on-exit ok"),
                _ if launching => Some("if it is a job that is done: --no-listen --on-exit ok -i 1"),
                _ => None,
            };
            reason = server.refused.filter(|_| launching).or(hint.map(str::to_owned));
            let more = reason.iter().map(|reason| format!(": {reason}")).collect::<String>();
            history.reason = Some(history.kill_reason.take().unwrap_or_else(|| format!("server: {}{more}", exit.text)));
        }
        let status = exit.text.clone();
        history.last_exit = Some(exit);
        if !scene.stopping {
            self.finish_relay(scene.context);
        }
        self.lifecycle.apply(event, scene.now, &Backoff::of(&config.limits));
        if event != Event::Finish {
            self.after_death(scene, Crash { who: "server", pid, status, reason, open: None, event });
        }
    }

    /// A worker that should live is dead: one line says how it ended and what follows.
    fn after_death(&mut self, scene: &Scene, crash: Crash) {
        let Crash { who, pid, status, reason, open, event } = crash;
        let (name, at) = (&scene.config.name, scene.at);
        let restored = self.successor_failed(scene);
        match self.lifecycle.phase {
            _ if scene.stopping => {}
            Phase::Waiting { until } if !restored => {
                let restart_in = Duration::from_millis(until.saturating_duration_since(scene.now).as_millis() as u64);
                warn!(name: "worker-exited", service = %name, slot = at, pid, status, open, reason, ?restart_in, "{who} exited");
            }
            Phase::Errored if !restored => {
                let why = match event {
                    Event::GiveUp => "another start would not help",
                    _ => "it exited too often in a row",
                };
                error!(name: "slot-given-up", service = %name, slot = at, pid, status, open, reason, "slot given up: {why}");
            }
            _ => warn!(name: "worker-exited", service = %name, slot = at, pid, status, open, reason, "{who} exited"),
        }
        if self.lifecycle.phase == Phase::Errored && !restored {
            // A server without a relay worker, or the reverse, is of no use.
            self.current.iter().for_each(Worker::kill);
        }
    }

    /// A worker is gone. Whether it was a successor, and the worker before it is back in its place.
    pub fn successor_failed(&mut self, scene: &Scene) -> bool {
        if scene.stopping || !self.restore(scene.context, &Backoff::of(&scene.config.limits), scene.now) {
            return false;
        }
        let history = &mut self.history;
        let how = history.last_exit.as_ref().map(|exit| exit.text.clone()).unwrap_or_default();
        let reason = history.successor_trouble.take().unwrap_or_else(|| format!("the successor ended: {how}"));
        history.reason = Some(reason.clone());
        history.reload_failed = Some((reason, history.failed_successor.take()));
        true
    }
}

/// That a server which has ended with 0 goes on in the background, and what to do about it. One that was online and left
/// something else, a helper, has just ended.
fn into_background(left: &LeftBehind, launching: bool) -> Option<String> {
    const HINT: &str = "let it run in the foreground (nginx: daemon off; redis: --daemonize no)";
    match left {
        LeftBehind::Itself => Some(format!("it put itself into the background; {HINT}")),
        LeftBehind::Another(name) if launching => {
            Some(format!("it ended and left {name} in the background; if that is the server, {HINT}"))
        }
        LeftBehind::Another(_) | LeftBehind::Nothing => None,
    }
}
