//! The stage before the choice: connections of which something has to be known first, the client in a PROXY header for one. Each
//! passes the steps in `steps.rs`. First bytes are peeked at; what is the server's stays in the socket.
//!
//! Mostly those bytes are there at the accept, and nothing waits here. The others are in the accept thread's epoll until
//! they have sent enough, or their time is over. Nobody comes here twice: who was handed to a worker and is taken back has
//! passed.

mod awaited;
mod client;
pub(super) mod crowd;
mod deadlines;
mod end;
mod first_byte;
mod header;
mod key;
mod passed;
mod record;
pub mod refusals;
pub mod sources;
mod steps;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slab::Slab;

use super::Context;
use super::dispatcher::{RETRY, ServiceDispatcher};
use super::orders::{ListenerId, Report, ServiceId};
use super::waiting::reset;
use crate::affinity::HashOn;
use crate::affinity::head::NoKey;
use crate::cidr::AllowDeny;
use crate::handoff::Client;
use crate::proxy_protocol::balancers::Balancers;
use crate::sys::sock::{self, PeerAddress};
use awaited::Awaited;
use deadlines::{Deadlines, Evictions};
pub(super) use end::End;
use passed::Passed;
pub use record::StagedRecord;
use refusals::{Refusal, Unreported};
use sources::SourceLimits;
use steps::{Desk, Late, Outcome, Seen, Step};

/// Connections whose time is over, per turn; the others in the next one, which begins at once. Thousands may have come together, and
/// new connections are accepted in between.
const MAX_LATE: usize = 16;
/// Tokens of connections have this bit and not the one below it, their service's id, and their place in the bits below.
const STAGED: usize = 1 << 63;
const PLACE_BITS: u32 = 32;

/// What has to be known of connections before a worker gets them. A connection that waits keeps the rules under which it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageRules {
    /// Sources whose connections begin with a PROXY header.
    pub proxy_from: Balancers,
    /// Which addresses may connect; `None`: all.
    pub allowed: Option<Arc<AllowDeny>>,
    pub sources: SourceLimits,
    /// How long a client may send nothing.
    pub first_byte: Option<Duration>,
    /// What the first request is hashed by, where it is to be read.
    pub key: Option<HashOn>,
    /// Time for a worker to report a session.
    pub session_wait: Duration,
    /// The most connections that wait here, over all services, and the most that have passed; for one more that waits, one that has sent nothing is reset, or one goes without the key that is
    /// looked for, or the oldest one is reset or goes without its session.
    pub max: usize,
}

/// A connection that was accepted, on its way to a worker.
#[derive(Debug)]
pub(super) struct Arrival {
    pub listener: ListenerId,
    pub socket: OwnedFd,
    pub client: Client,
    /// The address by which it came, as the kernel knows it.
    pub peer: PeerAddress,
    /// Bytes in which its key was looked for, over all looks.
    pub looked: usize,
}

/// A connection here.
#[derive(Debug)]
struct Staged {
    arrival: Arrival,
    rules: Arc<StageRules>,
    step: Step,
    since: Instant,
    deadline: Instant,
}

/// The connections of a service that wait here.
#[derive(Debug, Default)]
pub(super) struct Stage {
    waiting: Slab<Staged>,
    deadlines: Deadlines,
    evictions: Evictions,
    awaited: Awaited,
    passed: Passed,
    desk: Desk,
    unreported: Unreported,
    /// That the kernel does not say what is open was reported.
    unknown: bool,
}

/// The service and the place of a connection's token; `None` for the other tokens.
pub(super) fn connection(Token(token): Token) -> Option<(ServiceId, usize)> {
    let staged = token >> 62 == STAGED >> 62;
    staged.then_some(((token & !STAGED) >> PLACE_BITS, token & ((1 << PLACE_BITS) - 1)))
}

fn token(service: ServiceId, place: usize) -> Token {
    Token(STAGED | service << PLACE_BITS | place)
}

/// Whether the close of a connection cannot block: no descriptors travel by TCP. So floods need no other thread.
fn closes_at_once(arrival: &Arrival) -> bool {
    // Where nothing needs addresses, those of TCP are not asked for, either.
    arrival.peer.len > 0 || sock::is_tcp(arrival.socket.as_fd())
}

impl Stage {
    pub fn len(&self) -> usize {
        self.waiting.len() + self.passed.len()
    }

