//! Starting what a slot, or a service, lacks.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::lifecycle::Event;
use super::{Service, Tools};
use crate::accept::orders::WorkerId;
use crate::accept::policy::Policy;
use crate::addr::Upstream;
use crate::config::Backend;
use crate::events::Source;
use crate::exit::Exit;
use crate::launch;
use crate::program::command::CommandLine;
use crate::program::node::inspect_port;
use crate::relay::protocol::{self, Resolved, Setup};
use crate::sys::scm;
use crate::worker::exit::LastExit;
use crate::worker::ipc::Ipc;
use crate::worker::listen_watch::Complained;
use crate::worker::notify::Notify;
use crate::worker::probe::{self, Probe};
use crate::worker::relay::Relay;
use crate::worker::server::{Server, Told};

/// The environment variable by which the processes of one server are known, wherever they went.
pub(super) const MARK: &str = "ROUNDSMAN_WORKER";

fn unique_mark() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Service {
    /// Starts what a slot lacks: its server, its relay worker.
    pub fn start_slot(&mut self, at: usize, tools: &mut Tools, now: Instant) {
        let backoff = self.backoff();
        if let Err(exit) = self.start_processes(at, tools, now) {
            warn!(service = %self.config.name, slot = at, "worker not started: {exit}");
            let slot = &mut self.slots[at];
            slot.last_exit = Some(LastExit { text: exit.message.clone(), code: exit.code });
            slot.reason = Some(exit.message);
            slot.life.apply(Event::Died, now, &backoff);
            self.successor_failed(at, now, tools);
            return;
        }
        self.slots[at].stop_first = false;
        self.slots[at].insisted = None;
        self.slots[at].life.apply(Event::Started, now, &backoff);
    }

    fn start_processes(&mut self, at: usize, tools: &mut Tools, now: Instant) -> Result<(), Exit> {
        if let Backend::Direct(command) = &self.config.backend {
            let command = command.clone();
            return self.start_direct(&command, at, tools, now);
        }
        if let Backend::NoPort(command) = &self.config.backend {
            let command = command.clone();
            self.slots[at].generation += 1;
            self.slots[at].server = Some(self.start_server_with(&command, Some(at), None, Vec::new(), tools, now)?);
            return Ok(());
        }
        if let Backend::Relayed(command) = &self.config.backend
            && self.slots[at].server.is_none()
        {
            let command = command.clone();
            // Where its predecessor accepted, if that was: a relay worker that still has clients for that one finds
            // this one. After a start that came to nothing (the port, perhaps) elsewhere.
            let address = match self.slots[at].proven.take().filter(|address| probe::is_free(address.port())) {
                Some(address) => address,
                None => {
                    tools.ports.choose().map_err(|error| Exit::os("cannot choose a port for the server", &error))?
                }
            };
            self.slots[at].server = Some(self.start_server(&command, Some(at), Some(address), tools, now)?);
        }
        if self.slots[at].relay.is_none() {
            self.slots[at].generation += 1;
            let id = WorkerId { service: self.id, slot: at as u32, generation: self.slots[at].generation };
            let relay = Relay::start(&tools.launcher, &self.config, id, self.listeners.len(), now)
                .map_err(|error| Exit::os("cannot start a relay worker", &error))?;
            debug!(service = %self.config.name, slot = at, pid = relay.pid, "relay worker started");
            // Without the watch the worker never becomes ready, and its death is still seen.
            if let Err(error) = tools.registry.watch(Source::Relay(relay.pid), &relay.channel) {
                warn!("cannot watch a worker's channel: {error}");
            }
            self.slots[at].counted.counts(&relay.page);
            self.slots[at].relay = Some(relay);
        }
        Ok(())
    }

    pub(super) fn start_server(
        &self,
        command: &CommandLine,
        slot: Option<usize>,
        address: Option<SocketAddr>,
        tools: &Tools,
        now: Instant,
    ) -> Result<Server, Exit> {
        let probe = match address {
            Some(address) => Some(Probe::private(address, now)),
            None => self.resolved.first().map(|first| Probe::upstream(first, now)),
        };
        let server = self.start_server_with(command, slot, address, Vec::new(), tools, now)?;
        Ok(Server { address, probe, ..server })
    }

    /// Starts a server that is told an address, with more in its environment.
    pub(super) fn start_server_with(
        &self,
        command: &CommandLine,
        slot: Option<usize>,
        told: Option<SocketAddr>,
        environment: Vec<(&'static str, String)>,
        tools: &Tools,
        now: Instant,
    ) -> Result<Server, Exit> {
        let mut environment = environment;
        let mark = unique_mark();
        environment.push((MARK, mark.clone()));
        let notify = match self.config.limits.wait_ready {
            true => {
                let refused = |error: std::io::Error| Exit::os("cannot open a NOTIFY_SOCKET", &error);
                let uid = self.config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid);
                let notify = Notify::open(uid.as_raw()).map_err(refused)?;
                notify.watch(&tools.registry).map_err(refused)?;
                environment.push(("NOTIFY_SOCKET", notify.variable()));
                Some(notify)
            }
            false => None,
        };
        let refused = |error: std::io::Error| Exit::os("cannot make a channel for Node", &error);
        let mode = slot.and_then(|_| self.node_mode(command));
        let channel =
            mode.map(|mode| Ipc::new(mode, self.config.stop_message.as_deref())).transpose().map_err(refused)?;
        let (ipc, theirs) = channel.unzip();
        if let (Some(ipc), Some(slot)) = (&ipc, slot) {
            environment.extend(ipc.environment(slot as u32));
        }
        let inspect = mode.and_then(|_| inspect_port(command.words()));
        let generation = slot.map_or(0, |at| self.slots[at].generation);
        // The one before it still has its own for a while.
        let turn = (generation % 2) as u16 * self.config.instances as u16;
        let inspect = inspect.map(|first| first.wrapping_add(slot.unwrap_or(0) as u16).wrapping_add(turn));
        let pid = tools.launcher.server(&launch::Server {
            channel: theirs.as_ref().map(AsFd::as_fd),
            inspect,
            service: &self.config.name,
            slot: slot.map(|slot| slot as u32),
            command,
            address: told,
            variables: &self.config.environment,
            environment,
            cwd: self.config.cwd.as_deref(),
            user: self.config.user.as_ref(),
            files: &self.config.files,
            death_signal: self.config.limits.stop_signal,
        })?;
        if let Some(ipc) = &ipc {
            ipc.watch(&tools.registry, pid).map_err(refused)?;
        }
        let complained = Complained::NotYet;
        Ok(Server {
            pid,
            address: None,
            probe: None,
            since: now,
            complained,
            trouble: None,
            refused: None,
            told: Told::Nothing,
            mark,
            notify,
            ipc,
            inspect,
        })
    }

    /// What the relay worker of a slot is told at its start.
    pub(super) fn setup(&self, at: usize) -> Setup {
        let upstreams = match self.slots[at].server.as_ref().and_then(|server| server.address) {
            Some(address) => {
                let upstream = Upstream::Host { host: address.ip().to_string(), port: address.port() };
                vec![Resolved { upstream, addresses: vec![address] }]
            }
            None => self.resolved.clone(),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Setup {
            slot: at as u32,
            // Others may have come since its start.
            listeners: self.slots[at].relay.as_ref().map_or(0, |relay| relay.queues.len()),
            source: if self.config.policy == Policy::None {
                protocol::Source::Listeners
            } else {
                protocol::Source::Queues
            },
            upstreams,
            shared: self.upstreams.is_some(),
            batch: self.cap.min(scm::MAX_FDS),
            capacity: self.capacity,
            pipes: self.pipes,
            connect_timeout_ms: millis(self.config.limits.connect_timeout),
            idle_timeout_ms: millis(self.config.limits.idle_timeout),
        }
    }
}
