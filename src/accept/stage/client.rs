//! The client's address: whether it may connect, and whether its source has as much as it may already.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::refusals::Refusal;
use super::sources::{Reached, Sources};
use super::steps::{Desk, Look};
use super::{Arrival, StageRules};
use crate::sys::sock::PeerAddress;
use crate::sys::sock_open::{Ends, Kernel};

/// What is known of the clients of a service.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Where one of the limits is set.
    sources: Option<Sources>,
    /// Opened when it is first needed.
    kernel: Option<Kernel>,
    /// The kernel did not say what is open: connections at a time are not limited.
    pub unknown: bool,
}

impl Clients {
    /// Forgets what new rules do not need.
    pub fn follow(&mut self, rules: Option<&StageRules>) {
        if !rules.is_some_and(|rules| rules.sources.any()) {
            *self = Self { unknown: self.unknown, ..Self::default() };
        }
    }
}

/// Judges a connection by its client's address. One without any, of a Unix socket, passes.
pub(super) fn look(desk: &mut Desk, rules: &StageRules, arrival: &Arrival, now: Instant) -> Look {
    let Some(ip) = arrival.client.address.ip() else { return Look::Passes };
    if rules.allowed.as_ref().is_some_and(|allowed| !allowed.allows(ip)) {
        return Look::Refused(Refusal::Denied);
    }
    if !rules.sources.any() {
        return Look::Passes;
    }
    let Clients { sources, kernel, unknown } = &mut desk.clients;
    // Those of the socket itself, whatever a PROXY header names.
    let ends = rules.sources.conns.and_then(|_| {
        let own = PeerAddress::own(arrival.socket.as_fd());
        Ends::new(&own, &arrival.peer)
    });
    let mut open = |connections: &[Ends]| {
        if kernel.is_none() {
            *kernel = Some(Kernel::open()?);
        }
        kernel.as_mut().map_or(Err(io::ErrorKind::NotFound.into()), |kernel| kernel.are_open(connections))
    };
    let sources = sources.get_or_insert_with(|| Sources::new(now));
    match sources.comes(ip, ends, rules.sources, now, &mut open) {
        Ok(None) => Look::Passes,
        Ok(Some(Reached::Conns)) => Look::Refused(Refusal::SourceConns),
        Ok(Some(Reached::Rate)) => Look::Refused(Refusal::SourceRate),
        Err(_) => {
            // Of its answers, some may still come.
            *kernel = None;
            *unknown = true;
            Look::Passes
        }
    }
}