    /// How many wait for a session.
    #[cfg(test)]
    pub fn awaited(&self) -> usize {
        self.awaited.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some have passed, and found no worker and no place in the line.
    pub fn is_stuck(&self) -> bool {
        self.passed.len() > 0 && !self.passed.any_new
    }

    /// Whether there is something to do: some have passed, the time of some is over, or something is to be reported.
    pub fn is_due(&self, now: Instant) -> bool {
        self.passed.len() > 0 || self.deadline(now).is_some_and(|at| at <= now)
    }

    /// When the first one's time is over, or the next report is due; now where some have passed since the last turn.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let passed = self.passed.any_new.then_some(now);
        self.deadlines.first().into_iter().chain(self.unreported.due(now)).chain(passed).min()
    }

    /// The service has new rules for connections that come from now on.
    pub fn follow(&mut self, rules: Option<&StageRules>) {
        self.desk.clients.follow(rules);
    }

    /// All that has to be known of a connection is known.
    fn pass(&mut self, arrival: Arrival, cx: &Context) {
        cx.passed.set(cx.passed.get() + 1);
        self.passed.push(arrival);
    }

    /// Takes out a connection that has passed.
    fn take_passed(&mut self, listener: ListenerId, cx: &Context) -> Option<Arrival> {
        let arrival = self.passed.pop(listener)?;
        cx.passed.set(cx.passed.get().saturating_sub(1));
        Some(arrival)
    }

    /// Takes out a connection that waits.
    fn remove(&mut self, place: usize, cx: &Context) -> Option<Staged> {
        let staged = self.waiting.try_remove(place)?;
        cx.staged.set(cx.staged.get().saturating_sub(1));
        self.deadlines.remove(staged.deadline, place);
        self.evictions.remove(staged.step, staged.since, place);
        self.awaited.remove(staged.step, &staged.arrival, place);
        // The registration belongs to the open file, which goes to a worker.
        cx.unwatch(&staged.arrival.socket);
        Some(staged)
    }
}

impl ServiceDispatcher {
    /// A connection was accepted. Returns it if there is nothing to wait for.
    #[inline]
    pub(super) fn pass_stage(&mut self, arrival: Arrival, now: Instant, cx: &Context) -> Option<Arrival> {
        match &self.rules.stage {
            None => Some(arrival),
            Some(rules) => self.enter_stage(rules.clone(), arrival, now, cx),
        }
    }

    fn enter_stage(
        &mut self,
        rules: Arc<StageRules>,
        mut arrival: Arrival,
        now: Instant,
        cx: &Context,
    ) -> Option<Arrival> {
        self.stage.desk.translates = self.workers.translate();
        let seen = Seen { rules: &rules, stats: &self.stats.stage, now, end: End::Open };
        match Step::FIRST.walk(&mut self.stage.desk, &mut arrival, seen) {
            Outcome::Passed => Some(arrival),
            Outcome::Refused(reason) => self.refuse_one(arrival, reason),
            Outcome::Waits(step) => {
                if self.stage.waiting.len() >= rules.max {
                    self.evict(cx);
                }
                let deadline = now + step.time(&rules);
                self.stay(Staged { arrival, rules, step, since: now, deadline }, cx)
            }
        }
    }

    /// Has a connection wait here.
    fn stay(&mut self, staged: Staged, cx: &Context) -> Option<Arrival> {
        let entry = self.stage.waiting.vacant_entry();
        let place = entry.key();
        let fd = staged.arrival.socket.as_raw_fd();
        let watched = cx.poll.registry().register(&mut SourceFd(&fd), token(self.id, place), Interest::READABLE);
        if watched.is_err() {
            // Out of memory, or of epoll's max_user_watches.
            self.give_way(staged, cx);
            return None;
        }
        self.stage.deadlines.insert(staged.deadline, place);
        self.stage.evictions.insert(staged.step, staged.since, place);
        self.stage.awaited.insert(staged.step, &staged.arrival, place);
        entry.insert(staged);
        cx.staged.set(cx.staged.get() + 1);
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
        None
    }

    /// There is no place for a connection: it is reset, or goes without a key.
    fn give_way(&mut self, staged: Staged, cx: &Context) {
        match staged.step.late() {
            Late::Refused(_) => drop(self.refuse_one(staged.arrival, Refusal::StageFull)),
            Late::NoKey(reason) => self.pass_without_key(staged.arrival, reason, cx),
        }
    }

    fn pass_without_key(&mut self, arrival: Arrival, reason: NoKey, cx: &Context) {
        self.stats.stage.no_key(reason);
        self.stage.pass(arrival, cx);
    }

    /// Resets a connection; `None`.
    fn refuse_one(&mut self, arrival: Arrival, reason: Refusal) -> Option<Arrival> {
        if closes_at_once(&arrival) {
            sock::reset_on_close(arrival.socket.as_fd());
        } else {
            reset(arrival.socket);
        }
        self.stats.stage.count(reason);
        self.stage.unreported.add(reason);
        None
    }

