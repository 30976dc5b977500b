//! What Node's own workers say, and what they are told.

use std::io;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::rollout::Leave;
use super::{Service, Tools};
use crate::accept::policy::Policy;
use crate::config::Backend;
use crate::config::options::NodeIpc;
use crate::node::channel::More;
use crate::node::message::{self, Cluster, Directive, IpcMessage};
use crate::program::command::CommandLine;
use crate::program::node::is_node_script;
use crate::program::primary;
use crate::worker::ipc::{Ipc, Mode};
use crate::worker::server::Server;

/// A handler of the stop signal has so long before its worker is told to disconnect.
const HANDLER_GRACE: Duration = Duration::from_millis(500);

impl Service {
    /// Whether workers of a command get a channel, and how they take part.
    pub(super) fn node_mode(&self, command: &CommandLine) -> Option<Mode> {
        match self.config.node_ipc {
            NodeIpc::Off => None,
            NodeIpc::Auto if !is_node_script(command) => None,
            NodeIpc::Auto | NodeIpc::Cluster if self.can_share_ports() => Some(Mode::Cluster),
            NodeIpc::Auto | NodeIpc::Cluster | NodeIpc::Plain => Some(Mode::Plain),
        }
    }

    /// A cluster needs somebody to share the ports; and under none a worker gets the listening socket itself, which has to
    /// have the port that it asked for.
    fn can_share_ports(&self) -> bool {
        let renamed = self.config.policy == Policy::None && self.config.listen.iter().any(|one| one.app_port.is_some());
        matches!(self.config.backend, Backend::Direct(_)) && !renamed
    }

