//! The client's address: whether it may connect, and whether its source has as much as it may already.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::refusals::Refusal;
use super::sources::{Reached, Sources};
use super::steps::{Desk, Look};
use super::{Arrival, StageRules};
use crate::sys::sock_open::{self, BATCH, Ends, Kernel};

/// Time until the kernel is asked again after it did not answer.
const PAUSE: Duration = Duration::from_secs(10);

/// What is known of the clients of a service.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Where one of the limits is set.
    sources: Option<Sources>,
    questions: Questions,
}

/// What the kernel is asked. The control thread has asked it once before: the first question can take a while.
#[derive(Debug, Default)]
struct Questions {
    /// Opened when it is first needed.
    kernel: Option<Kernel>,
    /// It did not answer, and is not asked before this time. Until it answers, connections at a time are not limited.
    again: Option<Instant>,
}

impl Questions {
    /// Which of these are open; the first one should be.
    fn ask(&mut self, connections: &[Ends], now: Instant) -> io::Result<[bool; BATCH]> {
        if self.again.is_some_and(|at| now < at) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(Kernel::open()?),
        };
        let open = kernel.are_open(connections)?;
        if open[0] {
            self.again = None;
        }
        Ok(open)
    }

    /// No answer came, or it cannot be trusted.
    fn failed(&mut self, now: Instant) {
        // Of its answers, some may still come.
        self.kernel = None;
        if self.again.is_none_or(|at| at <= now) {
            self.again = Some(now + PAUSE);
        }
    }
}

impl Clients {
    /// Forgets what new rules do not need.
    pub fn follow(&mut self, rules: Option<&StageRules>) {
        if !rules.is_some_and(|rules| rules.sources.any()) {
            (self.sources, self.questions.kernel) = (None, None);
        }
    }

    /// Whether the kernel does not say what is open.
    pub fn are_unknown(&self) -> bool {
        self.questions.again.is_some()
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
    let Clients { sources, questions } = &mut desk.clients;
    // Those of the socket itself, whatever a PROXY header names.
    let ends = rules.sources.conns.and_then(|_| Ends::of(arrival.socket.as_fd(), &arrival.peer));
    let mut open = |connections: &[Ends]| questions.ask(connections, now);
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
            questions.failed(now);
            Look::Passes
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;
    use crate::accept::stage::sources::SourceLimits;
    use crate::cidr::AllowDeny;
    use crate::proxy_protocol::balancers::Balancers;
    use crate::sys::sock::PeerAddress;

    fn arrives(listener: &TcpListener) -> (TcpStream, Arrival) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = listener.accept().unwrap().0.into();
        let peer = PeerAddress::of(AsFd::as_fd(&socket));
        (client, Arrival { listener: 0, socket, client: peer.into(), peer, looked: 0 })
    }

    fn rules(from: &str, allow: &str, rate: Option<u32>) -> StageRules {
        StageRules {
            proxy_from: Balancers(vec![from.parse().unwrap()]),
            allowed: Some(Arc::new(AllowDeny::new(&[allow.parse().unwrap()], &[]).unwrap())),
            sources: SourceLimits { conns: None, rate },
            first_byte: None,
            key: None,
            session_wait: Duration::ZERO,
            max: 1,
        }
    }

    #[test]
    fn a_kernel_that_does_not_say_what_is_open_is_asked_again_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let rules =
            StageRules { sources: SourceLimits { conns: Some(1), rate: None }, ..rules("10.0.0.1", "0.0.0.0/0", None) };
        let (mut desk, now) = (Desk::default(), Instant::now());
        let (_first_client, first) = arrives(&listener);
        let (_second_client, second) = arrives(&listener);
        assert_eq!(look(&mut desk, &rules, &first, now), Look::Passes);
        assert_eq!(look(&mut desk, &rules, &second, now), Look::Refused(Refusal::SourceConns));
        assert!(!desk.clients.are_unknown());
        // As in another network namespace: the connection is open, and the kernel does not find it.
        let (_third_client, mut third) = arrives(&listener);
        third.peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into();
        let later = |ms| now + Duration::from_millis(ms);
        assert_eq!(look(&mut desk, &rules, &third, later(200)), Look::Passes);
        assert!(desk.clients.are_unknown());
        for ms in [201, 5000, 10_199] {
            assert_eq!(look(&mut desk, &rules, &second, later(ms)), Look::Passes);
            assert!(desk.clients.questions.kernel.is_none(), "it was asked after {ms} ms");
        }
        assert_eq!(look(&mut desk, &rules, &second, later(10_200)), Look::Refused(Refusal::SourceConns));
        assert!(!desk.clients.are_unknown());
    }

    #[test]
    fn a_balancer_whose_headers_are_not_read_yet_is_not_judged_by_its_own_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, mut arrival) = arrives(&listener);
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