    /// An event for a connection here.
    pub(super) fn staged_event(&mut self, place: usize, end: End, now: Instant, cx: &Context) {
        let Stage { waiting, deadlines, evictions, awaited, desk, .. } = &mut self.stage;
        // Workers may have come and gone since the last look.
        desk.translates = self.workers.translate();
        // An event of the same turn may be for an earlier connection at this place: it costs a look.
        let Some(Staged { arrival, rules, step, since, deadline }) = waiting.get_mut(place) else { return };
        let seen = Seen { rules, stats: &self.stats.stage, now, end };
        let outcome = match step.walk(desk, arrival, seen) {
            Outcome::Waits(same) if same == *step => return,
            Outcome::Waits(next) => {
                deadlines.remove(*deadline, place);
                evictions.remove(*step, *since, place);
                (*step, *deadline) = (next, now + next.time(rules));
                deadlines.insert(*deadline, place);
                evictions.insert(*step, *since, place);
                awaited.insert(*step, arrival, place);
                return;
            }
            outcome => outcome,
        };
        let Some(Staged { arrival, .. }) = self.stage.remove(place, cx) else { return };
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
        match outcome {
            Outcome::Refused(reason) => drop(self.refuse_one(arrival, reason)),
            Outcome::Passed | Outcome::Waits(_) => self.stage.pass(arrival, cx),
        }
    }

    /// Gives those that have passed to workers, also those whose time is over. Like clients in the backlog they stay where they are
    /// while there is no worker and no place in the line for them.
    pub(super) fn leave_stage(&mut self, now: Instant, cx: &Context) {
        if self.rules.stage.is_none() && self.stage.is_empty() {
            return;
        }
        for _ in 0..MAX_LATE {
            let Some(place) = self.stage.deadlines.due(now) else { break };
            let Some(staged) = self.stage.remove(place, cx) else { break };
            match staged.step.late() {
                Late::Refused(reason) => drop(self.refuse_one(staged.arrival, reason)),
                Late::NoKey(reason) => self.pass_without_key(staged.arrival, reason, cx),
            }
        }
        let mut full = Vec::new();
        for listener in self.stage.passed.listeners() {
            let (known, served) = (self.listener(listener).is_some(), self.workers.is_served(listener));
            while !known || self.has_place(listener, served, cx) {
                match self.stage.take_passed(listener, cx) {
                    Some(arrival) if known => self.admit(arrival, served, now, &mut full, cx),
                    Some(arrival) => reset(arrival.socket),
                    None => break,
                }
            }
        }
        self.stage.passed.any_new = false;
        if self.stage.is_stuck() {
            self.paused = Some(now + RETRY);
        }
        self.give_up(full, super::waits::ShedReason::QueueFull, cx);
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
    }

    /// Resets all that wait here, or those of one listener.
    pub(super) fn clear_stage(&mut self, listener: Option<ListenerId>, cx: &Context) {
        let gone = |arrival: &Arrival| listener.is_none_or(|listener| arrival.listener == listener);
        let waiting = self.stage.waiting.iter().filter(|(_, staged)| gone(&staged.arrival));
        let places: Vec<_> = waiting.map(|(place, _)| place).collect();
        let waiting: Vec<_> = places.into_iter().filter_map(|place| self.stage.remove(place, cx)).collect();
        waiting.into_iter().for_each(|staged| reset(staged.arrival.socket));
        for of in self.stage.passed.listeners().into_iter().filter(|of| listener.is_none_or(|listener| *of == listener))
        {
            while let Some(arrival) = self.stage.take_passed(of, cx) {
                reset(arrival.socket);
            }
        }
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
    }

    /// Reports what was refused, and whether connections at a time can be limited.
    pub(super) fn report_refused(&mut self, now: Instant, cx: &Context) {
        let unknown = self.stage.desk.clients.are_unknown();
        if unknown != self.stage.unknown {
            self.stage.unknown = unknown;
            cx.report(if unknown { Report::SourcesUnknown(self.id) } else { Report::SourcesKnown(self.id) });
        }
        for (reason, count) in self.stage.unreported.take(now) {
            cx.report(Report::Refused { service: self.id, count, reason });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets_are_closed_by_another_thread() {
        let arrival =
            |socket: OwnedFd, peer: PeerAddress| Arrival { listener: 0, socket, client: peer.into(), peer, looked: 0 };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket: OwnedFd = listener.accept().unwrap().0.into();
        let peer = PeerAddress::of(socket.as_fd());
        assert!(closes_at_once(&arrival(socket.try_clone().unwrap(), peer)));
        assert!(closes_at_once(&arrival(socket, PeerAddress::default())));
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = PeerAddress::of(unix.as_fd());
        assert!(!closes_at_once(&arrival(unix.into(), peer)));
    }

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
