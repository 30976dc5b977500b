//! Direct delivery at the supervisor: servers with the preload library, what they ask, and when they are online.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Poll, Token};
use socket2::SockRef;
use tracing::{info, warn};

use super::service::{ID, Service, SlotProcesses, Tools};
use super::slot::{Event, Phase};
use super::stop::Step;
use super::worker::Complained;
use crate::abi::attach::VARIABLE;
use crate::accept::orders::{ListenerId, Order, WorkerId};
use crate::config::addr::ListenAddr;
use crate::direct::Preload;
use crate::direct::attach::{Answer, Asked, AttachServer, Secret, What, secret};
use crate::exit::Exit;
use crate::handoff::page::CountersPage;
use crate::handoff::{Carries, QueueTx};
use crate::launch::command::CommandLine;
use crate::listener::{Listener, Origin};
use crate::sys::sock;

/// How often it is looked whether a draining server's connections are all gone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// What all direct services share.
#[derive(Debug)]
pub struct Attachment {
    /// Where libraries ask.
    pub server: AttachServer,
    preload: Preload,
}

impl Attachment {
    /// Opens the attach socket and lays out the library.
    ///
    /// # Errors
    /// As socket(2) and memfd_create(2).
    pub fn open(poll: &Poll, token: Token) -> io::Result<Self> {
        Ok(Self { server: AttachServer::open(poll, token)?, preload: Preload::new()? })
    }
}

/// What connects one server (and the processes that it forks) to the master.
#[derive(Debug)]
pub struct DirectWorker {
    /// Which generation of which slot.
    pub id: WorkerId,
    secret: Secret,
    /// Its counters.
    pub page: Arc<CountersPage>,
    page_fd: OwnedFd,
    /// Its queues. Kept here to its end, so that its stand-ins never see an end of file.
    pub queues: BTreeMap<ListenerId, Arc<QueueTx>>,
    listening: BTreeSet<ListenerId>,
    /// The process that attached.
    pub pid: Option<u32>,
}

impl Service {
    /// Starts a server with the library in front of its libc.
    pub(super) fn start_direct(
        &mut self,
        command: &CommandLine,
        at: usize,
        tools: &Tools,
        now: Instant,
    ) -> Result<(), Exit> {
        let refused = |error: io::Error| Exit::os("cannot start a worker", &error);
        let Some(attachment) = &tools.attach else { return Ok(()) };
        let secret = secret().map_err(refused)?;
        let (page, page_fd) = CountersPage::create().map_err(refused)?;
        let mut environment =
            vec![("LD_PRELOAD", attachment.preload.value()), (VARIABLE, attachment.server.variable(&secret))];
        // A port that a server chose is not for us to tell its successor.
        let ours = self.listeners.iter().find(|listener| listener.origin == Origin::Flag);
        if let Some(port) = ours.and_then(|listener| listener.port) {
            environment.push(("PORT", port.to_string()));
        }
        if let Some(ListenAddr::Tcp(address)) = self.config.listen.first() {
            environment.push(("HOST", address.ip().to_string()));
        }
        let server = self.start_server_with(command, Some(at), None, environment, tools, now)?;
        let slot = &mut self.slots[at];
        slot.generation += 1;
        let id = WorkerId { service: ID, slot: at as u32, generation: slot.generation };
        slot.server = Some(server);
        slot.direct = Some(DirectWorker {
            id,
            secret,
            page: Arc::new(page),
            page_fd,
            queues: BTreeMap::new(),
            listening: BTreeSet::new(),
            pid: None,
        });
        Ok(())
    }

    /// Answers a library; `None` refuses it.
    pub fn asked(&mut self, asked: Asked, tools: &Tools, now: Instant) -> Option<Answer> {
        let of = |slot: &SlotProcesses| slot.direct.as_ref().is_some_and(|direct| direct.secret == asked.secret);
        let at = self.slots.iter().position(of);
        let own = nix::unistd::geteuid().as_raw();
        let Some(at) = at.filter(|_| asked.uid == own) else {
            let (pid, uid) = (asked.pid, asked.uid);
            warn!(service = %self.config.name, pid, uid, "refused to attach: it is none of our workers");
            return None;
        };
        Some(match asked.what {
            What::Bind(socket, address) => self.bind(at, socket, address, asked.pid),
            What::Listen(listener) => self.server_listens(at, listener, tools, now),
            What::Unlisten(listener) => {
                self.server_unlistens(at, listener, tools);
                Answer::Errno(0)
            }
        })
    }

    fn bind(&mut self, at: usize, socket: OwnedFd, address: SocketAddr, pid: u32) -> Answer {
        let listener = match self.listener_for(&socket, address) {
            Ok(Some(listener)) => listener,
            Ok(None) => {
                let port = address.port();
                let wanted = self.listeners.iter().find_map(|listener| listener.port).unwrap_or(port);
                warn!(
                    service = %self.config.name, slot = at,
                    "worker binds :{port}, which no -l serves; let it listen on :{wanted} (its PORT), or use -l {port}"
                );
                return Answer::Pass;
            }
            Err(error) => return Answer::Errno(error.raw_os_error().unwrap_or(libc::EADDRINUSE)),
        };
        let shared = self.share(at, listener, pid);
        shared.unwrap_or_else(|error| Answer::Errno(error.raw_os_error().unwrap_or(libc::ENOBUFS)))
    }

