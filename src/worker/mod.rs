//! One generation of a slot: its processes, and what connects them to the master.

pub mod attachment;
pub mod children;
pub mod context;
pub mod decisive;
pub mod delivery;
pub mod exit;
pub mod instead;
pub mod ipc;
pub mod listen_watch;
pub mod notify;
pub mod probe;
pub mod record;
pub mod relay;
pub mod server;
pub mod sessions;
pub mod stand_ins;
pub mod start;
pub mod totals;
mod uncounted;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use nix::sys::signal::Signal;

use self::attachment::Attachment;
pub use self::context::Context;
pub use self::delivery::Delivery;
use self::ipc::Ipc;
use self::relay::{Readiness, Relay};
use self::server::{Server, StopRequest};
pub use self::start::Seat;
use crate::accept::orders::{ListenerId, Order, SlotStats, WorkerId};
use crate::accept::policy::Policy;
use crate::config::{Limits, ServiceConfig};
use crate::handoff::QueueTx;
use crate::relay::protocol::ToWorker;
use crate::sys::process;

/// The most messages that may be pending where a server that connects to itself gets another one.
const MAX_WAKES: usize = 16;

/// A worker, from its start until the last of its processes is reaped.
#[derive(Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub kind: Kind,
    /// Filled by the accept thread while the worker is online; looked at for `ls`.
    pub queues: Vec<Weak<QueueTx>>,
}

/// What a worker consists of.
#[derive(Debug)]
pub enum Kind {
    /// A server that receives connections itself.
    Direct { server: Server, attachment: Box<Attachment> },
    /// A relay worker, and the server behind it unless it serves upstreams. Each half may die and be replaced alone; a
    /// worker that has neither is dropped.
    Relay { relay: Option<Relay>, server: Option<Server> },
    /// A server without a port.
    NoPort { server: Server },
}

/// A part of a worker whose process has ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made once per end of a process, and taken apart at once")]
pub enum Ended {
    Relay(Relay),
    Server(Server, Option<Box<Attachment>>),
}

impl Worker {
    pub fn server(&self) -> Option<&Server> {
        match &self.kind {
            Kind::Direct { server, .. } | Kind::NoPort { server } => Some(server),
            Kind::Relay { server, .. } => server.as_ref(),
        }
    }

    pub fn server_mut(&mut self) -> Option<&mut Server> {
        match &mut self.kind {
            Kind::Direct { server, .. } | Kind::NoPort { server } => Some(server),
            Kind::Relay { server, .. } => server.as_mut(),
        }
    }

    pub fn relay(&self) -> Option<&Relay> {
        match &self.kind {
            Kind::Relay { relay, .. } => relay.as_ref(),
            Kind::Direct { .. } | Kind::NoPort { .. } => None,
        }
    }

    pub fn relay_mut(&mut self) -> Option<&mut Relay> {
        match &mut self.kind {
            Kind::Relay { relay, .. } => relay.as_mut(),
            Kind::Direct { .. } | Kind::NoPort { .. } => None,
        }
    }

    pub fn direct(&self) -> Option<(&Server, &Attachment)> {
        match &self.kind {
            Kind::Direct { server, attachment } => Some((server, attachment)),
            Kind::Relay { .. } | Kind::NoPort { .. } => None,
        }
    }

    pub fn direct_mut(&mut self) -> Option<(&mut Server, &mut Attachment)> {
        match &mut self.kind {
            Kind::Direct { server, attachment } => Some((server, attachment)),
            Kind::Relay { .. } | Kind::NoPort { .. } => None,
        }
    }

    pub fn attachment(&self) -> Option<&Attachment> {
        self.direct().map(|(_, attachment)| attachment)
    }

    pub fn attachment_mut(&mut self) -> Option<&mut Attachment> {
        self.direct_mut().map(|(_, attachment)| attachment)
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        let relay = self.relay().map(|relay| relay.pid);
        relay.into_iter().chain(self.server().map(|server| server.pid))
    }

    /// The process that receives connections, or does the work of a service without a port.
    pub fn receiver(&self) -> Option<u32> {
        match &self.kind {
            Kind::Direct { server, attachment } => Some(attachment.pid.unwrap_or(server.pid)),
            Kind::Relay { relay, .. } => relay.as_ref().map(|relay| relay.pid),
            Kind::NoPort { server } => Some(server.pid),
        }
    }

