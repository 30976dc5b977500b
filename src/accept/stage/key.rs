//! The key of a connection, in the head of its first request; where it names a session, a worker has to have reported that.
//!
//! Nothing is refused here: a connection without a key goes to any worker, and it is the server that judges requests.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::refusals::StageStats;
use super::steps::{Desk, Look, Step};
use super::{Arrival, Stage, StageRules};
use crate::accept::Context;
use crate::accept::dispatcher::ServiceDispatcher;
use crate::accept::orders::WorkerId;
use crate::affinity::HashOn;
use crate::affinity::head::{Found, MAX_BYTES, NoKey, find};
use crate::affinity::sessions::Change;
use crate::handoff::Client;

/// Time for a head to come.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks for the key.
pub(super) fn look(
    desk: &mut Desk,
    rules: &StageRules,
    stats: &StageStats,
    arrival: &mut Arrival,
    closed: bool,
) -> Look {
    let Some(on) = &rules.key else { return Look::Passes };
    match peek(on, &arrival.socket, &mut desk.buffer) {
        Found::NeedsMore if !closed => return Look::Waits,
        Found::NeedsMore => stats.no_key(NoKey::Incomplete),
        Found::NoKey(reason) => stats.no_key(reason),
        Found::Key(key) => {
            arrival.client.key = Some(key);
            if *on != HashOn::SocketIo {
                stats.keys.fetch_add(1, Relaxed);
            }
        }
    }
    Look::Passes
}

/// Looks for the worker of a session. It may not be known yet: the client has its answer as soon as we have the report.
pub(super) fn session(desk: &Desk, rules: &StageRules, stats: &StageStats, arrival: &Arrival) -> Look {
    match arrival.client.key {
        Some(session) if rules.key == Some(HashOn::SocketIo) => match desk.sessions.worker(session) {
            Some(_) => stats.keys.fetch_add(1, Relaxed),
            None => return Look::Waits,
        },
        _ => return Look::Passes,
    };
    Look::Passes
}

fn peek(on: &HashOn, socket: &OwnedFd, buffer: &mut Vec<u8>) -> Found {
    buffer.resize(MAX_BYTES, 0);
    match crate::sys::sock::peek(socket.as_fd(), buffer) {
        Ok(n) => find(on, &buffer[..n]),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Found::NeedsMore
        }
        Err(_) => Found::NoKey(NoKey::Incomplete),
    }
}

impl Stage {
    /// The worker of a session.
    pub fn session(&self, session: u64) -> Option<WorkerId> {
        self.desk.sessions.worker(session)
    }

    /// A worker gets no connections any more.
    pub fn forget_sessions(&mut self, worker: WorkerId) {
        self.desk.sessions.forget(worker);
    }

    /// No worker does.
    pub fn clear_sessions(&mut self) {
        self.desk.sessions.clear();
    }
}

impl ServiceDispatcher {
    /// Workers have begun or ended sessions. One that gets no connections any more has none.
    pub(in crate::accept) fn change_sessions(
        &mut self,
        worker: WorkerId,
        changes: &[Change],
        now: Instant,
        cx: &Context,
    ) {
        if self.rules.hash_on != Some(HashOn::SocketIo) || self.workers.position(worker).is_none() {
            return;
        }
        let mut opened = HashSet::new();
        for &change in changes {
            self.stage.desk.sessions.change(worker, change);
            if let Change::Opened(session) = change {
                opened.insert(session);
            }
        }
        let waits = |key: Option<u64>| key.is_some_and(|key| opened.contains(&key));
        let waiting = self.stage.waiting.iter();
        let places: Vec<_> = waiting
            .filter(|(_, staged)| staged.step == Step::Session && waits(staged.arrival.client.key))
            .map(|(place, _)| place)
            .collect();
        places.into_iter().for_each(|place| self.staged_event(place, false, now, cx));
    }

    /// Looks for the key of a connection that was taken back from a worker, which has read nothing of it.
    pub(in crate::accept) fn find_key_again(&mut self, socket: &OwnedFd, client: &mut Client) {
        if let Some(on) = self.rules.hash_on.as_ref().filter(|on| on.reads_head())
            && let Found::Key(key) = peek(on, socket, &mut self.stage.desk.buffer)
        {
            client.key = Some(key);
        }
    }
}
