//! What Node's own workers say, and what they are told.

use std::io;
use std::time::Instant;

use tracing::{debug, warn};

use crate::node::message::{self, Cluster, Directive, IpcMessage};
use crate::service::retiring::DRAIN_LOOK;
use crate::service::shutdown::Step;
use crate::service::slot::Slot;
use crate::service::{Context, Service};
use crate::worker::Worker;
use crate::worker::ipc::Ipc;
use crate::worker::server::Server;

/// The slot of a server with a channel, and whether it is on its way out.
pub fn with_channel(slots: &mut [Slot], pid: u32) -> Option<(usize, &mut Server, bool)> {
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
pub fn say_to(slots: &mut [Slot], pid: u32, say: impl FnOnce(&mut Ipc) -> io::Result<()>) -> io::Result<()> {
    match with_channel(slots, pid).and_then(|(_, server, _)| server.ipc.as_mut()) {
        Some(ipc) => say(ipc),
        None => Ok(()),
    }
}

impl Service {
    /// Hears what a worker says, for one turn. `None`: it is none of ours.
    pub fn hear_node(&mut self, pid: u32, context: &Context) -> Option<bool> {
        let name = self.config.name.clone();
        let (at, server, old) = with_channel(&mut self.slots, pid)?;
        let ipc = server.ipc.as_mut()?;
        ipc.channel.write();
        let mut heard = Vec::new();
        let read = ipc.channel.read(&mut heard);
        let mut nonsense = read.as_ref().err().map(ToString::to_string);
        for message in heard {
            if let Err(error) = self.node_said(at, pid, old, message, context) {
                nonsense = Some(error.to_string());
                break;
            }
        }
        if let Some(why) = nonsense {
            warn!(service = %name, slot = at, pid, "killed: nonsense on its IPC channel: {why}");
            crate::sys::process::kill_tree(pid);
            return Some(false);
        }
        read.ok()
    }

    fn node_said(&mut self, at: usize, pid: u32, old: bool, heard: IpcMessage, context: &Context) -> io::Result<()> {
        match heard {
            IpcMessage::WithHandle(message) => self.node_said(at, pid, old, *message, context),
            IpcMessage::User(text) => {
                self.program_said(at, pid, &text, context);
                Ok(())
            }
            IpcMessage::Cluster(Cluster::Query(query)) => self.answer_query((at, pid, old), query, context),
            IpcMessage::Cluster(Cluster::Leaving { seq }) => say_to(&mut self.slots, pid, |ipc| {
                let own = ipc.channel.next_seq();
                ipc.channel.send(message::may_leave(seq, own), None)
            }),
            IpcMessage::Cluster(Cluster::Listening) => say_to(&mut self.slots, pid, |ipc| {
                ipc.listens = true;
                Ok(())
            }),
            IpcMessage::Ignored => Ok(()),
        }
    }

    fn program_said(&mut self, at: usize, pid: u32, text: &str, context: &Context) {
        match message::directive(text, at) {
            Directive::Ready => {
                let _ = say_to(&mut self.slots, pid, |ipc| {
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
                context.launcher.outputs.message(&self.config.name, slot, pid, text);
            }
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

    /// Cluster workers that get no more connections are told to disconnect; stop messages and signals that did not end a
    /// server are followed up.
    pub(in crate::service) fn step_stopping(&mut self, now: Instant) -> Option<Instant> {
        let stopping = self.handoff_done && self.closes();
        let limits = &self.config.limits;
        // How long a server may take to answer `--stop-message` before it gets its stop signal.
        let grace = (limits.kill_timeout / 2).min(limits.stop_timeout / 4);
        for slot in &mut self.slots {
            slot.current.iter_mut().filter(|_| stopping).for_each(Worker::disconnect);
            slot.retiring.iter_mut().filter(|old| old.is_draining()).for_each(|old| old.worker.disconnect());
        }
        let servers = self.slots.iter_mut().flat_map(Slot::workers_mut).filter_map(Worker::server_mut);
        let follow_up = servers.filter_map(|server| server.step_stop(limits.stop_signal, grace, now)).min();
        // Whether a server has drained is looked at.
        let drains = self.stop.as_ref().is_some_and(|stop| stop.step == Step::Drain)
            && self.slots.iter().any(|slot| slot.attachment().is_some());
        follow_up.into_iter().chain(drains.then(|| now + DRAIN_LOOK)).min()
    }
}
