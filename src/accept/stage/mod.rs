//! The stage before the choice: connections of which something has to be known first, the client in a PROXY header. Their
//! first bytes are peeked at; what is the server's stays in the socket.
//!
//! Mostly those bytes are there at the accept, and nothing waits here. The others are in the accept thread's epoll until
//! they have sent enough, or their time is over. Nobody comes here twice: who was handed to a worker and is taken back has
//! passed.

mod deadlines;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slab::Slab;

use super::Context;
use super::dispatcher::ServiceDispatcher;
use super::orders::{ListenerId, Report, ServiceId};
use super::waiting::reset;
use crate::cidr::Networks;
use crate::handoff::Client;
use crate::proxy_protocol::{self, Invalid, Pair};
use crate::sys::sock::{self, PeerAddress};
use deadlines::Deadlines;

/// Time for a PROXY header to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// What was refused is reported this often at most.
const REPORTS: Duration = Duration::from_secs(1);
/// Tokens of connections have this bit and not the one below it, their service's id, and their place in the bits below.
const STAGED: usize = 1 << 63;
const PLACE_BITS: u32 = 32;

/// What has to be known of connections before a worker gets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRules {
    /// Sources whose connections begin with a PROXY header.
    pub proxy_from: Networks,
    /// The most connections here; for one more, the one whose time is over first is reset.
    pub max: usize,
}

/// Why a connection was refused before a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A trusted source did not begin with a valid PROXY header.
    ProxyInvalid,
    /// Its header did not come in time.
    ProxyTimeout,
    /// It left before it had sent all that was to be known.
    ClientLeft,
    /// More connections waited here than may.
    StageFull,
}

impl Refusal {
    pub const ALL: [Self; 4] = [Self::ProxyInvalid, Self::ProxyTimeout, Self::ClientLeft, Self::StageFull];

    /// The reason in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProxyInvalid => "proxy-invalid",
            Self::ProxyTimeout => "proxy-timeout",
            Self::ClientLeft => "client-left",
            Self::StageFull => "stage-full",
        }
    }
}

/// Counters of the stage. The accept thread writes them, the control thread reads them.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Connections that wait here (a gauge).
    pub waiting: AtomicU64,
    /// Valid PROXY headers.
    pub headers: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

impl StageStats {
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }
}

/// A connection that was accepted, on its way to a worker.
#[derive(Debug)]
pub(super) struct Arrival {
    pub listener: ListenerId,
    pub socket: OwnedFd,
    pub client: Client,
}

/// A connection here.
#[derive(Debug)]
struct Staged {
    arrival: Arrival,
    deadline: Instant,
}

/// What a look at a connection's first bytes shows.
enum Look {
    Waits,
    /// A header of so many bytes.
    Header(usize, Option<Pair>),
    Refused(Refusal),
}

/// The connections of a service that wait here.
#[derive(Debug, Default)]
pub(super) struct Stage {
    waiting: Slab<Staged>,
    deadlines: Deadlines,
    /// Those that have passed since the last turn.
    passed: Vec<Arrival>,
    /// Where first bytes are copied to.
    buffer: Vec<u8>,
    /// Refused and not reported, by reason, and the time of the last report.
    unreported: [usize; Refusal::ALL.len()],
    reported: Option<Instant>,
}

/// The service and the place of a connection's token; `None` for the other tokens.
pub(super) fn connection(Token(token): Token) -> Option<(ServiceId, usize)> {
    let staged = token >> 62 == STAGED >> 62;
    staged.then_some(((token & !STAGED) >> PLACE_BITS, token & ((1 << PLACE_BITS) - 1)))
}

fn token(service: ServiceId, place: usize) -> Token {
    Token(STAGED | service << PLACE_BITS | place)
}

