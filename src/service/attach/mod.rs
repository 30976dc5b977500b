//! What servers ask about listeners: requests of their preload libraries, and queries of Node's own workers.

mod binding;
mod holders;
mod moving;
mod node;
mod node_queries;
mod node_sockets;
mod options;
mod own;
mod record;
mod refusals;
mod silent;
mod stand_ins;
mod unused;

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use socket2::{Protocol, SockRef};

use self::binding::Binders;
use self::moving::LateWorkers;
use self::node_sockets::NodeSockets;
pub use self::record::StateRecord;
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
use crate::sys::interrupt::impatiently;
use crate::sys::process;
use crate::worker::Worker;
use crate::worker::attachment::Attachment;
use crate::worker::server::Server;

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
    /// No slot is on its way through its first start.
    all_started: bool,
    /// The log has said that a worker listens on a port that is not served.
    hinted: bool,
    /// The log has said that workers report sessions, which have no meaning.
    sessions_hinted: bool,
    pub late: LateWorkers,
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
    pub fn admits(&self, secret: &Secret, shown: Shown) -> bool {
        let own = self.config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid).as_raw();
        let may_show = |server: &Server| match shown {
            Shown::Before => true,
            // A server that root starts may become another user by itself; then it has to be one of its processes.
            Shown::By { pid, uid } => uid == own || process::is_below(pid, &[server.pid]),
        };
        let mut workers = self.slots.iter().flat_map(Slot::workers).filter_map(Worker::direct);
        workers.any(|(server, attachment)| attachment.secret == *secret && may_show(server))
            || (matches!(shown, Shown::Before) && self.attach.late.has(secret))
    }
}

/// Who shows a secret.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    By {
        /// As SO_PEERCRED says.
        pid: u32,
        /// As SO_PEERCRED says.
        uid: u32,
    },
    /// A process that was admitted with it, and may be gone by now.
    Before,
}

