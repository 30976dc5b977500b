//! What servers' preload libraries ask, and what they are answered.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use socket2::SockRef;
use tracing::{info, warn};

use super::direct::DirectWorker;
use super::service::{Service, SlotProcesses, Tools};
use super::slot::{Event, Phase};
use crate::abi::attach::{OPTION_BYTES, SocketOption};
use crate::accept::orders::{ListenerId, Order};
use crate::accept::policy::Policy;
use crate::direct::attach::{Answer, Asked, Secret, What};
use crate::listener::{Listener, Origin};
use crate::sys::{process, sock};

impl Service {
    /// Whether a proof is that of one of its workers.
    pub fn knows(&self, secret: &Secret) -> bool {
        let retiring = self.slots.iter().flat_map(|slot| &slot.retiring).filter_map(|old| old.direct.as_ref());
        let current = self.slots.iter().filter_map(|slot| slot.direct.as_ref());
        retiring.chain(current).any(|direct| direct.secret == *secret)
    }

    /// Answers a library; `None` refuses it.
    pub fn asked(&mut self, asked: Asked, tools: &Tools) -> Option<Answer> {
        let known = |direct: &DirectWorker| direct.secret == asked.secret;
        let old = |slot: &SlotProcesses| slot.retiring.iter().any(|old| old.direct.as_ref().is_some_and(known));
        if self.slots.iter().any(old) {
            return Some(self.asked_by_old(&asked));
        }
        let at = self.slots.iter().position(|slot| slot.direct.as_ref().is_some_and(known));
        let own = self.config.user.as_ref().map_or(nix::unistd::geteuid(), |user| user.uid).as_raw();
        // A server that root starts may become another user by itself; then it has to be one of its processes.
        let is_below = |at: usize| {
            let root = self.slots[at].server.as_ref().map(|server| server.pid);
            root.is_some_and(|root| process::tree(root).contains(&asked.pid))
        };
        let Some(at) = at.filter(|&at| asked.uid == own || is_below(at)) else {
            let (pid, uid) = (asked.pid, asked.uid);
            warn!(service = %self.config.name, pid, uid, "refused to attach: it is none of our workers");
            return None;
        };
        Some(match asked.what {
            What::Bind(socket, address) => self.bind(at, socket, address, asked.pid),
            What::Listen(listener) => self.server_listens(at, listener, tools),
            What::Unlisten(listener) => self.server_unlistens(at, listener, asked.pid, tools),
            What::Adopt(listener) => self.adopt(at, listener, asked.pid),
            What::Lease => self.lease(at, asked.pid),
            What::SetOption(listener, option) => self.set_option(listener, &option),
            What::GetOption(listener, option) => self.get_option(listener, &option),
            What::GiveBack(listener) => self.give_back(at, listener),
            What::Recognize(socket) => self.recognize(at, &socket, asked.pid),
        })
    }

    /// A worker on its way out gets nothing new, and what it closes is of no interest.
    fn asked_by_old(&self, asked: &Asked) -> Answer {
        match &asked.what {
            What::Unlisten(_) | What::Listen(_) => Answer::Errno(0),
            What::Lease => Answer::Errno(self.config.limits.stop_signal as i32),
            What::SetOption(listener, option) => self.set_option(*listener, option),
            What::GetOption(listener, option) => self.get_option(*listener, option),
            What::Recognize(_) => Answer::Pass,
            What::Bind(..) | What::Adopt(_) | What::GiveBack(_) => Answer::Errno(libc::EADDRINUSE),
        }
    }

