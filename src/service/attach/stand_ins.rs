//! Stand-ins: what a worker's processes get for a listening socket, and what they do with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::{Handler, errno};
use crate::accept::orders::{ListenerId, Order};
use crate::accept::policy::Policy;
use crate::direct::attach::{AttachReply, Ended};
use crate::service::step::CannotListen;
use crate::slot::lifecycle::Phase;
use crate::sys::closer::Foreign;
use crate::sys::{process, sock};

impl Handler<'_> {
    /// Gives a process of a worker its stand-in for a listener.
    pub(super) fn share(&mut self, at: usize, id: ListenerId, pid: u32) -> AttachReply {
        self.stand_in(at, id, pid).unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    fn stand_in(&mut self, at: usize, id: ListenerId, pid: u32) -> io::Result<AttachReply> {
        let lost = || io::Error::from_raw_os_error(libc::EINVAL);
        let listener = self.listeners.find(id).ok_or_else(lost)?;
        let direct = self.slots[at].attachment_mut().ok_or_else(lost)?;
        let page = direct.page_fd.try_clone()?;
        let answer = if self.config.policy == Policy::None {
            AttachReply::Listener(id, listener.socket.as_fd().try_clone_to_owned()?, page)
        } else {
            // As the server asked for it: Node looks whether it got its port.
            let mut address = sock::local_addr(listener.socket.as_fd()).ok_or_else(lost)?;
            address.set_port(listener.served_port().unwrap_or(address.port()));
            let (queue, keep) = direct.queue(id)?.ends()?;
            let bell = direct.bell.as_ref().map(OwnedFd::try_clone).transpose()?;
            AttachReply::Shared { listener: id, address, queue, page, keep, bell }
        };
        if let Some(log) = &direct.log {
            log.name_listener(id, listener.address.clone());
        }
        direct.bound.entry(id).or_default().insert(pid);
        direct.left.has(id);
        self.state.uses(id);
        direct.pid.get_or_insert(pid);
        Ok(answer)
    }

    /// A process has a stand-in that another process of its worker bound.
    pub(super) fn adopt(&mut self, at: usize, id: ListenerId, pid: u32) -> AttachReply {
        if self.slots[at].attachment().is_none_or(|direct| !direct.queues.contains_key(&id)) {
            return AttachReply::Errno(libc::EINVAL);
        }
        let shared = self.share(at, id, pid);
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.adopted.insert(pid);
        }
        shared
    }

    /// Under none: a process listens on a socket that it got from another one (Node's cluster).
    pub(super) fn recognize(&mut self, at: usize, socket: &OwnedFd, pid: u32) -> AttachReply {
        match self.listeners.same_as(socket.as_fd()) {
            Some(id) if self.config.policy == Policy::None => self.share(at, id, pid),
            _ => AttachReply::Pass,
        }
    }

    pub(super) fn lease(&mut self, at: usize, pid: u32) -> AttachReply {
        if let Some((server, attachment)) = self.slots[at].direct_mut() {
            attachment.lease(pid, server.pid);
            attachment.abandoned = None;
            // What was asked to stop was a child of something that replaced it.
            server.repeat_stop(self.config.limits.stop_signal);
        }
        AttachReply::Errno(self.config.limits.stop_signal as i32)
    }

    pub(super) fn server_listens(&mut self, at: usize, id: ListenerId) -> AttachReply {
        let Some(listener) = self.listeners.find(id) else { return AttachReply::Errno(libc::EINVAL) };
        let port = listener.port;
        if let Err(CannotListen { source, .. }) = self.listeners.listen(id, self.config.policy, self.context) {
            let listener = self.listeners.find(id);
            if let Some(address) = listener.and_then(|listener| sock::local_addr(listener.socket.as_fd())) {
                self.explain_refusal(at, address, &source);
            }
            return errno(&source, libc::EADDRINUSE);
        }
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
            self.context.orders.send(Order::Listens { worker: worker.id, listener: id, queue });
        }
        slot.listens_again(&self.config.name, at);
        // Whether it is online now is looked at in the same turn.
        AttachReply::Errno(0)
    }

    /// A process of a worker closed a stand-in; the worker listens there as long as another process of it does.
    pub(super) fn server_unlistens(&mut self, at: usize, id: ListenerId, how: Ended, pid: u32) -> AttachReply {
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
            Ended::ByClose if direct.bound.contains_key(&id) => self.look_for_holders(at, id, pid, now),
            Ended::ByClose => {}
            Ended::ByShutdown => self.unlistened(at, id, now),
        }
        AttachReply::Errno(0)
    }

    /// A server that bound a port and then connects: it never meant to listen there.
    pub(super) fn give_back(&mut self, at: usize, id: ListenerId) -> AttachReply {
        let shared =
            self.slots.iter().enumerate().any(|(other, slot)| {
                other != at && slot.attachment().is_some_and(|direct| direct.bound.contains_key(&id))
            });
        if shared {
            return AttachReply::Errno(libc::EADDRINUSE);
        }
        let socket = match self.listeners.give_back(id) {
            Ok(socket) => socket,
            Err(error) => return errno(&error, libc::EADDRINUSE),
        };
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.forget(id);
        }
        AttachReply::Back(Foreign::received(socket))
    }
}