impl Handler<'_> {
    /// Answers a library that [`Service::admits`] admitted; `None`: its worker is gone.
    pub fn request(&mut self, mut request: AttachRequest) -> Option<AttachReply> {
        let copies = std::mem::take(&mut request.sent);
        if let RequestKind::Move(moved) = request.kind {
            // Before another worker has it, or the client would not see that one's close.
            copies.into_iter().for_each(Foreign::close_copy);
            return Some(self.moved(&request.secret, moved));
        }
        let reply = self.reply(request);
        copies.into_iter().for_each(close_now);
        reply
    }

    fn reply(&mut self, request: AttachRequest) -> Option<AttachReply> {
        let known = |direct: &Attachment| direct.secret == request.secret;
        if let RequestKind::Connects(listener, address) = request.kind {
            // Of a worker on its way out, too.
            let asks = |worker: &&Worker| worker.attachment().is_some_and(known);
            self.slots.iter().flat_map(Slot::workers).find(asks)?.wake_acceptor(listener, address);
            return Some(AttachReply::Errno(0));
        }
        let retiring = self.slots.iter().flat_map(|slot| &slot.retiring);
        let old = retiring.filter_map(|old| old.worker.attachment()).find(|&direct| known(direct));
        if let Some(old) = old {
            return Some(self.request_of_old(&request, old));
        }
        let at = self.slots.iter().position(|slot| slot.attachment().is_some_and(known))?;
        let pid = self.slots[at].direct_mut().map_or(request.pid, |(server, direct)| asker(&request, server, direct));
        Some(match request.kind {
            RequestKind::Bind(socket, address) => self.bind(at, &socket, address, pid),
            RequestKind::Bound(socket, address) => self.bound(at, socket, address, pid),
            RequestKind::Listen(listener) => self.server_listens(at, listener),
            RequestKind::Unlisten(listener, how) => self.server_unlistens(at, listener, how, pid),
            RequestKind::Adopt(listener) => self.adopt(at, listener, request.pid),
            RequestKind::Lease => self.lease(at, request.pid),
            RequestKind::SetOption(listener, option) => self.set_option(at, listener, &option, request.uid),
            RequestKind::GetOption(listener, option) => options::get(self.listeners.find(listener), &option),
            RequestKind::GiveBack(listener) => self.give_back(at, listener),
            RequestKind::Recognize(socket) => self.recognize(at, &socket, request.pid),
            RequestKind::Connects(..) | RequestKind::Moves => AttachReply::Errno(0),
            RequestKind::Move(moved) => self.moved(&request.secret, moved),
            RequestKind::Log => self.slots[at].attachment().map_or(AttachReply::Errno(libc::EINVAL), ring),
            RequestKind::Translations => {
                self.slots[at].attachment().map_or(AttachReply::Errno(libc::EINVAL), translations)
            }
        })
    }

    /// A worker on its way out gets nothing new, and what it closes is of no interest.
    fn request_of_old(&self, request: &AttachRequest, old: &Attachment) -> AttachReply {
        match &request.kind {
            RequestKind::Unlisten(..)
            | RequestKind::Listen(_)
            | RequestKind::Connects(..)
            | RequestKind::Moves
            | RequestKind::Move(_) => AttachReply::Errno(0),
            RequestKind::Lease => AttachReply::Errno(self.config.limits.stop_signal as i32),
            RequestKind::SetOption(listener, option) => {
                options::set(self.listeners.find(*listener), option, request.uid)
            }
            RequestKind::GetOption(listener, option) => options::get(self.listeners.find(*listener), option),
            RequestKind::Recognize(_) => AttachReply::Pass,
            RequestKind::Log => ring(old),
            RequestKind::Translations => translations(old),
            // For the clients that it still has.
            RequestKind::Bind(_, address) if self.listener_for(*address).is_none() => AttachReply::Pass,
            RequestKind::Bind(..) | RequestKind::Bound(..) | RequestKind::Adopt(_) | RequestKind::GiveBack(_) => {
                AttachReply::Errno(libc::EADDRINUSE)
            }
        }
    }

    /// What is due by the clock; when it is due next.
    pub fn step(&mut self, now: Instant) -> Option<Instant> {
        self.state.note_started(self.slots, self.config.limits.listen_timeout, now);
        [self.step_unused(now), self.step_queries(now), self.step_holders(now)].into_iter().flatten().min()
    }
}

/// The process that a request is about: a keeper asks for its server.
fn asker(request: &AttachRequest, server: &Server, direct: &Attachment) -> u32 {
    let for_server = direct.is_kept() && process::is_below(request.named, &[server.pid]);
    if for_server { request.named } else { request.pid }
}

/// Where a worker's processes record their connections.
fn ring(worker: &Attachment) -> AttachReply {
    let ends = worker.log.as_ref().map(|log| log.ends().map(|fd| fd.try_clone_to_owned()));
    match ends {
        Some([Ok(file), Ok(bell)]) => AttachReply::Log(file, bell),
        _ => AttachReply::Errno(libc::ENOBUFS),
    }
}

/// Where a worker's processes record the addresses that PROXY headers named.
fn translations(worker: &Attachment) -> AttachReply {
    match worker.translations.as_ref().map(|file| file.as_fd().try_clone_to_owned()) {
        Some(Ok(file)) => AttachReply::Translations(file),
        _ => AttachReply::Errno(libc::ENOBUFS),
    }
}

/// Closes a copy of what a server sent before the server has its reply: the copy would keep the port that the server may
/// close in a moment. Not of connections, which may linger, nor of Unix sockets, which may hold files.
fn close_now(copy: Foreign) {
    let socket = SockRef::from(&copy);
    let is_tcp = matches!(socket.protocol(), Ok(Some(Protocol::TCP | Protocol::MPTCP)));
    if is_tcp && socket.peer_addr().is_err() {
        impatiently(|| copy.close_copy());
    }
}

fn errno(error: &io::Error, otherwise: i32) -> AttachReply {
    AttachReply::Errno(error.raw_os_error().unwrap_or(otherwise))
}