    /// The server behind a relay worker.
    pub fn behind_relay(&self) -> Option<u32> {
        match &self.kind {
            Kind::Relay { server, .. } => server.as_ref().map(|server| server.pid),
            Kind::Direct { .. } | Kind::NoPort { .. } => None,
        }
    }

    /// Connections open.
    pub fn open(&self) -> u64 {
        match &self.kind {
            Kind::Direct { attachment, .. } => attachment.page.open_alive(),
            Kind::Relay { relay, .. } => relay.as_ref().map_or(0, |relay| relay.page.open()),
            Kind::NoPort { .. } => 0,
        }
    }

    /// Resident memory of its processes and everything below its server.
    pub fn memory(&self) -> u64 {
        let relay = self.relay().map_or(0, |relay| process::rss_bytes(relay.pid));
        relay
            + self
                .server()
                .map_or(0, |server| process::descendants(server.pid).into_iter().map(process::rss_bytes).sum())
    }

    /// Whether it can come online; `flags`: the listeners that every worker has to serve.
    pub fn is_ready(&self, config: &ServiceConfig, flags: usize, since: Instant, now: Instant) -> bool {
        match &self.kind {
            Kind::Direct { server, attachment } => {
                // A worker of Node's cluster says so itself where it listens on what only its like share.
                let elsewhere = flags == 0 && server.ipc.as_ref().is_some_and(|ipc| ipc.listens);
                elsewhere || attachment.listening.len() >= flags.max(1)
            }
            Kind::Relay { relay, server } => {
                server.as_ref().is_none_or(|server| server.probe.is_none())
                    && relay.as_ref().is_some_and(|relay| relay.readiness == Readiness::Ready)
            }
            Kind::NoPort { .. } => config.limits.wait_ready || now.duration_since(since) >= config.limits.min_uptime,
        }
    }

    /// While it launches: when something about it is to be looked at by the clock alone.
    pub fn launch_due(&self, limits: &Limits, since: Instant) -> Option<Instant> {
        match &self.kind {
            Kind::Direct { server, .. } => server.listen_watch.due(since, limits.listen_timeout),
            Kind::NoPort { .. } if !limits.wait_ready => Some(since + limits.min_uptime),
            Kind::Relay { .. } | Kind::NoPort { .. } => None,
        }
    }

    /// Gives it to the accept thread, if that is to know of it.
    pub fn go_online(&mut self, policy: Policy, stats: Arc<SlotStats>, context: &Context) {
        let (page, queues) = match &mut self.kind {
            Kind::Direct { attachment, .. } => {
                let queues = attachment.queues.iter().filter(|(id, _)| attachment.listening.contains(id));
                (attachment.page.clone(), queues.map(|(&id, queue)| (id, queue.clone())).collect::<Vec<_>>())
            }
            Kind::Relay { relay: Some(relay), .. } => {
                if policy == Policy::None {
                    relay.order(ToWorker::Serve);
                }
                (relay.page.clone(), std::mem::take(&mut relay.queues).into_iter().enumerate().collect())
            }
            Kind::Relay { relay: None, .. } | Kind::NoPort { .. } => return,
        };
        self.queues = queues.iter().map(|(_, queue)| Arc::downgrade(queue)).collect();
        context.orders.send(Order::Online { worker: self.id, queues, page, stats });
    }

    /// Its server accepts no more by itself (policy none); what the master hands out is the accept thread's.
    pub fn stop_accepting(&self) {
        if let Some(attachment) = self.attachment() {
            attachment.page.leave();
        }
    }

    /// Its relay worker finishes what it has.
    pub fn drain_relay(&mut self) {
        if let Some(relay) = self.relay_mut() {
            relay.drain();
            // Never given to the accept thread: nobody else would close them.
            relay.queues.clear();
        }
    }

    /// Whether one that is sent nothing more has nothing left to do.
    pub fn is_drained(&mut self, now: Instant) -> bool {
        match &mut self.kind {
            Kind::Direct { server, attachment } => attachment.is_drained(server, now),
            Kind::Relay { relay, .. } => relay.is_none(),
            Kind::NoPort { .. } => true,
        }
    }

    pub fn was_asked_to_stop(&self) -> bool {
        self.server().is_some_and(|server| server.stop_request != StopRequest::NotSent)
    }

