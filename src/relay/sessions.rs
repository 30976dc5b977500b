//! All sessions of a worker: opening, events, timeouts, closing.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use slab::Slab;

use super::connect::Sources;
use super::journal::{Entry, Origin};
use super::leaving::Leaving;
use super::pipes::Pipes;
use super::protocol::{FromWorker, Setup};
use super::pump::{BUFFER_BYTES, Watched};
use super::session::{Fate, Keepalive, Moved, Session, Side, Stage};
use super::upstreams::{Change, Upstreams};
use crate::abi::access::end;
use crate::abi::page::row;
use crate::handoff::access::AccessWriter;
use crate::handoff::page::CountersPage;
use crate::handoff::upstreams::UpstreamTable;
use crate::proxy_protocol::sending::{self, Version};
use crate::sys::clock::monotonic_ns;
use crate::sys::sock;

/// Unit of the sessions' clocks.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Interval of new attempts for sessions without a reachable upstream.
pub(super) const RETRY: Duration = Duration::from_millis(20);
/// Interval of checks whether the bytes before a reset are acknowledged.
const RESET_CHECK: Duration = Duration::from_millis(2);
/// Age at which a session gets TCP keep-alive on its upstream socket; most end before.
const KEEPALIVE_AGE: Duration = Duration::from_secs(15);
/// Generations fit into a token with the index and the side, whose top bit stays free.
const GENERATIONS: u32 = 1 << 30;

pub struct Sessions {
    pub(super) slab: Slab<Session>,
    generation: u32,
    pub(super) upstreams: Upstreams,
    pub(super) sources: Sources,
    pipes: Pipes,
    pub(super) page: Rc<CountersPage>,
    pub(super) buffer: Box<[u8]>,
    pub(super) start: Instant,
    pub(super) connect_timeout: Duration,
    idle_timeout: Duration,
    /// What was closed when [`Sessions::room_is_wanted`] was asked last.
    closed: u64,
    /// Sessions to be advanced again in the next turn.
    again: HashSet<Token>,
    /// Sessions without an upstream, and the time of their next attempt.
    pub(super) waiting: Vec<Token>,
    pub(super) retry: Option<Instant>,
    /// Sessions with an end to be reset, and the time of the next check.
    resetting: HashSet<Token>,
    reset_check: Option<Instant>,
    /// Sessions whose connect(2) is under way.
    pub(super) connecting: usize,
    /// Time of the next check of timeouts.
    sweep: Option<Instant>,
    /// To be sent to the master.
    pub(super) reports: Vec<FromWorker>,
    /// Names to look up again: group, name, port.
    pub(super) stale: Vec<(usize, String, u16)>,
    /// An attempt without a client: target, socket, begin.
    pub(super) probe: Option<(usize, OwnedFd, Instant)>,
    send_proxy: Option<Version>,
    log: Option<AccessWriter>,
    pub(super) leaving: Leaving,
}

pub(super) fn token(index: usize, generation: u32, side: Side) -> Token {
    Token((generation as usize) << 33 | index << 1 | side as usize)
}

fn parts(Token(token): Token) -> (usize, u32, Side) {
    let side = if token & 1 == 0 { Side::Client } else { Side::Upstream };
    ((token >> 1) & 0xffff_ffff, (token >> 33) as u32, side)
}

impl Sessions {
    pub fn new(
        setup: &Setup,
        page: CountersPage,
        table: UpstreamTable,
        log: Option<AccessWriter>,
        start: Instant,
    ) -> Self {
        let page = Rc::new(page);
        let upstreams = Upstreams::new(setup.upstreams.clone(), table, page.clone(), (start, monotonic_ns()));
        let mut sessions = Self {
            slab: Slab::new(),
            generation: 0,
            upstreams,
            sources: Sources::new(setup.slot),
            pipes: Pipes::new(setup.pipes),
            page,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start,
            connect_timeout: Duration::from_millis(setup.connect_timeout_ms),
            idle_timeout: Duration::from_millis(setup.idle_timeout_ms),
            closed: 0,
            again: HashSet::new(),
            waiting: Vec::new(),
            retry: None,
            resetting: HashSet::new(),
            reset_check: None,
            connecting: 0,
            sweep: None,
            reports: Vec::new(),
            stale: Vec::new(),
            probe: None,
            send_proxy: setup.send_proxy,
            log,
            leaving: Leaving::new(setup),
        };
        sessions.stale = sessions.upstreams.unresolved();
        for (group, host, port) in &sessions.stale {
            if sessions.upstreams.missing(*group, start) == Change::Turned {
                let error = "the name does not resolve".to_owned();
                sessions.reports.push(FromWorker::UpstreamDown { address: format!("{host}:{port}"), error });
            }
        }
        sessions
    }

    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Reports for the master and names to look up, since the last call.
    pub fn take_reports(&mut self) -> (Vec<FromWorker>, Vec<(usize, String, u16)>) {
        (std::mem::take(&mut self.reports), std::mem::take(&mut self.stale))
    }

