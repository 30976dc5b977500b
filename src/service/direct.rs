//! Servers with the preload library: how they are started and looked at.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::lifecycle::Phase;
use super::retiring::DRAIN_LOOK;
use super::shutdown::Step;
use super::{Service, SlotProcesses, Tools};
use crate::abi::attach::VARIABLE;
use crate::accept::orders::{ListenerId, WorkerId};
use crate::config::error::Kind;
use crate::config::{Backend, Chosen, ServiceConfig, delivery};
use crate::direct::Preload;
use crate::direct::attach::secret;
use crate::exit::Exit;
use crate::handoff::page::CountersPage;
use crate::listener::Origin;
use crate::program::command::CommandLine;
use crate::program::elf;
use crate::sys::sock;
use crate::worker::direct::DirectWorker;

/// Finds a place for the library of a service whose command seems fit for it. Where there is none and the choice is ours,
/// the service becomes one by relay.
///
/// # Errors
/// When direct delivery was asked for and cannot be, or when relaying cannot be either.
pub fn find_preload(config: &mut ServiceConfig, inherited: bool) -> Result<Option<Preload>, Exit> {
    let Backend::Direct(command) = &config.backend else { return Ok(None) };
    let preload = elf::examine(&command.program()?).and_then(|program| Preload::find(&program, config.user.as_ref()));
    match (preload, config.chosen) {
        (Ok(preload), _) => Ok(Some(preload)),
        (Err(obstacle), Chosen::AsAsked) => Err(Kind::DirectImpossible { obstacle }.of("via").into()),
        (Err(reason), Chosen::ByUs) => {
            delivery::can_relay(&config.listen, inherited || !config.listen.is_empty(), &reason)?;
            config.backend = Backend::Relayed(command.clone());
            config.via_reason = reason;
            Ok(None)
        }
    }
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
        let (Some(attach), Some(preload)) = (&tools.attach, self.preloads.last()) else { return Ok(()) };
        let secret = secret().map_err(refused)?;
        let (page, page_fd) = CountersPage::create().map(|(page, fd)| (Arc::new(page), fd)).map_err(refused)?;
        let environment = vec![("LD_PRELOAD", preload.value()), (VARIABLE, attach.variable(&secret))];
        let server = self.start_server_with(command, Some(at), self.told_address(), environment, tools, now)?;
        let slot = &mut self.slots[at];
        slot.generation += 1;
        let id = WorkerId { service: self.id, slot: at as u32, generation: slot.generation };
        slot.server = Some(server);
        slot.counted.counts(&page);
        slot.direct = Some(DirectWorker::new(id, secret, page, page_fd));
        Ok(())
    }

    /// What servers are told by PORT and HOST: the first `--listen`. A port that a server chose is not for us to tell its
    /// successor.
    fn told_address(&self) -> Option<SocketAddr> {
        let listener = self.listeners.iter().find(|listener| listener.origin == Origin::Flag)?;
        let bound = sock::local_addr(listener.socket.as_fd())?;
        // `::` would be refused by many servers that only know IPv4, and by none is 0.0.0.0.
        let ip = if bound.ip().is_unspecified() { Ipv4Addr::UNSPECIFIED.into() } else { bound.ip() };
        Some(SocketAddr::new(ip, listener.served_port()?))
    }

    /// When a direct service has something to look at.
    pub(super) fn direct_deadline(&self) -> Option<Instant> {
        let stopping = self.stop.is_some();
        let draining = self.stop.as_ref().is_some_and(|stop| stop.step == Step::Drain);
        let looks = self.slots.iter().filter_map(|slot| {
            let direct = slot.direct.as_ref()?;
            let silent = match (slot.life.phase, &slot.server) {
                (Phase::Launching { since }, Some(server)) => {
                    server.complained.due(since, self.config.limits.listen_timeout)
                }
                _ => None,
            };
            let drain = draining.then(|| Instant::now() + DRAIN_LOOK);
            silent.into_iter().chain(drain).chain(direct.abandoned).chain(slot.holders_deadline(stopping)).min()
        });
        looks.min()
    }
}

impl SlotProcesses {
    /// Whether its worker, if it is direct, listens there.
    pub fn listens(&self, listener: ListenerId) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.listening.contains(&listener))
    }

    /// Whether a stopping server may be told: nothing is open any more. `handed`: nothing more will come.
    pub(super) fn drained(&mut self, handed: bool, now: Instant) -> bool {
        let Some(direct) = &mut self.direct else { return true };
        (handed || !direct.receives()) && direct.is_drained(self.server.as_ref(), now)
    }
}
