//! What servers' preload libraries ask, and what they are answered.

pub mod binding;
mod holders;
mod node;
pub(in crate::service) mod node_sockets;
pub mod unused;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use self::binding::{find, find_mut, ids};
use crate::abi::attach::{OPTION_BYTES, SocketOption};
use crate::accept::orders::{ListenerId, Order, place};
use crate::accept::policy::Policy;
use crate::direct::attach::{AttachReply, AttachRequest, Ended, RequestKind, Secret};
use crate::direct::options;
use crate::listener::{self, Listener, Origin};
use crate::service::lifecycle::Phase;
use crate::service::slot::Slot;
use crate::service::{Context, Service};
use crate::sys::closer::Foreign;
use crate::sys::process::Credentials;
use crate::sys::{process, rights, sock};
use crate::worker::Worker;
use crate::worker::attachment::Attachment;

/// Addresses of a service that were refused and are remembered: a server may try one after the other.
const MAX_REFUSED: usize = 64;

/// At the end, so much time for finding out who has them.
const EXPLAINING: Duration = Duration::from_secs(5);

impl Service {
    /// Whether a proof is that of one of its workers, shown by a process that may be that worker's.
    pub fn admits(&self, secret: &Secret, pid: u32, uid: u32) -> bool {
        let own = self.config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid).as_raw();
        self.slots.iter().flat_map(Slot::workers).filter_map(Worker::direct).any(|(server, attachment)| {
            // A server that root starts may become another user by itself; then it has to be one of its processes.
            attachment.secret == *secret && (uid == own || process::is_below(pid, &[server.pid]))
        })
    }

    /// Answers a library that [`Service::admits`] admitted; `None`: its worker is gone.
    pub fn attach_request(&mut self, request: AttachRequest, context: &Context) -> Option<AttachReply> {
        let known = |direct: &Attachment| direct.secret == request.secret;
        let old = |slot: &Slot| slot.retiring.iter().any(|old| old.worker.attachment().is_some_and(known));
        if self.slots.iter().any(old) {
            return Some(self.request_of_old(&request));
        }
        let at = self.slots.iter().position(|slot| slot.attachment().is_some_and(known))?;
        Some(match request.kind {
            RequestKind::Bind(socket, address) => self.bind(at, &socket, address, request.pid, context),
            RequestKind::Bound(socket, address) => {
                let answer = self.bound(at, socket, address, request.pid, context);
                // The listener has the same file; a copy that is closed later would keep the port.
                let inode =
                    self.bound_to(address).and_then(|id| sock::inode(find(&self.listeners, id)?.socket.as_fd()));
                let same = |copy: &Foreign| inode.is_some() && sock::inode(copy.as_fd()) == inode;
                request.sent.into_iter().filter(same).for_each(Foreign::close_copy);
                answer
            }
            RequestKind::Listen(listener) => self.server_listens(at, listener, context),
            RequestKind::Unlisten(listener, how) => self.server_unlistens(at, listener, how, request.pid, context),
            RequestKind::Adopt(listener) => self.adopt(at, listener, request.pid),
            RequestKind::Lease => self.lease(at, request.pid),
            RequestKind::SetOption(listener, option) => self.set_option(listener, &option, request.uid),
            RequestKind::GetOption(listener, option) => self.get_option(listener, &option),
            RequestKind::GiveBack(listener) => self.give_back(at, listener),
            RequestKind::Recognize(socket) => self.recognize(at, &socket, request.pid),
        })
    }

    /// A worker on its way out gets nothing new, and what it closes is of no interest.
    fn request_of_old(&self, request: &AttachRequest) -> AttachReply {
        match &request.kind {
            RequestKind::Unlisten(..) | RequestKind::Listen(_) => AttachReply::Errno(0),
            RequestKind::Lease => AttachReply::Errno(self.config.limits.stop_signal as i32),
            RequestKind::SetOption(listener, option) => self.set_option(*listener, option, request.uid),
            RequestKind::GetOption(listener, option) => self.get_option(*listener, option),
            RequestKind::Recognize(_) => AttachReply::Pass,
            RequestKind::Bind(..) | RequestKind::Bound(..) | RequestKind::Adopt(_) | RequestKind::GiveBack(_) => {
                AttachReply::Errno(libc::EADDRINUSE)
            }
        }
    }

    /// Logs once who has the address that a server wanted. A thread looks: /proc is read process by process.
    pub(in crate::service) fn explain_refusal(&mut self, at: usize, address: SocketAddr, error: &io::Error) {
        let Some(errno) = error.raw_os_error() else { return };
        let why = match errno {
            libc::EADDRINUSE => Some("address already in use"),
            libc::EACCES => Some("permission denied"),
            _ => None,
        };
        if let (Some(why), Some(server)) = (why, self.slots[at].server_mut()) {
            let shown = SocketAddr::new(address.ip().to_canonical(), address.port());
            server.refused = Some(format!("cannot listen on {shown}: {why}"));
        }
        if self.refused.len() >= MAX_REFUSED || self.refused.contains_key(&address) {
            return;
        }
        let service = self.config.name.clone();
        let look = move || {
            if let Some(why) = listener::refused(address, &io::Error::from_raw_os_error(errno)) {
                warn!(%service, slot = at, "{why}");
            }
        };
        // Without a thread there is no such line; the server has its error.
        if let Ok(thread) = std::thread::Builder::new().name("who".to_owned()).spawn(look) {
            self.refused.insert(address, thread);
        }
    }

    /// Before the daemon ends because of them: these lines are the reason.
    pub fn finish_explaining(&mut self) {
        let end = Instant::now() + EXPLAINING;
        while self.refused.values().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(in crate::service) fn share(&mut self, at: usize, id: ListenerId, pid: u32) -> io::Result<AttachReply> {
        let lost = || io::Error::from_raw_os_error(libc::EINVAL);
        let listener = find(&self.listeners, id).ok_or_else(lost)?;
        let direct = self.slots[at].attachment_mut().ok_or_else(lost)?;
        let page = direct.page_fd.try_clone()?;
        let answer = if self.config.policy == Policy::None {
            AttachReply::Listener(id, listener.socket.as_fd().try_clone_to_owned()?, page)
        } else {
            // As the server asked for it: Node looks whether it got its port.
            let mut address = sock::local_addr(listener.socket.as_fd()).ok_or_else(lost)?;
            address.set_port(listener.served_port().unwrap_or(address.port()));
            let (queue, keep) = direct.queue(id)?.ends()?;
            AttachReply::Shared { listener: id, address, queue, page, keep }
        };
        direct.bound.entry(id).or_default().insert(pid);
        direct.left.has(id);
        self.opened.uses(id);
        direct.pid.get_or_insert(pid);
        Ok(answer)
    }

    /// A process has a stand-in that another process of its worker bound.
    fn adopt(&mut self, at: usize, id: ListenerId, pid: u32) -> AttachReply {
        if self.slots[at].attachment().is_none_or(|direct| !direct.queues.contains_key(&id)) {
            return AttachReply::Errno(libc::EINVAL);
        }
        let shared = self.share(at, id, pid);
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.adopted.insert(pid);
        }
        shared.unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    /// Under none: a process listens on a socket that it got from another one (Node's cluster).
    fn recognize(&mut self, at: usize, socket: &OwnedFd, pid: u32) -> AttachReply {
        let inode = |fd: std::os::fd::BorrowedFd<'_>| nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino);
        let own = inode(socket.as_fd());
        let same = |listener: &Listener| own.is_some() && inode(listener.socket.as_fd()) == own;
        let known = ids(&self.listeners).find(|(_, listener)| same(listener)).map(|(id, _)| id);
        match known {
            Some(id) if self.config.policy == Policy::None => {
                self.share(at, id, pid).unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
            }
            _ => AttachReply::Pass,
        }
    }

    fn lease(&mut self, at: usize, pid: u32) -> AttachReply {
        if let Some((server, attachment)) = self.slots[at].direct_mut() {
            attachment.leased.insert(pid);
            attachment.abandoned = None;
            // What was asked to stop was a child of something that replaced it.
            server.repeat_stop(self.config.limits.stop_signal);
        }
        AttachReply::Errno(self.config.limits.stop_signal as i32)
    }

    fn server_listens(&mut self, at: usize, id: ListenerId, context: &Context) -> AttachReply {
        let Some(listener) = find(&self.listeners, id) else { return AttachReply::Errno(libc::EINVAL) };
        if !self.listening.contains(&id) {
            if let Err(error) = listener.listen() {
                if let Some(address) = sock::local_addr(listener.socket.as_fd()) {
                    self.explain_refusal(at, address, &error);
                }
                return errno(&error, libc::EADDRINUSE);
            }
            self.listening.insert(id);
            context.orders.send(Order::Listener { service: self.id, id, socket: listener.socket.clone() });
            info!(service = %self.config.name, address = %listener.address, policy = %self.config.policy, "listening");
        }
        let port = listener.port;
        let slot = &mut self.slots[at];
        let online = matches!(slot.lifecycle.phase, Phase::Online { .. });
        let Some(worker) = &mut slot.current else { return AttachReply::Errno(libc::EINVAL) };
        let Some(attachment) = worker.attachment_mut().filter(|attachment| attachment.has(id)) else {
            return AttachReply::Errno(libc::EINVAL);
        };
        let again = !attachment.listening.insert(id);
        attachment.ports.extend(port);
        if online
            && !again
            && let Some(queue) = attachment.queues.get(&id).cloned()
        {
            worker.queues.push(Arc::downgrade(&queue));
            context.orders.send(Order::Listens { worker: worker.id, listener: id, queue });
        }
        self.listens_again(at);
        // Whether it is online now is looked at in the same turn.
        AttachReply::Errno(0)
    }

    /// A process of a worker closed a stand-in; the worker listens there as long as another process of it does.
    fn server_unlistens(&mut self, at: usize, id: ListenerId, how: Ended, pid: u32, context: &Context) -> AttachReply {
        let now = Instant::now();
        let Some(direct) = self.slots[at].attachment_mut() else { return AttachReply::Errno(0) };
        if let Some(bound) = direct.bound.get_mut(&id) {
            bound.remove(&pid);
            bound.retain(|&pid| process::pidfd_open(pid).is_ok_and(|process| !process::has_ended(&process)));
            if !bound.is_empty() {
                return AttachReply::Errno(0);
            }
        }
        match how {
            Ended::ByClose if direct.bound.contains_key(&id) => self.look_for_holders(at, id, pid, context, now),
            Ended::ByClose => {}
            Ended::ByShutdown => self.unlistened(at, id, pid, context, now),
        }
        AttachReply::Errno(0)
    }

    /// Our rights are not lent to a server that has less of them.
    fn set_option(&self, id: ListenerId, option: &SocketOption, uid: u32) -> AttachReply {
        let Some(listener) = find(&self.listeners, id) else { return AttachReply::Errno(libc::EINVAL) };
        let value = &option.value[..(option.len as usize).min(OPTION_BYTES)];
        if !options::may_set(option.level, option.name) {
            return AttachReply::Errno(libc::ENOPROTOOPT);
        }
        let set = || sock::set_option(listener.socket.as_fd(), option.level, option.name, value);
        match rights::as_server(Credentials::of(uid).as_ref(), set) {
            Ok(()) => AttachReply::Errno(0),
            Err(error) => errno(&error, libc::EINVAL),
        }
    }

    fn get_option(&self, id: ListenerId, option: &SocketOption) -> AttachReply {
        let Some(listener) = find(&self.listeners, id) else { return AttachReply::Errno(libc::EINVAL) };
        if !options::may_get(option.level, option.name) {
            // As the kernel says it of a level that it does not know.
            let known = options::is_level(option.level);
            return AttachReply::Errno(if known { libc::ENOPROTOOPT } else { libc::EOPNOTSUPP });
        }
        let mut value = [0; OPTION_BYTES];
        match sock::option(listener.socket.as_fd(), option.level, option.name, &mut value) {
            Ok(len) => AttachReply::Value(SocketOption { len: len as u32, value, ..*option }),
            Err(error) => errno(&error, libc::EINVAL),
        }
    }

    /// A server that bound a port and then connects: it never meant to listen there.
    fn give_back(&mut self, at: usize, id: ListenerId) -> AttachReply {
        let shared =
            self.slots.iter().enumerate().any(|(other, slot)| {
                other != at && slot.attachment().is_some_and(|direct| direct.bound.contains_key(&id))
            });
        let Some(listener) = find_mut(&mut self.listeners, id) else { return AttachReply::Errno(libc::EINVAL) };
        if listener.origin != Origin::Server || self.listening.contains(&id) || shared {
            return AttachReply::Errno(libc::EADDRINUSE);
        }
        let socket = listener.give_back().and_then(|socket| socket.as_fd().try_clone_to_owned());
        if socket.is_ok() {
            self.opened.spare.push(place(id));
        }
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.queues.remove(&id);
            direct.bound.remove(&id);
        }
        let back = |socket| AttachReply::Back(Foreign::received(socket));
        socket.map_or_else(|error| errno(&error, libc::EADDRINUSE), back)
    }
}

pub(in crate::service) fn errno(error: &io::Error, otherwise: i32) -> AttachReply {
    AttachReply::Errno(error.raw_os_error().unwrap_or(otherwise))
}