    fn bind(&mut self, at: usize, socket: OwnedFd, address: SocketAddr, pid: u32) -> Answer {
        if self.slots[at].server.as_ref().is_some_and(|server| server.inspect == Some(address.port())) {
            return Answer::Pass;
        }
        if self.closes() {
            return Answer::Errno(libc::EADDRINUSE);
        }
        let listener = match self.listener_for(&socket, address) {
            Ok(Some(listener)) => listener,
            Ok(None) => {
                let port = address.port();
                let served = self.listeners.iter().filter(|listener| listener.origin == Origin::Flag);
                let served: Vec<_> = served.filter_map(Listener::served_port).collect();
                let first = served.first().copied().unwrap_or(port);
                let outer = self.listeners.iter().find_map(|listener| listener.port).unwrap_or(first);
                warn!(
                    service = %self.config.name, slot = at,
                    "worker {at} listens on :{port}, which no -l serves; let it listen on :{first} (its PORT), \
                     or use -l {outer}={port}"
                );
                return Answer::Pass;
            }
            Err(error) => return errno(&error, libc::EADDRINUSE),
        };
        let shared = self.share(at, listener, pid);
        shared.unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    /// Which listener a server's bind means. Without `--listen` its socket becomes a new one.
    fn listener_for(&mut self, socket: &OwnedFd, address: SocketAddr) -> io::Result<Option<ListenerId>> {
        if self.listeners.iter().any(|listener| matches!(listener.origin, Origin::Flag | Origin::Leaving)) {
            return Ok(self.listeners.iter().position(|listener| listener.served_port() == Some(address.port())));
        }
        let known = |listener: &Listener| {
            listener.origin == Origin::Server && sock::local_addr(listener.socket.as_fd()) == Some(address)
        };
        if let Some(listener) = self.listeners.iter().position(known) {
            return Ok(Some(listener));
        }
        SockRef::from(socket).bind(&address.into())?;
        self.listeners.push(Listener::of_server(socket.try_clone()?)?);
        Ok(Some(self.listeners.len() - 1))
    }

    fn share(&mut self, at: usize, id: ListenerId, pid: u32) -> io::Result<Answer> {
        let lost = || io::Error::from_raw_os_error(libc::EINVAL);
        let listener = self.listeners.get(id).ok_or_else(lost)?;
        let direct = self.slots[at].direct.as_mut().ok_or_else(lost)?;
        let page = direct.page_fd.try_clone()?;
        let answer = if self.config.policy == Policy::None {
            Answer::Listener(id, listener.socket.as_fd().try_clone_to_owned()?, page)
        } else {
            // As the server asked for it: Node looks whether it got its port.
            let mut address = sock::local_addr(listener.socket.as_fd()).ok_or_else(lost)?;
            address.set_port(listener.served_port().unwrap_or(address.port()));
            let (queue, keep) = direct.queue(id)?.ends()?;
            Answer::Shared { listener: id, address, queue, page, keep }
        };
        direct.bound.entry(id).or_default().insert(pid);
        direct.pid.get_or_insert(pid);
        Ok(answer)
    }

    /// A process has a stand-in that another process of its worker bound.
    fn adopt(&mut self, at: usize, id: ListenerId, pid: u32) -> Answer {
        if self.slots[at].direct.as_ref().is_none_or(|direct| !direct.queues.contains_key(&id)) {
            return Answer::Errno(libc::EINVAL);
        }
        let shared = self.share(at, id, pid);
        if let Some(direct) = &mut self.slots[at].direct {
            direct.adopted.insert(pid);
        }
        shared.unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
    }

    /// Under none: a process listens on a socket that it got from another one (Node's cluster).
    fn recognize(&mut self, at: usize, socket: &OwnedFd, pid: u32) -> Answer {
        let inode = |fd: std::os::fd::BorrowedFd<'_>| nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino);
        let own = inode(socket.as_fd());
        let same = |listener: &Listener| own.is_some() && inode(listener.socket.as_fd()) == own;
        match self.listeners.iter().position(same) {
            Some(id) if self.config.policy == Policy::None => {
                self.share(at, id, pid).unwrap_or_else(|error| errno(&error, libc::ENOBUFS))
            }
            _ => Answer::Pass,
        }
    }

    fn lease(&mut self, at: usize, pid: u32) -> Answer {
        let slot = &mut self.slots[at];
        if let Some(direct) = &mut slot.direct {
            direct.leased.insert(pid);
            direct.abandoned = None;
        }
        // What was told to stop was a child of something that replaced it.
        slot.tell_again(self.config.limits.stop_signal);
        Answer::Errno(self.config.limits.stop_signal as i32)
    }

    fn server_listens(&mut self, at: usize, id: ListenerId, tools: &Tools) -> Answer {
        let Some(listener) = self.listeners.get(id) else { return Answer::Errno(libc::EINVAL) };
        if !self.heard.contains(&id) {
            if let Err(error) = listener.listen() {
                return errno(&error, libc::EADDRINUSE);
            }
            self.heard.insert(id);
            tools.orders.send(Order::Listener { service: self.id, id, socket: listener.socket.clone() });
            info!(service = %self.config.name, address = %listener.address, policy = %self.config.policy, "listening");
        }
        let port = listener.port;
        let slot = &mut self.slots[at];
        let Some(direct) = &mut slot.direct else { return Answer::Errno(libc::EINVAL) };
        if !direct.bound.contains_key(&id) {
            return Answer::Errno(libc::EINVAL);
        }
        let again = !direct.listening.insert(id);
        direct.ports.extend(port);
        if matches!(slot.life.phase, Phase::Online { .. })
            && !again
            && let Some(queue) = direct.queues.get(&id).cloned()
        {
            slot.queues.push(Arc::downgrade(&queue));
            tools.orders.send(Order::Listens { worker: direct.id, listener: id, queue });
        }
        // Whether it is online now is looked at in the same turn.
        Answer::Errno(0)
    }

    /// A server is online when it listens: on every `--listen`, or, where it decides, anywhere.
    pub(super) fn bring_direct_online(&mut self, at: usize, tools: &Tools, now: Instant) {
        let flags = self.listeners.iter().filter(|listener| listener.origin == Origin::Flag).count();
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let (Some(direct), Phase::Launching { since }) = (&slot.direct, slot.life.phase) else { return };
        // A worker of Node's cluster says so itself where it listens on what only its like share.
        let elsewhere =
            flags == 0 && slot.server.as_ref().and_then(|server| server.ipc.as_ref()).is_some_and(|ipc| ipc.listens);
        if direct.listening.len() < flags.max(1) && !elsewhere {
            return;
        }
        let listened = direct.queues.iter().filter(|(id, _)| direct.listening.contains(id));
        let queues: Vec<_> = listened.map(|(&id, queue)| (id, queue.clone())).collect();
        slot.queues = queues.iter().map(|(_, queue)| Arc::downgrade(queue)).collect();
        let (worker, page, stats, pid) = (direct.id, direct.page.clone(), slot.stats.clone(), direct.pid);
        tools.orders.send(Order::Online { worker, queues, page, stats });
        slot.life.apply(Event::Ready, now, &backoff);
        slot.reason = slot.replaced_for.take();
        let took = now.duration_since(since);
        let took = humantime::format_duration(std::time::Duration::from_millis(took.as_millis() as u64));
        info!(service = %self.config.name, slot = at, pid, %took, "worker online");
    }

    /// A process of a worker closed a stand-in; the worker listens there as long as another process of it does.
    fn server_unlistens(&mut self, at: usize, id: ListenerId, pid: u32, tools: &Tools) -> Answer {
        let Some(direct) = &mut self.slots[at].direct else { return Answer::Errno(0) };
        if let Some(bound) = direct.bound.get_mut(&id) {
            bound.remove(&pid);
            bound.retain(|&pid| process::pidfd_open(pid).is_ok());
            if !bound.is_empty() {
                return Answer::Errno(0);
            }
        }
        direct.bound.remove(&id);
        direct.queues.remove(&id);
        if !direct.listening.remove(&id) {
            return Answer::Errno(0);
        }
        tools.orders.send(Order::Unlistens { worker: direct.id, listener: id });
        Answer::Errno(0)
    }

    fn set_option(&self, id: ListenerId, option: &SocketOption) -> Answer {
        let Some(listener) = self.listeners.get(id) else { return Answer::Errno(libc::EINVAL) };
        let value = &option.value[..(option.len as usize).min(OPTION_BYTES)];
        match sock::set_option(listener.socket.as_fd(), option.level, option.name, value) {
            Ok(()) => Answer::Errno(0),
            Err(error) => errno(&error, libc::EINVAL),
        }
    }

    fn get_option(&self, id: ListenerId, option: &SocketOption) -> Answer {
        let Some(listener) = self.listeners.get(id) else { return Answer::Errno(libc::EINVAL) };
        let mut value = [0; OPTION_BYTES];
        match sock::option(listener.socket.as_fd(), option.level, option.name, &mut value) {
            Ok(len) => Answer::Value(SocketOption { len: len as u32, value, ..*option }),
            Err(error) => errno(&error, libc::EINVAL),
        }
    }

    /// A server that bound a port and then connects: it never meant to listen there.
    fn give_back(&mut self, at: usize, id: ListenerId) -> Answer {
        let shared = self.slots.iter().enumerate().any(|(other, slot)| {
            other != at && slot.direct.as_ref().is_some_and(|direct| direct.bound.contains_key(&id))
        });
        let Some(listener) = self.listeners.get_mut(id) else { return Answer::Errno(libc::EINVAL) };
        if listener.origin != Origin::Server || self.heard.contains(&id) || shared {
            return Answer::Errno(libc::EADDRINUSE);
        }
        let socket = listener.give_back().and_then(|socket| socket.as_fd().try_clone_to_owned());
        if let Some(direct) = &mut self.slots[at].direct {
            direct.queues.remove(&id);
            direct.bound.remove(&id);
        }
        socket.map_or_else(|error| errno(&error, libc::EADDRINUSE), Answer::Back)
    }
}

fn errno(error: &io::Error, otherwise: i32) -> Answer {
    Answer::Errno(error.raw_os_error().unwrap_or(otherwise))
}
