//! The client's address: whether it may connect, and whether its source has as much as it may already.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::refusals::Refusal;
use super::sources::{Reached, Sources};
use super::steps::{Desk, Look};
use super::{Arrival, StageRules};
use crate::sys::sock_open::{self, Ends, Kernel};

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

/// Judges a connection by its client's address. One without any, of a Unix socket, passes, and so does a trusted source's while its
/// headers are not read: it would be judged by the balancer's address.
pub(super) fn look(desk: &mut Desk, rules: &StageRules, arrival: &Arrival, now: Instant) -> Look {
    let Some(ip) = arrival.client.address.ip() else { return Look::Passes };
    if !desk.translates && rules.proxy_from.contain(arrival.peer.ip()) {
        return Look::Passes;
    }
    if rules.allowed.as_ref().is_some_and(|allowed| !allowed.allows(ip)) {
        return Look::Refused(Refusal::Denied);
    }
    if !rules.sources.any() {
        return Look::Passes;
    }
    let Clients { sources, kernel, unknown } = &mut desk.clients;
    // Those of the socket itself, whatever a PROXY header names.
    let ends = rules.sources.conns.and_then(|_| Ends::of(arrival.socket.as_fd(), &arrival.peer));
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
        // It asks nothing any more, and says nothing of the others.
        Err(error) if error.kind() == io::ErrorKind::NotFound && sock_open::is_gone(arrival.socket.as_fd()) => {
            Look::Refused(Refusal::ClientLeft)
        }
        Err(_) => {
            // Of its answers, some may still come.
            *kernel = None;
            *unknown = true;
            Look::Passes
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::accept::stage::sources::SourceLimits;
    use crate::cidr::AllowDeny;
    use crate::proxy_protocol::balancers::Balancers;
    use crate::sys::sock::PeerAddress;

    #[test]
    fn a_balancer_whose_headers_are_not_read_yet_is_not_judged_by_its_own_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0.into();
        let peer = PeerAddress::of(std::os::fd::AsFd::as_fd(&socket));
        let mut arrival = Arrival { listener: 0, socket, client: peer.into(), peer, looked: 0 };
        let rules = |from: &str, allow: &str, rate| StageRules {
            proxy_from: Balancers(vec![from.parse().unwrap()]),
            allowed: Some(Arc::new(AllowDeny::new(&[allow.parse().unwrap()], &[]).unwrap())),
            sources: SourceLimits { conns: None, rate },
            first_byte: None,
            key: None,
            session_wait: Duration::ZERO,
            max: 1,
        };
        let (denied, open) = (rules("127.0.0.1", "192.0.2.0/24", None), rules("127.0.0.1", "0.0.0.0/0", Some(1)));
        let mut desk = Desk::default();
        let now = Instant::now();
        for _ in 0..9 {
            assert_eq!(look(&mut desk, &denied, &arrival, now), Look::Passes);
            assert_eq!(look(&mut desk, &open, &arrival, now), Look::Passes);
        }
        // Other clients are judged meanwhile.
        let other = rules("192.0.2.1", "192.0.2.0/24", None);
        assert_eq!(look(&mut desk, &other, &arrival, now), Look::Refused(Refusal::Denied));
        desk.translates = true;
        assert_eq!(look(&mut desk, &denied, &arrival, now), Look::Refused(Refusal::Denied));
        arrival.client = crate::handoff::Client::default();
        assert_eq!(look(&mut desk, &denied, &arrival, now), Look::Passes);
    }
}