    /// The slot of a server with a channel, and whether it is on its way out.
    pub(super) fn with_channel(&mut self, pid: u32) -> Option<(usize, &mut Server, bool)> {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.server.as_ref().is_some_and(|server| server.pid == pid) {
                return Some((at, slot.server.as_mut()?, false));
            }
            let old = slot.retiring.iter_mut().filter_map(|old| old.server.as_mut());
            if let Some(server) = old.into_iter().find(|server| server.pid == pid) {
                return Some((at, server, true));
            }
        }
        None
    }

    /// Hears what a worker says, for one turn. `None`: it is none of ours.
    pub fn hear_node(&mut self, pid: u32, tools: &Tools) -> Option<More> {
        let name = self.config.name.clone();
        let (at, server, old) = self.with_channel(pid)?;
        let ipc = server.ipc.as_mut()?;
        ipc.channel.write();
        let mut heard = Vec::new();
        let read = ipc.channel.read(&mut heard);
        let mut nonsense = read.as_ref().err().map(ToString::to_string);
        for message in heard {
            if let Err(error) = self.node_said(at, pid, old, message, tools) {
                nonsense = Some(error.to_string());
                break;
            }
        }
        if let Some(why) = nonsense {
            warn!(service = %name, slot = at, pid, "killed: nonsense on its IPC channel: {why}");
            crate::sys::process::kill_tree(pid);
            return Some(More::No);
        }
        read.ok()
    }

    fn node_said(&mut self, at: usize, pid: u32, old: bool, heard: IpcMessage, tools: &Tools) -> io::Result<()> {
        match heard {
            IpcMessage::WithHandle(message) => self.node_said(at, pid, old, *message, tools),
            IpcMessage::User(text) => {
                self.program_said(at, pid, &text, tools);
                Ok(())
            }
            IpcMessage::Cluster(Cluster::Query(query)) => self.answer_query((at, pid, old), query, tools),
            IpcMessage::Cluster(Cluster::Leaving { seq }) => self.say_to(pid, |ipc| {
                let own = ipc.channel.next_seq();
                ipc.channel.say(message::may_leave(seq, own), None)
            }),
            IpcMessage::Cluster(Cluster::Listening) => self.say_to(pid, |ipc| {
                ipc.listens = true;
                Ok(())
            }),
            IpcMessage::Cluster(Cluster::Online | Cluster::Close(_) | Cluster::Other) | IpcMessage::Ignored => Ok(()),
        }
    }

    pub(super) fn say_to(&mut self, pid: u32, say: impl FnOnce(&mut Ipc) -> io::Result<()>) -> io::Result<()> {
        match self.with_channel(pid).and_then(|(_, server, _)| server.ipc.as_mut()) {
            Some(ipc) => say(ipc),
            None => Ok(()),
        }
    }

    fn program_said(&mut self, at: usize, pid: u32, text: &str, tools: &Tools) {
        match message::directive(text, at) {
            Directive::Ready => {
                let _ = self.say_to(pid, |ipc| {
                    ipc.ready = true;
                    Ok(())
                });
            }
            Directive::Broadcast(text) => drop(self.pass_to(|_, other| other != pid, &text)),
            Directive::To(slot, text) => {
                if self.pass_to(|at, _| at == slot, &text) == 0 {
                    debug!(service = %self.config.name, slot, "a message for a slot that has no worker with IPC");
                }
            }
            Directive::Nothing => {
                let slot = Some(at as u32);
                tools.launcher.outputs.message(&self.config.name, slot, pid, text);
            }
        }
    }

    /// Passes a message to current workers; how many have got it.
    pub fn pass_to(&mut self, wanted: impl Fn(usize, u32) -> bool, text: &str) -> usize {
        let name = &self.config.name;
        let mut passed = 0;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(server) = slot.server.as_mut().filter(|server| wanted(at, server.pid)) else { continue };
            let Some(ipc) = &mut server.ipc else { continue };
            if ipc.pass(text) {
                passed += 1;
            } else if ipc.channel.dropped == 1 {
                warn!(service = %name, slot = at, pid = server.pid, "worker does not read its messages: some are dropped");
            }
        }
        passed
    }

    /// Workers that get no more connections close their servers, and with them idle keep-alive connections: then they end
    /// when the others do.
    pub(super) fn step_disconnect(&mut self) {
        let stopping = self.handed && self.closes();
        for slot in &mut self.slots {
            let current = stopping.then_some((&mut slot.server, &slot.direct)).into_iter();
            let old = slot.retiring.iter_mut().filter(|old| old.cut_off && matches!(old.step, Leave::Draining(_)));
            for (server, direct) in current.chain(old.map(|old| (&mut old.server, &old.direct))) {
                let Some(direct) = direct else { continue };
                // What lies in its queue is still to be received; and one without connections gets its signal at once.
                let pending = direct.queues.values().any(|queue| queue.pending() > 0);
                let open = direct.page.is_estimate() || direct.page.open_alive() > 0;
                let ipc = server.as_mut().and_then(|server| server.ipc.as_mut());
                if let Some(ipc) = ipc.filter(|_| !pending && open) {
                    // A program that listens to it ends in its own way.
                    ipc.stop();
                    ipc.disconnect();
                }
            }
        }
    }

    /// How long a server may take to answer `--stop-message` before it gets its stop signal.
    pub(super) fn message_grace(&self) -> Duration {
        (self.config.limits.kill_timeout / 2).min(self.config.limits.stop_timeout / 4)
    }

    /// The stop signal for those that a message did not end, and `disconnect` for those that a signal did not: its handler
    /// may have closed the servers and left the end to the primary, as it may in Node's cluster.
    pub(super) fn step_stop_messages(&mut self, now: Instant) {
        let (signal, grace) = (self.config.limits.stop_signal, self.message_grace());
        for server in self.servers_mut() {
            if server.told.by_message().is_some_and(|at| now.duration_since(at) >= grace) {
                crate::worker::server::signal(server, None, signal);
            }
            if server.told.by_signal().is_some_and(|at| now.duration_since(at) >= HANDLER_GRACE)
                && let Some(ipc) = &mut server.ipc
            {
                ipc.disconnect();
            }
        }
    }

    /// When that is due.
    pub(super) fn message_deadline(&self) -> Option<Instant> {
        let grace = self.message_grace();
        let signals = self.servers().filter_map(|server| server.told.by_message()).map(|at| at + grace);
        let connected = |ipc: &Ipc| ipc.can_disconnect() && !ipc.disconnected;
        let told = self.servers().filter(|server| server.ipc.as_ref().is_some_and(connected));
        signals.chain(told.filter_map(|server| server.told.by_signal()).map(|at| at + HANDLER_GRACE)).min()
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        let current = self.slots.iter().filter_map(|slot| slot.server.as_ref());
        current.chain(self.slots.iter().flat_map(|slot| &slot.retiring).filter_map(|old| old.server.as_ref()))
    }

    fn servers_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.slots.iter_mut().flat_map(|slot| {
            slot.server.iter_mut().chain(slot.retiring.iter_mut().filter_map(|old| old.server.as_mut()))
        })
    }
}

impl Service {
    /// Whether its servers are Node's cluster scripts with a primary of their own.
    pub fn has_own_primary(&self) -> bool {
        let Some(command) = self.config.command() else { return false };
        self.node_mode(command) == Some(crate::worker::ipc::Mode::Cluster)
            && primary::forks(command, self.config.cwd.as_deref())
    }
}