    /// Which listener a server's bind means. Without `--listen` its socket becomes a new one.
    fn listener_for(&mut self, socket: &OwnedFd, address: SocketAddr) -> io::Result<Option<ListenerId>> {
        if !self.config.listen.is_empty() {
            return Ok(self.listeners.iter().position(|listener| listener.port == Some(address.port())));
        }
        let known = |listener: &Listener| sock::local_addr(listener.socket.as_fd()) == Some(address);
        if let Some(listener) = self.listeners.iter().position(known) {
            return Ok(Some(listener));
        }
        SockRef::from(socket).bind(&address.into())?;
        self.listeners.push(Listener::of_server(socket.try_clone()?)?);
        Ok(Some(self.listeners.len() - 1))
    }

    fn share(&mut self, at: usize, listener: ListenerId, pid: u32) -> io::Result<Answer> {
        let lost = || io::Error::from_raw_os_error(libc::EINVAL);
        let address = self.listeners.get(listener).and_then(|listener| sock::local_addr(listener.socket.as_fd()));
        let direct = self.slots[at].direct.as_mut().ok_or_else(lost)?;
        let queue = match direct.queues.get(&listener) {
            Some(queue) => queue.clone(),
            None => {
                let queue = Arc::new(QueueTx::create(Carries::Direct)?.0);
                direct.queues.insert(listener, queue.clone());
                queue
            }
        };
        direct.pid.get_or_insert(pid);
        let page = direct.page_fd.try_clone()?;
        Ok(Answer::Shared(listener, address.ok_or_else(lost)?, queue.another_end()?, page))
    }

    fn server_listens(&mut self, at: usize, id: ListenerId, tools: &Tools, now: Instant) -> Answer {
        let Some(listener) = self.listeners.get(id) else { return Answer::Errno(libc::EINVAL) };
        if !self.heard.contains(&id) {
            if let Err(error) = listener.listen() {
                return Answer::Errno(error.raw_os_error().unwrap_or(libc::EADDRINUSE));
            }
            self.heard.insert(id);
            tools.orders.send(Order::Listener { service: ID, id, socket: listener.socket.clone() });
            info!(service = %self.config.name, address = %listener.address, policy = %self.config.policy, "listening");
        }
        let needed = if self.config.listen.is_empty() { 0 } else { self.listeners.len() };
        let backoff = self.backoff();
        let slot = &mut self.slots[at];
        let Some(direct) = &mut slot.direct else { return Answer::Errno(libc::EINVAL) };
        let Some(queue) = direct.queues.get(&id).cloned() else { return Answer::Errno(libc::EINVAL) };
        let again = !direct.listening.insert(id);
        let worker = direct.id;
        match slot.life.phase {
            Phase::Online { .. } if !again => tools.orders.send(Order::Listens { worker, listener: id, queue }),
            Phase::Launching { .. } if direct.listening.len() >= needed => {
                let listened = direct.queues.iter().filter(|(id, _)| direct.listening.contains(id));
                let queues: Vec<_> = listened.map(|(&id, queue)| (id, queue.clone())).collect();
                slot.queues = queues.iter().map(|(_, queue)| Arc::downgrade(queue)).collect();
                let (page, stats, pid) = (direct.page.clone(), slot.stats.clone(), direct.pid);
                tools.orders.send(Order::Online { worker, queues, page, stats });
                slot.life.apply(Event::Ready, now, &backoff);
                slot.reason = None;
                info!(service = %self.config.name, slot = at, pid, "worker online");
            }
            _ => {}
        }
        Answer::Errno(0)
    }

    fn server_unlistens(&mut self, at: usize, listener: ListenerId, tools: &Tools) {
        let Some(direct) = &mut self.slots[at].direct else { return };
        direct.queues.remove(&listener);
        if direct.listening.remove(&listener) {
            tools.orders.send(Order::Unlistens { worker: direct.id, listener });
        }
    }

    /// Names, once, a server that does not listen for long.
    pub(super) fn complain_of_silence(&mut self, at: usize, now: Instant) {
        let timeout = self.config.limits.listen_timeout;
        let slot = &mut self.slots[at];
        let (Some(_), Some(server), Phase::Launching { since }) = (&slot.direct, &mut slot.server, slot.life.phase)
        else {
            return;
        };
        if server.complained == Complained::NotYet && now.duration_since(since) >= timeout {
            server.complained = Complained::Once;
            let seconds = timeout.as_secs_f32();
            warn!(service = %self.config.name, slot = at, pid = server.pid, "server does not listen after {seconds} s; still waiting");
        }
    }

    /// When a direct service has something to look at.
    pub(super) fn direct_deadline(&self) -> Option<Instant> {
        let draining = self.stop.as_ref().is_some_and(|stop| stop.step == Step::Drain);
        let looks = self.slots.iter().filter_map(|slot| {
            slot.direct.as_ref()?;
            let silent = match (slot.life.phase, &slot.server) {
                (Phase::Launching { since }, Some(server)) if server.complained == Complained::NotYet => {
                    Some(since + self.config.limits.listen_timeout)
                }
                _ => None,
            };
            if draining { Some(Instant::now() + DRAIN_LOOK) } else { silent }
        });
        looks.min()
    }
}

impl SlotProcesses {
    /// Whether a stopping server may be told: nothing is open any more. `handed`: nothing more will come.
    pub(super) fn drained(&self, handed: bool) -> bool {
        let Some(direct) = &self.direct else { return true };
        let pending: usize = direct.queues.values().map(|queue| queue.pending()).sum();
        direct.listening.is_empty() || (handed && pending == 0 && direct.page.open_alive() == 0)
    }
}
