//! What becomes of the connections of a worker that leaves: idle ones go to another worker (`--drain-idle move`), and those that
//! are left end one by one (`--drain-spread`).

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Poll, Token};

use super::follow::Followed;
use super::journal::Origin;
use super::protocol::{self, FromWorker, Given, Setup};
use super::session::{Moved, Session, Side, Stage};
use super::sessions::{Sessions, TICK, ticks, token};
use crate::abi::access::end;
use crate::sys::{connection, random};

/// Connections that go to the master in one message, and how long it then has until the next: its descriptors are limited.
const BATCH: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);

/// How far a worker is with leaving.
#[derive(Default)]
pub struct Leaving {
    /// Connections may move.
    moves: bool,
    /// The window over which connections end.
    spread: Option<Duration>,
    /// Connections are given back now.
    gives: bool,
    /// Those that may be at rest.
    resting: HashSet<Token>,
    /// Nothing is given back before this.
    paused: Option<Instant>,
    /// The window's last tick, and when it is looked next whose time has come.
    ends: Option<(u32, Instant)>,
}

impl Leaving {
    pub fn new(setup: &Setup) -> Self {
        let spread = setup.drain_spread_ms.map(Duration::from_millis);
        Self { moves: setup.moves, spread, ..Self::default() }
    }

    fn follows(&self) -> bool {
        self.moves || self.spread.is_some()
    }
}

impl Sessions {
    /// Follows a new session, if that is wanted.
    pub(super) fn follow(&self, session: &mut Session, origin: Origin<'_>) {
        if !self.leaving.follows() {
            return;
        }
        let client = session.client.socket.as_fd();
        session.followed = Some(Followed::new(client, origin));
        // Of one that another worker gave back the log has all bytes in its last line.
        if let Some(entry) = &mut session.entry
            && let Some((forth, back @ 1..)) = connection::so_far(client)
        {
            entry.moved(Moved { forth, back }, None);
        }
    }

    /// Bytes of a session may have moved: it may be at rest now.
    pub(super) fn note_rest(&mut self, index: usize, tick: u32) {
        if !self.leaving.follows() {
            return;
        }
        let Some(session) = self.slab.get_mut(index) else { return };
        let Some(followed) = &mut session.followed else { return };
        followed.note(tick);
        if self.leaving.gives && session.can_move() {
            self.leaving.resting.insert(token(index, session.generation, Side::Client));
        }
    }

    /// Begins to give back connections that lie between two requests, or ends that.
    pub fn give_back(&mut self, on: bool) {
        self.leaving.gives = on && self.leaving.moves;
        self.leaving.resting.clear();
        if self.leaving.gives {
            let at_rest = self.slab.iter().filter(|(_, session)| session.can_move());
            self.leaving.resting = at_rest.map(|(at, session)| token(at, session.generation, Side::Client)).collect();
        }
    }

    /// The worker drains: chooses a time for each connection.
    pub fn spread(&mut self, now: Instant) {
        if let Some(spread) = self.leaving.spread {
            let first = self.tick(now);
            self.leaving.ends = Some((first.saturating_add(ticks(spread)), now));
            for (_, session) in &mut self.slab {
                choose_end(session, first, first.saturating_add(ticks(spread)));
            }
        }
    }

    /// When [`Sessions::leave`] is due.
    pub fn leave_due(&self) -> Option<Instant> {
        let Leaving { gives, resting, paused, ends, .. } = &self.leaving;
        let gives = (*gives && !resting.is_empty()).then(|| paused.unwrap_or(self.start));
        let ends = ends.filter(|_| !self.slab.is_empty()).map(|(_, at)| at);
        [gives, ends].into_iter().flatten().min()
    }

    /// Gives back connections, and ends those whose time has come.
    pub fn leave(&mut self, poll: &Poll, channel: BorrowedFd<'_>, now: Instant) {
        if self.leaving.gives && !self.leaving.resting.is_empty() && self.leaving.paused.is_none_or(|at| at <= now) {
            self.give(poll, channel, now);
        }
        if let Some((last, _)) = self.leaving.ends.filter(|(_, at)| *at <= now) {
            self.leaving.ends = Some((last, now + TICK));
            self.end_due(self.tick(now), last);
        }
    }

    fn give(&mut self, poll: &Poll, channel: BorrowedFd<'_>, now: Instant) {
        let tokens: Vec<Token> = self.leaving.resting.iter().copied().take(BATCH).collect();
        let (mut indices, mut given, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for token in &tokens {
            self.leaving.resting.remove(token);
            let Some(index) = self.live(*token) else { continue };
            if let Some(session) = self.slab.get(index).filter(|session| session.can_move())
                && let Some(Followed { listener, named, .. }) = session.followed.as_deref()
            {
                indices.push(index);
                given.push(Given { listener: *listener, named: *named });
                sockets.push(session.client.socket.as_fd());
            }
        }
        if indices.is_empty() {
            return;
        }
        self.leaving.paused = Some(now + PAUSE);
        if protocol::send(channel, &FromWorker::Moved(given), &sockets).is_err() {
            // The master is busy: later.
            self.leaving.resting.extend(tokens);
            return;
        }
        for index in indices {
            if let Some(session) = self.slab.get_mut(index) {
                // The open file lives on.
                let _ = poll.registry().deregister(&mut SourceFd(&session.client.socket.as_raw_fd()));
                if let Some(entry) = &mut session.entry {
                    entry.moved(Moved::default(), Some(end::MOVED));
                }
            }
            self.close(index);
        }
    }

    fn end_due(&mut self, tick: u32, last: u32) {
        let mut over = Vec::new();
        for (index, session) in &mut self.slab {
            choose_end(session, tick, last);
            let due = session
                .followed
                .as_ref()
                .is_some_and(|followed| followed.ends.is_some_and(|ends| ends <= tick) && !followed.is_owed(tick));
            if due && matches!(session.upstream, Stage::Established(_)) {
                over.push(index);
            }
        }
        over.into_iter().for_each(|index| self.close(index));
    }
}

/// Gives a session a time at random, unless it has one.
fn choose_end(session: &mut Session, first: u32, last: u32) {
    if let Some(followed) = &mut session.followed
        && followed.ends.is_none()
    {
        let mut bytes = [0; 4];
        // It does not fail for so few.
        let _ = random::fill(&mut bytes);
        let window = u64::from(last.saturating_sub(first)) + 1;
        let later = (u64::from(u32::from_ne_bytes(bytes)) * window) >> 32;
        followed.ends = Some(first.saturating_add(later as u32));
    }
}