    /// A lookup has finished.
    pub fn resolved(&mut self, group: usize, addresses: &[std::net::SocketAddr], now: Instant) {
        self.upstreams.update(group, addresses, now);
    }

    /// Counts sockets that the kernel dropped because the descriptor table is full.
    pub fn count_lost(&self, n: usize) {
        self.page.add(row::TRUNCATED, n as u64);
    }

    /// Records the latency of `n` sockets that the master accepted at that time.
    pub fn count_taken(&self, n: usize, accepted: u64) {
        self.page.record_latency(n as u64, monotonic_ns().saturating_sub(accepted));
    }

    /// Whether clients wait in the master for what has ended since the last call, or because something was `received`.
    pub fn room_is_wanted(&mut self, received: bool) -> bool {
        let before = std::mem::replace(&mut self.closed, self.page.closed());
        (before != self.closed && self.page.is_room_wanted()) || (received && self.page.is_receive_awaited())
    }

    pub(super) fn tick(&self, now: Instant) -> u32 {
        (now.duration_since(self.start).as_millis() / TICK.as_millis()) as u32
    }

    /// Begins a session: reads the client's first bytes, connects to an upstream, writes them, and watches both.
    pub fn open(&mut self, poll: &Poll, client: OwnedFd, origin: Origin<'_>, now: Instant) {
        self.page.add(row::RECEIVED, 1);
        self.generation = (self.generation + 1) % GENERATIONS;
        let mut session = Session::new(client, self.generation, self.tick(now));
        session.entry = self.log.as_ref().and_then(|log| Entry::begin(log, session.client.socket.as_fd(), origin));
        self.follow(&mut session, origin);
        let header = self.send_proxy.map_or(0, |version| {
            let pair = origin.pair(session.client.socket.as_fd());
            sending::write(version, pair, &mut self.buffer)
        });
        session.header = header as u8;
        let Ok(first) = session.first_read(&mut self.buffer[header..]) else {
            self.record_end(&mut session, Some(end::RESET));
            self.page.add(row::CLOSED, 1);
            self.page.add_finished();
            return;
        };
        if let Some(followed) = &mut session.followed {
            followed.saw_first(&self.buffer[header..header + first]);
        }
        let index = self.slab.insert(session);
        self.connect(poll, index, now, header + first);
    }

    /// An event for one end of a session.
    pub fn event(&mut self, poll: &Poll, event: &Event, now: Instant) {
        let (index, generation, side) = parts(event.token());
        // Otherwise the event is stale: its session has ended.
        let Some(session) = self.slab.get_mut(index).filter(|session| session.generation == generation) else {
            return;
        };
        let connecting = matches!(session.upstream, Stage::Connecting(..));
        let Some(end) = session.end_mut(side) else { return };
        let closed = event.is_read_closed() || event.is_error() || event.is_write_closed();
        end.readable |= event.is_readable() || closed;
        end.writable |= event.is_writable();
        end.hangup |= closed;
        if connecting && side == Side::Upstream {
            return self.finish_connect(poll, index, now, event);
        }
        self.advance(poll, index, now);
    }

    pub(super) fn advance(&mut self, poll: &Poll, index: usize, now: Instant) {
        let tick = self.tick(now);
        let Some(session) = self.slab.get_mut(index) else { return };
        let mut moved = Moved::default();
        let fate = session.advance(&mut self.buffer, &mut self.pipes, &mut moved);
        if session.header > 0 {
            moved.forth = session.of_client(moved.forth);
        }
        if session.entry.is_some() {
            session.note(moved);
        }
        if moved.forth + moved.back > 0 {
            session.active = tick;
            self.page.add(row::BYTES_IN, moved.forth);
            self.page.add(row::BYTES_OUT, moved.back);
            self.upstreams.moved(session.target, moved.forth, moved.back);
        }
        self.act_on(poll, index, now, fate);
        self.note_rest(index, tick);
    }

    /// Does what [`Session::advance`] asked for and registers the session with epoll for what it waits for.
    pub(super) fn act_on(&mut self, poll: &Poll, index: usize, now: Instant, fate: Fate) {
        let Some(session) = self.slab.get_mut(index) else { return };
        let fate = match fate {
            Fate::Finished { again } => {
                // Counted before the client sees it: a client that comes again then finds the worker free.
                self.page.add_finished();
                session.finish();
                if again { Fate::Again } else { Fate::Waits }
            }
            other => other,
        };
        match fate {
            Fate::Over => return self.close(index),
            Fate::Again => drop(self.again.insert(token(index, session.generation, Side::Client))),
            Fate::Resetting => {
                self.resetting.insert(token(index, session.generation, Side::Client));
                self.reset_check.get_or_insert(now + RESET_CHECK);
            }
            Fate::Waits | Fate::Finished { .. } => {}
        }
        if watch(poll, session, index).is_err() {
            // Out of memory or epoll's max_user_watches: this connection cannot be served.
            return self.close(index);
        }
        let sweep = now + self.sweep_interval();
        if self.sweep.is_none_or(|at| at > sweep) {
            self.sweep = Some(sweep);
        }
    }

