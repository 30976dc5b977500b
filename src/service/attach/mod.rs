//! What servers ask about listeners: requests of their preload libraries, and queries of Node's own workers.

mod binding;
mod holders;
mod node;
mod node_queries;
mod node_sockets;
mod options;
mod refusals;
mod silent;
mod stand_ins;
mod unused;

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use self::binding::Binders;
use self::node_sockets::NodeSockets;
use self::refusals::Refusals;
use self::unused::Unused;
use super::listeners::Listeners;
use super::pausing::Paused;
use super::shutdown::Stop;
use super::{Context, Service};
use crate::config::ServiceConfig;
use crate::direct::attach::{AttachReply, AttachRequest, RequestKind, Secret};
use crate::limited::Limited;
use crate::slot::Slot;
use crate::sys::closer::Foreign;
use crate::sys::{process, sock};
use crate::worker::Worker;
use crate::worker::attachment::Attachment;

/// What is known from one request to the next.
#[derive(Debug, Default)]
pub struct State {
    binders: Binders,
    /// Listeners that were closed and may go.
    unused: Vec<Unused>,
    /// Processes whose end is to be watched, each with its worker's secret.
    watch: Vec<(u32, Secret)>,
    /// Warnings of a worker with too many listeners.
    crowded: Limited,
    pub refusals: Refusals,
    pub node: NodeSockets,
}

/// Answers for one turn.
#[derive(Debug)]
pub struct Handler<'a> {
    config: &'a ServiceConfig,
    listeners: &'a mut Listeners,
    slots: &'a mut [Slot],
    state: &'a mut State,
    context: &'a Context,
    paused: bool,
    /// The service stops; its listeners may still be open.
    stopping: bool,
    /// Its listeners are closed, or are being closed.
    closes: bool,
}

impl Service {
    pub fn attach<'a>(&'a mut self, context: &'a Context) -> Handler<'a> {
        Handler {
            paused: self.operations.paused != Paused::No,
            stopping: self.stop.is_some(),
            closes: self.stop.as_ref().is_some_and(Stop::closes),
            config: &self.config,
            listeners: &mut self.listeners,
            slots: &mut self.slots,
            state: &mut self.attach,
            context,
        }
    }

    /// Whether a secret is that of one of its workers, shown by a process that may be that worker's.
    pub fn admits(&self, secret: &Secret, pid: u32, uid: u32) -> bool {
        let own = self.config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid).as_raw();
        self.slots.iter().flat_map(Slot::workers).filter_map(Worker::direct).any(|(server, attachment)| {
            // A server that root starts may become another user by itself; then it has to be one of its processes.
            attachment.secret == *secret && (uid == own || process::is_below(pid, &[server.pid]))
        })
    }
}

impl Handler<'_> {
    /// Answers a library that [`Service::admits`] admitted; `None`: its worker is gone.
    pub fn request(&mut self, request: AttachRequest) -> Option<AttachReply> {
        let known = |direct: &Attachment| direct.secret == request.secret;
        let old = |slot: &Slot| slot.retiring.iter().any(|old| old.worker.attachment().is_some_and(known));
        if self.slots.iter().any(old) {
            return Some(self.request_of_old(&request));
        }
        let at = self.slots.iter().position(|slot| slot.attachment().is_some_and(known))?;
        Some(match request.kind {
            RequestKind::Bind(socket, address) => self.bind(at, &socket, address, request.pid),
            RequestKind::Bound(socket, address) => {
                let answer = self.bound(at, socket, address, request.pid);
                // The listener has the same file; a copy that is closed later would keep the port.
                let bound = self.listeners.bound_to(address).and_then(|id| self.listeners.find(id));
                let inode = bound.and_then(|listener| sock::inode(listener.socket.as_fd()));
                let same = |copy: &Foreign| inode.is_some() && sock::inode(copy.as_fd()) == inode;
                request.sent.into_iter().filter(same).for_each(Foreign::close_copy);
                answer
            }
            RequestKind::Listen(listener) => self.server_listens(at, listener),
            RequestKind::Unlisten(listener, how) => self.server_unlistens(at, listener, how, request.pid),
            RequestKind::Adopt(listener) => self.adopt(at, listener, request.pid),
            RequestKind::Lease => self.lease(at, request.pid),
            RequestKind::SetOption(listener, option) => {
                options::set(self.listeners.find(listener), &option, request.uid)
            }
            RequestKind::GetOption(listener, option) => options::get(self.listeners.find(listener), &option),
            RequestKind::GiveBack(listener) => self.give_back(at, listener),
            RequestKind::Recognize(socket) => self.recognize(at, &socket, request.pid),
        })
    }

    /// A worker on its way out gets nothing new, and what it closes is of no interest.
    fn request_of_old(&self, request: &AttachRequest) -> AttachReply {
        match &request.kind {
            RequestKind::Unlisten(..) | RequestKind::Listen(_) => AttachReply::Errno(0),
            RequestKind::Lease => AttachReply::Errno(self.config.limits.stop_signal as i32),
            RequestKind::SetOption(listener, option) => {
                options::set(self.listeners.find(*listener), option, request.uid)
            }
            RequestKind::GetOption(listener, option) => options::get(self.listeners.find(*listener), option),
            RequestKind::Recognize(_) => AttachReply::Pass,
            RequestKind::Bind(..) | RequestKind::Bound(..) | RequestKind::Adopt(_) | RequestKind::GiveBack(_) => {
                AttachReply::Errno(libc::EADDRINUSE)
            }
        }
    }

    /// What is due by the clock; when it is due next.
    pub fn step(&mut self, now: Instant) -> Option<Instant> {
        [self.step_unused(now), self.step_queries(now), self.step_holders(now)].into_iter().flatten().min()
    }
}

fn errno(error: &io::Error, otherwise: i32) -> AttachReply {
    AttachReply::Errno(error.raw_os_error().unwrap_or(otherwise))
}