    /// A server that was asked to stop connects to itself, to end the wait of its own accept(2). That connection is refused
    /// by now, or another worker gets it.
    pub fn wake_acceptor(&self, listener: ListenerId, address: SocketAddr) {
        let queue = self.attachment().and_then(|attachment| attachment.queues.get(&listener));
        // Where so much is pending nobody waits, and it could go on for ever.
        if let Some(queue) = queue.filter(|queue| self.was_asked_to_stop() && queue.pending() < MAX_WAKES) {
            // Fails where the address is another machine's. The server stops without it, too, only later.
            let _ = queue.send_wake(address);
        }
    }

    /// Asks its server to stop: the process that attached, which is not always the one that we started (a shell, npm).
    /// Where several did, what we started is their manager.
    pub fn request_stop(&mut self, signal: Signal) {
        let attached = self.attachment().and_then(Attachment::only_process);
        if let Some(attachment) = self.attachment() {
            attachment.page.stops();
        }
        if let Some(server) = self.server_mut() {
            server.request_stop(attached, signal);
        }
    }

    /// `--drain-idle move`, for a worker that gets no more connections. A relay worker gives back those that lie between two
    /// requests; those that a server closes between two requests come back to the master. Servers do that once they are asked to stop, so one that catches the signal is asked at once. (Node's cluster
    /// workers are told to disconnect.)
    pub fn give_back_idle(&mut self, signal: Signal) {
        self.relay_mut().into_iter().for_each(|relay| relay.give_back(true));
        let Some((server, attachment)) = self.direct_mut() else { return };
        if !attachment.moves {
            attachment.moves = true;
            attachment.page.set_moves(true);
        }
        let pending = attachment.queues.values().any(|queue| queue.pending() > 0);
        if pending || server.stop_request != StopRequest::NotSent {
            return;
        }
        let told = attachment.only_process().unwrap_or(server.pid);
        let disconnects = server.ipc.as_ref().is_some_and(Ipc::can_disconnect);
        // After a message the signal follows when it has drained.
        if !disconnects && !server.ipc.as_mut().is_some_and(Ipc::stop) && process::catches(told, signal) {
            self.request_stop(signal);
        }
    }

    /// What its server closes is closed: the service ends.
    pub fn keep_idle(&mut self) {
        self.relay_mut().into_iter().for_each(|relay| relay.give_back(false));
        if let Some(attachment) = self.attachment_mut().filter(|attachment| attachment.moves) {
            attachment.page.set_moves(false);
        }
    }

    /// Workers that get no more connections close their servers, and with them idle keep-alive connections: then they end
    /// when the others do.
    pub fn disconnect(&mut self) {
        let Some((server, attachment)) = self.direct_mut() else { return };
        // What lies in its queue is still to be received; and one without connections gets its signal at once.
        let pending = attachment.queues.values().any(|queue| queue.pending() > 0);
        let open = attachment.page.is_estimate() || attachment.page.open_alive() > 0;
        if let Some(ipc) = server.ipc.as_mut().filter(|_| !pending && open) {
            // A program that listens to it ends in its own way.
            ipc.stop();
            ipc.disconnect();
        }
    }

    pub fn kill(&self) {
        self.pids().for_each(process::kill_tree);
    }

    pub fn kill_relay(&self) {
        if let Some(relay) = self.relay() {
            process::kill_tree(relay.pid);
        }
    }

    /// Takes out the part whose process this was; what is left of the worker, and that part.
    pub fn without(self, pid: u32) -> (Option<Self>, Option<Ended>) {
        let Self { id, kind, queues } = self;
        let rest = |kind| Some(Self { id, kind, queues });
        match kind {
            Kind::Direct { server, attachment } if server.pid == pid => {
                (None, Some(Ended::Server(server, Some(attachment))))
            }
            Kind::NoPort { server } if server.pid == pid => (None, Some(Ended::Server(server, None))),
            Kind::Relay { relay: Some(relay), server } if relay.pid == pid => {
                let rest = server.and_then(|server| rest(Kind::Relay { relay: None, server: Some(server) }));
                (rest, Some(Ended::Relay(relay)))
            }
            Kind::Relay { relay, server: Some(server) } if server.pid == pid => {
                let rest = relay.and_then(|relay| rest(Kind::Relay { relay: Some(relay), server: None }));
                (rest, Some(Ended::Server(server, None)))
            }
            kind => (rest(kind), None),
        }
    }
}