    pub(super) fn close(&mut self, index: usize) {
        let Some(mut session) = self.slab.try_remove(index) else { return };
        session.dispose(&mut self.pipes);
        self.record_end(&mut session, None);
        if matches!(session.upstream, Stage::Connecting(..)) {
            self.connecting -= 1;
        }
        if session.target != usize::MAX {
            self.upstreams.closed(session.target);
        }
        // Counted before the client sees it, as in `act_on`.
        self.page.add(row::CLOSED, 1);
        if !session.finished {
            self.page.add_finished();
        }
    }

    /// Logs the end of a session, if it is logged. `ended`: how, where the session cannot know.
    fn record_end(&self, session: &mut Session, ended: Option<u8>) {
        let Some(log) = &self.log else { return };
        if let Some(mut entry) = session.entry.take() {
            entry.moved(Moved::default(), ended);
            entry.finish(log, session, &self.upstreams);
        }
    }

    /// A tenth of the shortest timeout: sessions are checked all at once.
    fn sweep_interval(&self) -> Duration {
        let connect = if self.connecting > 0 { self.connect_timeout } else { Duration::MAX };
        (self.idle_timeout.min(connect) / 10).clamp(Duration::from_millis(20), Duration::from_secs(5))
    }

    /// When `run_timers` is due.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.again.is_empty() {
            return Some(now);
        }
        // An idle worker sleeps.
        let sweep = self.sweep.filter(|_| !self.slab.is_empty());
        [self.retry, self.reset_check, sweep].into_iter().flatten().min()
    }

    pub fn run_timers(&mut self, poll: &Poll, now: Instant) {
        for token in std::mem::take(&mut self.again) {
            if let Some(index) = self.live(token) {
                self.advance(poll, index, now);
            }
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.retry_waiting(poll, now);
        }
        if self.reset_check.is_some_and(|at| at <= now) {
            self.reset_check = None;
            for token in std::mem::take(&mut self.resetting) {
                if let Some(index) = self.live(token)
                    && let Some(fate) = self.slab.get_mut(index).map(Session::reset_when_acknowledged)
                {
                    self.act_on(poll, index, now, fate);
                }
            }
        }
        if self.sweep.is_some_and(|at| at <= now) {
            self.sweep = None;
            self.sweep(poll, now);
        }
    }

    pub(super) fn live(&self, token: Token) -> Option<usize> {
        let (index, generation, _) = parts(token);
        self.slab.get(index).filter(|session| session.generation == generation).map(|_| index)
    }

    /// Applies connect and idle timeouts; sets TCP keep-alive for sessions that last.
    fn sweep(&mut self, poll: &Poll, now: Instant) {
        let tick = self.tick(now);
        let (connect, idle, old) = (ticks(self.connect_timeout), ticks(self.idle_timeout), ticks(KEEPALIVE_AGE));
        let (mut slow, mut idlers) = (Vec::new(), Vec::new());
        for (index, session) in &mut self.slab {
            match &session.upstream {
                Stage::Connecting(_, since) if tick.saturating_sub(*since) >= connect => slow.push(index),
                Stage::Established(end) => {
                    if tick.saturating_sub(session.active) >= idle {
                        idlers.push(index);
                    } else if session.keepalive == Keepalive::Due && tick.saturating_sub(session.begun) >= old {
                        session.keepalive = Keepalive::Set;
                        sock::keep_alive(&socket2::SockRef::from(&end.socket));
                    }
                }
                _ => {}
            }
        }
        idlers.into_iter().for_each(|index| self.close(index));
        let timed_out = io::Error::from_raw_os_error(libc::ETIMEDOUT);
        for index in slow {
            self.connect_failed(poll, index, now, &timed_out);
        }
        if !self.slab.is_empty() {
            self.sweep = Some(now + self.sweep_interval());
        }
    }
}

pub(super) fn ticks(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// Registers both ends: for reading always, for writing only once a write would have blocked (or a connect is under way),
/// since a writable socket would wake us without need.
fn watch(poll: &Poll, session: &mut Session, index: usize) -> io::Result<()> {
    for side in [Side::Client, Side::Upstream] {
        let token = token(index, session.generation, side);
        let Some(end) = session.end_mut(side) else { continue };
        let fd = end.socket.as_raw_fd();
        let wanted = if end.writable { Watched::Reading } else { Watched::ReadingAndWriting };
        let both = Interest::READABLE | Interest::WRITABLE;
        match (end.watched, wanted) {
            (Watched::Nothing, Watched::ReadingAndWriting) => {
                poll.registry().register(&mut SourceFd(&fd), token, both)?;
            }
            (Watched::Nothing, _) => poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?,
            (Watched::Reading, Watched::ReadingAndWriting) => {
                poll.registry().reregister(&mut SourceFd(&fd), token, both)?;
            }
            // Once watched for writing it stays so: edges come only when a full buffer drains.
            _ => continue,
        }
        end.watched = wanted;
    }
    Ok(())
}
