//! Node's own workers want to listen: what each gets.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Handler;
use super::node::{say_to, with_channel};
use super::node_sockets::{Binder, MAX_DATA, address};
use crate::accept::policy::Policy;
use crate::listener::Listener;
use crate::node::message::{self, Kind, Query};

/// How soon an address that is being closed is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

impl Handler<'_> {
    /// Answers a worker that wants to listen.
    ///
    /// # Errors
    /// When it does not read answers.
    pub(super) fn answer_query(&mut self, (at, pid, old): (usize, u32, bool), query: Query) -> io::Result<()> {
        if !old && self.is_still_closing(&query) {
            self.state.node.later.push((at, pid, query));
            return Ok(());
        }
        let data = self.state.node.data(&query);
        let given = match old || self.closes || query.key().len() > MAX_DATA {
            // Workers on their way out get nothing new, and no worker gets a key without bounds.
            true => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            false => self.socket_for(at, pid, &query),
        };
        if let (Err(error), false, Kind::Tcp) = (&given, old, query.kind)
            && let Ok(wanted) = address(&query, Ipv6Addr::UNSPECIFIED.into())
        {
            self.explain_refusal(at, wanted, error);
        }
        say_to(self.slots, pid, |ipc| {
            let seq = ipc.channel.next_seq();
            match given {
                Ok(socket) => ipc.channel.send(message::shared(&query, &data, seq), Some(socket)),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
                    ipc.channel.send(message::refused(&query, errno, seq), None)
                }
            }
        })
    }

    /// Whether a new address is in use by what closes now.
    fn is_still_closing(&mut self, query: &Query) -> bool {
        if query.kind != Kind::Tcp || self.listeners.has_flags() || self.state.node.listeners.contains_key(&query.key())
        {
            return false;
        }
        let Ok(address) = address(query, Ipv6Addr::UNSPECIFIED.into()) else { return false };
        self.look_now();
        self.make_way(address);
        self.listeners.is_closing(address.port())
    }

    /// Looks again at queries that had to wait.
    pub(super) fn step_queries(&mut self, now: Instant) -> Option<Instant> {
        for (at, pid, query) in std::mem::take(&mut self.state.node.later) {
            let Some(old) = with_channel(self.slots, pid).map(|(_, _, old)| old) else { continue };
            // One that does not read answers has more to say, and is dealt with there.
            let _ = self.answer_query((at, pid, old), query);
        }
        (!self.state.node.later.is_empty()).then(|| now + POLL_INTERVAL)
    }

    /// A worker's queue stands in for the listening socket; under none it is that socket itself.
    fn socket_for(&mut self, at: usize, pid: u32, query: &Query) -> io::Result<Arc<OwnedFd>> {
        let binder = Binder::new(self.config, pid);
        match query.kind {
            Kind::Path => return self.state.node.shared(query, || binder.path(query)),
            Kind::Udp4 | Kind::Udp6 => return self.state.node.datagram(query, &binder),
            Kind::Tcp => {}
        }
        let key = query.key();
        let id = if self.listeners.has_flags() {
            u16::try_from(query.port).ok().and_then(|port| self.listeners.serving(port))
        } else if let Some(&id) = self.state.node.listeners.get(&key) {
            Some(id)
        } else {
            self.state.node.has_room()?;
            let id = self.listeners.take(binder.tcp(query)?.into())?;
            self.state.node.listeners.insert(key, id);
            Some(id)
        };
        let Some(id) = id else {
            let socket = self.state.node.shared(query, || Listener::of_server(binder.tcp(query)?.into()));
            let port = u16::try_from(query.port).unwrap_or(0);
            self.passes(at, port, "its workers share it, and the kernel chooses; ");
            return socket;
        };
        let listener = self.listeners.find(id).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let Some(direct) = self.slots[at].attachment_mut() else { return Ok(listener.socket.clone()) };
        direct.bound.entry(id).or_default().insert(pid);
        self.state.uses(id);
        if self.config.policy == Policy::None {
            return Ok(listener.socket.clone());
        }
        direct.pid.get_or_insert(pid);
        let (end, _) = direct.queue(id)?.ends()?;
        Ok(Arc::new(end))
    }
}
