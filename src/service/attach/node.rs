//! What Node's own workers say, and what they are told.

use std::io;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::Handler;
use crate::accept::orders::Order;
use crate::affinity::HashOn;
use crate::affinity::sessions::Change;
use crate::config::Limits;
use crate::node::message::{self, Cluster, Directive, IpcMessage};
use crate::slot::Slot;
use crate::slot::retiring::DRAIN_LOOK;
use crate::worker::Worker;
use crate::worker::ipc::Ipc;
use crate::worker::server::Server;

/// The slot of a server with a channel, and whether it is on its way out.
pub(super) fn with_channel(slots: &mut [Slot], pid: u32) -> Option<(usize, &mut Server, bool)> {
    let workers = slots.iter_mut().enumerate().flat_map(|(at, slot)| {
        let old = slot.retiring.iter_mut().map(move |old| (at, &mut old.worker, true));
        slot.current.iter_mut().map(move |worker| (at, worker, false)).chain(old)
    });
    let mut servers = workers.filter_map(|(at, worker, old)| Some((at, worker.server_mut()?, old)));
    servers.find(|(_, server, _)| server.pid == pid)
}

/// Says something on the channel of a server that still has one.
///
/// # Errors
/// When it does not read.
pub(super) fn say_to(slots: &mut [Slot], pid: u32, say: impl FnOnce(&mut Ipc) -> io::Result<()>) -> io::Result<()> {
    match with_channel(slots, pid).and_then(|(_, server, _)| server.ipc.as_mut()) {
        Some(ipc) => say(ipc),
        None => Ok(()),
    }
}

impl Handler<'_> {
    /// Hears what a worker says, for one turn. `None`: it is none of ours.
    pub fn hear(&mut self, pid: u32) -> Option<bool> {
        let name = self.config.name.clone();
        let (at, server, old) = with_channel(self.slots, pid)?;
        let ipc = server.ipc.as_mut()?;
        ipc.channel.write();
        let mut heard = Vec::new();
        let read = ipc.channel.read(&mut heard);
        let mut nonsense = read.as_ref().err().map(ToString::to_string);
        let mut sessions = Vec::new();
        for message in heard {
            if let Err(error) = self.said(at, pid, old, message, &mut sessions) {
                nonsense = Some(error.to_string());
                break;
            }
        }
        self.sessions(at, pid, sessions);
        if let Some(why) = nonsense {
            warn!(name: "worker-killed", service = %name, slot = at, pid, "killed: nonsense on its IPC channel: {why}");
            crate::sys::process::kill_tree(pid);
            return Some(false);
        }
        read.ok()
    }

    fn said(
        &mut self,
        at: usize,
        pid: u32,
        old: bool,
        heard: IpcMessage,
        sessions: &mut Vec<Change>,
    ) -> io::Result<()> {
        match heard {
            IpcMessage::WithHandle(message) => self.said(at, pid, old, *message, sessions),
            IpcMessage::User(text) => {
                self.program_said(at, pid, &text, sessions);
                Ok(())
            }
            IpcMessage::Cluster(Cluster::Query(query)) => self.answer_query((at, pid, old), query),
            IpcMessage::Cluster(Cluster::Leaving { seq }) => say_to(self.slots, pid, |ipc| {
                let own = ipc.channel.next_seq();
                ipc.channel.send(message::may_leave(seq, own), None)
            }),
            IpcMessage::Cluster(Cluster::Listening) => say_to(self.slots, pid, |ipc| {
                ipc.listens = true;
                Ok(())
            }),
            IpcMessage::Ignored => Ok(()),
        }
    }

    fn program_said(&mut self, at: usize, pid: u32, text: &str, sessions: &mut Vec<Change>) {
        match message::directive(text, at) {
            Directive::Ready => {
                let _ = say_to(self.slots, pid, |ipc| {
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
            Directive::Session(change) if self.config.hash_on == Some(HashOn::SocketIo) => sessions.push(change),
            Directive::Session(_) if !std::mem::replace(&mut self.state.sessions_hinted, true) => {
                info!(service = %self.config.name, "workers report sessions of Socket.IO: to have the requests of each go to its worker, use --policy hash --hash-on socket.io");
            }
            Directive::Session(_) | Directive::Nothing => {
                let slot = Some(at as u32);
                self.context.launcher.outputs.message(&self.config.name, slot, pid, text);
            }
        }
    }

    /// Passes on what a worker has reported.
    fn sessions(&self, at: usize, pid: u32, changes: Vec<Change>) {
        let of = |worker: &&Worker| worker.server().is_some_and(|server| server.pid == pid);
        let worker = self.slots.get(at).and_then(|slot| slot.workers().find(of));
        if let Some(worker) = worker.filter(|_| !changes.is_empty()) {
            self.context.orders.send(Order::Sessions { worker: worker.id, changes });
        }
    }

    /// Passes a message to current workers; how many have got it.
    pub fn pass_to(&mut self, wanted: impl Fn(usize, u32) -> bool, text: &str) -> usize {
        let name = &self.config.name;
        let mut passed = 0;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(server) = slot.server_mut().filter(|server| wanted(at, server.pid)) else { continue };
            let Some(ipc) = &mut server.ipc else { continue };
            if ipc.pass(text) {
                passed += 1;
            } else if ipc.channel.dropped == 1 {
                warn!(service = %name, slot = at, pid = server.pid, "worker does not read its messages: some are dropped");
            }
        }
        passed
    }
}

impl Slot {
    /// Cluster workers that get no more connections are told to disconnect (`disconnects`: also the one in charge); stop
    /// messages and signals that did not end a server are followed up. `drains`: it is watched until it has drained.
    pub fn step_stopping(&mut self, limits: &Limits, disconnects: bool, drains: bool, now: Instant) -> Option<Instant> {
        // How long a server may take to answer `--stop-message` before it gets its stop signal.
        let grace = (limits.kill_timeout / 2).min(limits.stop_timeout / 4);
        self.current.iter_mut().filter(|_| disconnects).for_each(Worker::disconnect);
        self.retiring.iter_mut().filter(|old| old.is_draining()).for_each(|old| old.worker.disconnect());
        let servers = self.workers_mut().filter_map(Worker::server_mut);
        let follow_up = servers.filter_map(|server| server.step_stop(limits.stop_signal, grace, now)).min();
        let look = (drains && self.attachment().is_some()).then(|| now + DRAIN_LOOK);
        follow_up.into_iter().chain(look).min()
    }
}