impl Stage {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.passed.is_empty()
    }

    /// Whether there is something to do: some have passed, or the time of some is over.
    pub fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now) || !self.passed.is_empty()
    }

    /// When the first one's time is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first()
    }

    /// Takes a header, which was seen to be there, off the socket.
    fn take(&mut self, socket: &OwnedFd, len: usize) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            match sock::recv(socket.as_fd(), &mut self.buffer[..left]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => left -= n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Urgent data in between, perhaps.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes out a connection that waits.
    fn remove(&mut self, place: usize, cx: &Context) -> Option<Arrival> {
        let staged = self.waiting.try_remove(place)?;
        self.deadlines.remove(staged.deadline, place);
        // The registration belongs to the open file, which goes to a worker.
        cx.unwatch(&staged.arrival.socket);
        Some(staged.arrival)
    }
}

/// Looks for a header.
fn look(socket: &OwnedFd, buffer: &mut Vec<u8>) -> Look {
    buffer.resize(proxy_protocol::MAX_BYTES, 0);
    match sock::peek(socket.as_fd(), buffer) {
        Ok(0) => Look::Refused(Refusal::ClientLeft),
        Ok(n) => match proxy_protocol::parse(&buffer[..n]) {
            Ok(Some(header)) => Look::Header(header.len, header.pair),
            Ok(None) => Look::Waits,
            Err(Invalid::NoHeader | Invalid::Malformed | Invalid::TooLong | Invalid::Checksum) => {
                Look::Refused(Refusal::ProxyInvalid)
            }
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Look::Waits,
        Err(_) => Look::Refused(Refusal::ClientLeft),
    }
}

impl ServiceDispatcher {
    /// A connection was accepted. Returns it if there is nothing to wait for.
    #[inline]
    pub(super) fn pass_stage(&mut self, arrival: Arrival, now: Instant, cx: &Context) -> Option<Arrival> {
        match &self.rules.stage {
            None => Some(arrival),
            Some(rules) => self.enter_stage(&rules.clone(), arrival, now, cx),
        }
    }

    fn enter_stage(
        &mut self,
        rules: &Arc<StageRules>,
        mut arrival: Arrival,
        now: Instant,
        cx: &Context,
    ) -> Option<Arrival> {
        if !arrival.client.address.ip().is_some_and(|ip| rules.proxy_from.contain(ip)) {
            return Some(arrival);
        }
        match look(&arrival.socket, &mut self.stage.buffer) {
            Look::Header(len, pair) => match self.header(&mut arrival, len, pair) {
                Ok(()) => Some(arrival),
                Err(refusal) => self.refuse_one(arrival, refusal),
            },
            Look::Refused(refusal) => self.refuse_one(arrival, refusal),
            Look::Waits => {
                if self.stage.len() >= rules.max
                    && let Some(place) = self.stage.deadlines.place()
                    && let Some(oldest) = self.stage.remove(place, cx)
                {
                    self.refuse_one(oldest, Refusal::StageFull);
                }
                self.stay(arrival, now + HEADER_TIMEOUT, cx)
            }
        }
    }

    /// Has a connection wait here.
    fn stay(&mut self, arrival: Arrival, deadline: Instant, cx: &Context) -> Option<Arrival> {
        let entry = self.stage.waiting.vacant_entry();
        let place = entry.key();
        let fd = arrival.socket.as_raw_fd();
        let watched = cx.poll.registry().register(&mut SourceFd(&fd), token(self.id, place), Interest::READABLE);
        if watched.is_err() {
            // Out of memory, or of epoll's max_user_watches.
            return self.refuse_one(arrival, Refusal::StageFull);
        }
        entry.insert(Staged { arrival, deadline });
        self.stage.deadlines.insert(deadline, place);
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
        None
    }

    /// Takes a header off and notes what it says.
    fn header(&mut self, arrival: &mut Arrival, len: usize, pair: Option<Pair>) -> Result<(), Refusal> {
        self.stage.take(&arrival.socket, len).map_err(|_| Refusal::ProxyInvalid)?;
        self.stats.stage.headers.fetch_add(1, Relaxed);
        if let Some(Pair { client, destination }) = pair {
            let destination = Some(Box::new(PeerAddress::from(destination)));
            arrival.client = Client { address: client.into(), destination };
        }
        Ok(())
    }

    /// Resets a connection; `None`.
    fn refuse_one(&mut self, arrival: Arrival, reason: Refusal) -> Option<Arrival> {
        reset(arrival.socket);
        self.stats.stage.refused[reason as usize].fetch_add(1, Relaxed);
        self.stage.unreported[reason as usize] += 1;
        None
    }

    /// An event for a connection here. `closed`: its client has ended its side, or is gone.
    pub(super) fn staged_event(&mut self, place: usize, closed: bool, cx: &Context) {
        let Stage { waiting, buffer, .. } = &mut self.stage;
        // An event of the same turn may be for an earlier connection at this place: it costs a look.
        let Some(staged) = waiting.get(place) else { return };
        let look = match look(&staged.arrival.socket, buffer) {
            Look::Waits if closed => Look::Refused(Refusal::ProxyInvalid),
            look => look,
        };
        if matches!(look, Look::Waits) {
            return;
        }
        let Some(mut arrival) = self.stage.remove(place, cx) else { return };
        match look {
            Look::Header(len, pair) => match self.header(&mut arrival, len, pair) {
                Ok(()) => self.stage.passed.push(arrival),
                Err(refusal) => drop(self.refuse_one(arrival, refusal)),
            },
            Look::Refused(refusal) => drop(self.refuse_one(arrival, refusal)),
            Look::Waits => {}
        }
    }

    /// Gives those that have passed to workers, and resets those whose time is over.
    pub(super) fn leave_stage(&mut self, now: Instant, cx: &Context) {
        if self.rules.stage.is_none() && self.stage.is_empty() {
            return;
        }
        let mut full = Vec::new();
        for arrival in std::mem::take(&mut self.stage.passed) {
            if self.listener(arrival.listener).is_none() {
                reset(arrival.socket);
                continue;
            }
            let served = self.workers.is_served(arrival.listener);
            self.admit(arrival, served, now, &mut full, cx);
        }
        self.give_up(full, super::waits::ShedReason::QueueFull, cx);
        while let Some(place) = self.stage.deadlines.due(now) {
            let Some(arrival) = self.stage.remove(place, cx) else { break };
            self.refuse_one(arrival, Refusal::ProxyTimeout);
        }
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
    }

    /// Resets all that wait here, or those of one listener.
    pub(super) fn clear_stage(&mut self, listener: Option<ListenerId>, cx: &Context) {
        let gone = |arrival: &Arrival| listener.is_none_or(|listener| arrival.listener == listener);
        let waiting = self.stage.waiting.iter().filter(|(_, staged)| gone(&staged.arrival));
        let places: Vec<_> = waiting.map(|(place, _)| place).collect();
        let waiting: Vec<_> = places.into_iter().filter_map(|place| self.stage.remove(place, cx)).collect();
        let (passed, stay) = std::mem::take(&mut self.stage.passed).into_iter().partition(gone);
        self.stage.passed = stay;
        let passed: Vec<Arrival> = passed;
        waiting.into_iter().chain(passed).for_each(|arrival| reset(arrival.socket));
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
    }

    /// Reports what was refused; clients that come and go as they like write at most one line a second.
    pub(super) fn report_refused(&mut self, now: Instant, cx: &Context) {
        let all = self.stage.unreported.iter().sum::<usize>();
        if all == 0 || self.stage.reported.is_some_and(|last| now.duration_since(last) < REPORTS) {
            return;
        }
        self.stage.reported = Some(now);
        let counts = std::mem::take(&mut self.stage.unreported);
        for reason in Refusal::ALL {
            let count = counts[reason as usize];
            if count > 0 && reason != Refusal::ClientLeft {
                cx.report(Report::Refused { service: self.id, count, reason });
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_the_service_and_the_place() {
        for (service, place) in [(0, 0), (3, 1), (70_000, (1 << 32) - 1)] {
            assert_eq!(connection(token(service, place)), Some((service, place)));
            assert_eq!(super::super::leavers::client(token(service, place)), None);
        }
        for other in [super::super::WAKER, super::super::deaths::DEATH, Token(0), Token(1 << 62)] {
            assert_eq!(connection(other), None);
        }
    }
}
