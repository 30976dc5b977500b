//! The key of a connection, in the head of its first request; where it names a session, a worker has to have reported that.
//!
//! Only clients that are gone are refused here: a connection without a key goes to any worker, and it is the server that judges requests.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::refusals::{Refusal, StageStats};
use super::steps::{Desk, Look};
use super::{Arrival, End, Stage, StageRules};
use crate::accept::Context;
use crate::accept::dispatcher::ServiceDispatcher;
use crate::accept::orders::WorkerId;
use crate::affinity::HashOn;
use crate::affinity::head::{Found, MAX_BYTES, NoKey, find};
use crate::affinity::sessions::Change;
use crate::handoff::Client;
use crate::sys::sock;

/// Time for a head to come.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// A look begins at a head's first byte again, and a client chooses how many pieces there are. So many bytes are enough for a head of
/// 1000 that come one by one, and for one of [`MAX_BYTES`] in 63 pieces.
const MAX_LOOKED: usize = 32 * MAX_BYTES;

/// Looks for the key.
pub(super) fn look(desk: &mut Desk, rules: &StageRules, stats: &StageStats, arrival: &mut Arrival, end: End) -> Look {
    let Some(on) = &rules.key else { return Look::Passes };
    match (peek_again(on, &arrival.socket, &mut desk.buffer, &mut arrival.looked), end) {
        (Ok(Found::NeedsMore), End::Open) => return Look::Waits,
        (Ok(Found::NeedsMore), End::Half | End::Whole) => stats.no_key(NoKey::Incomplete),
        // A peek that fails has taken the socket's error: the server would see an end like any other.
        (Err(_), _) => return Look::Refused(Refusal::ClientLeft),
        (Ok(Found::NoKey(reason)), _) => stats.no_key(reason),
        (Ok(Found::Key(key)), _) => {
            arrival.client.key = Some(key);
            if *on != HashOn::SocketIo {
                stats.keys.fetch_add(1, Relaxed);
            }
        }
    }
    Look::Passes
}

/// Looks for the worker of a session. It may not be known yet: the client has its answer as soon as we have the report.
pub(super) fn session(desk: &Desk, rules: &StageRules, stats: &StageStats, arrival: &Arrival, end: End) -> Look {
    let Some(session) = arrival.client.key.filter(|_| rules.key == Some(HashOn::SocketIo)) else { return Look::Passes };
    if desk.sessions.worker(session).is_some() {
        stats.keys.fetch_add(1, Relaxed);
    } else if end == End::Whole {
        return Look::Refused(Refusal::ClientLeft);
    } else if desk.sessions.is_over(session) {
        stats.no_key(NoKey::UnknownSession);
    } else {
        return Look::Waits;
    }
    Look::Passes
}

/// One of several looks; `looked`: the bytes of all.
fn peek_again(on: &HashOn, socket: &OwnedFd, buffer: &mut Vec<u8>, looked: &mut usize) -> io::Result<Found> {
    let (found, bytes) = peek(on, socket, buffer)?;
    *looked += bytes;
    Ok(match found {
        Found::NeedsMore if *looked > MAX_LOOKED => Found::NoKey(NoKey::Incomplete),
        found => found,
    })
}

/// Also says in how many bytes it looked.
fn peek(on: &HashOn, socket: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<(Found, usize)> {
    buffer.resize(MAX_BYTES, 0);
    Ok(match sock::peek(socket.as_fd(), buffer)? {
        Some(n) => (find(on, &buffer[..n]), n),
        None => (Found::NeedsMore, 0),
    })
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

    /// No worker does, or nobody asks for sessions any more.
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
        if !self.rules.has_sessions() || self.workers.position(worker).is_none() {
            return;
        }
        for &change in changes {
            self.stage.desk.sessions.change(worker, change);
            if let Change::Opened(session) = change {
                let places = self.stage.awaited.places(session);
                places.into_iter().for_each(|place| self.staged_event(place, End::Open, now, cx));
            }
        }
    }

    /// Looks for the key of a connection that was taken back from a worker, which has read nothing of it.
    ///
    /// # Errors
    /// When its client has reset it.
    pub(in crate::accept) fn find_key_again(&mut self, socket: &OwnedFd, client: &mut Client) -> io::Result<()> {
        if let Some(on) = self.rules.hash_on.as_ref().filter(|on| on.reads_head())
            && let (Found::Key(key), _) = peek(on, socket, &mut self.stage.desk.buffer)?
        {
            client.key = Some(key);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Looks at the first bytes of a head, as many as it says each time. The answer, and how many looks there were.
    fn looks(head: &[u8], sizes: impl IntoIterator<Item = usize>) -> (Found, usize) {
        let on = HashOn::Header("X-Key".to_owned());
        let (mut buffer, mut looked, mut looks) = (Vec::new(), 0, 0);
        for size in sizes {
            let (mut client, socket) = UnixStream::pair().unwrap();
            client.write_all(&head[..size]).unwrap();
            looks += 1;
            let found = peek_again(&on, &socket.into(), &mut buffer, &mut looked).unwrap();
            if found != Found::NeedsMore {
                return (found, looks);
            }
        }
        (Found::NeedsMore, looks)
    }

    fn head(bytes: usize) -> Vec<u8> {
        let (begin, end) = ("GET / HTTP/1.1\r\nX: ", "\r\nX-Key: a\r\n\r\n");
        format!("{begin}{}{end}", "x".repeat(bytes - begin.len() - end.len())).into_bytes()
    }

    #[test]
    fn a_key_is_found_in_as_many_pieces_as_it_is_said() {
        let key = Found::Key(crate::affinity::digest(b"a"));
        assert_eq!(looks(&head(1000), 1..=1000), (key, 1000));
        assert_eq!(looks(&head(MAX_BYTES), (1..=63).map(|n| MAX_BYTES * n / 63)), (key, 63));
    }

    #[test]
    fn a_client_cannot_have_a_long_head_looked_at_for_every_byte() {
        let (found, looks) = looks(&head(15_000), 14_000..15_000);
        assert_eq!(found, Found::NoKey(NoKey::Incomplete));
        assert!(looks < 40, "{looks}");
    }
}
