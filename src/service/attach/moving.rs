//! Connections that a leaving worker gave back between two requests (`--drain-idle move`): another worker goes on with them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{AttachReply, Handler};
use crate::accept::orders::{ListenerId, Order, SlotStats};
use crate::direct::attach::{Moved, Secret};
use crate::handoff::Client;
use crate::handoff::translations::TranslationsFile;
use crate::relay::protocol::Given;
use crate::slot::retiring::Retiring;
use crate::sys::closer::Foreign;
use crate::sys::connection;
use crate::sys::sock::PeerAddress;
use crate::worker::Worker;
use crate::worker::attachment::Attachment;

/// How long a worker is known that is gone. What it gave back before is read at once; this is for a machine that stands still.
const KNOWN: Duration = Duration::from_secs(60);
/// So soon after the end of a worker its last connections have been read.
const ON_THE_WAY: Duration = Duration::from_secs(1);
/// The most connections of a slot that are on their way to the accept thread; more are closed.
const MAX_UNDER_WAY: u64 = 4096;

/// A worker that is gone.
#[derive(Debug)]
struct Late {
    secret: Secret,
    /// Its slot, which may be gone, too.
    slot: u32,
    stats: Arc<SlotStats>,
    translations: Option<TranslationsFile>,
    until: Instant,
}

/// Workers that are gone, and whose last connections may still be on their way to the master.
#[derive(Debug, Default)]
pub struct LateWorkers(Vec<Late>);

impl LateWorkers {
    /// A worker that made room is gone.
    pub fn add(&mut self, slot: u32, stats: Arc<SlotStats>, attachment: &Attachment, now: Instant) {
        self.0.retain(|late| late.until > now);
        let translations = attachment.translations.as_ref().and_then(|file| file.try_clone().ok());
        self.0.push(Late { secret: attachment.secret, slot, stats, translations, until: now + KNOWN });
    }

    /// Whether connections of some may come.
    pub fn any(&self) -> bool {
        self.0.iter().any(|late| late.until > Instant::now() + (KNOWN - ON_THE_WAY))
    }

    pub fn has(&self, secret: &Secret) -> bool {
        self.find(secret).is_some()
    }

    fn find(&self, secret: &Secret) -> Option<&Late> {
        self.0.iter().find(|late| late.secret == *secret && late.until > Instant::now())
    }
}

impl Handler<'_> {
    /// Gives a server's connection to another worker. Where that cannot be, it is closed, as the server has done.
    pub(super) fn moved(&mut self, secret: &Secret, moved: Moved) -> AttachReply {
        let Moved { listener, socket, translated } = moved;
        let socket = Foreign::received(socket);
        if let Some((slot, stats, translations)) = self.giver(secret) {
            let client = if translated {
                translations.and_then(|file| file.client(socket.as_fd())).map(Some)
            } else {
                Some(None)
            };
            if let Some(client) = client {
                let stats = stats.clone();
                self.pass_on((slot, &stats), listener, socket, client);
            }
        }
        AttachReply::Nothing
    }

    /// The same for a connection that a relay worker gave back.
    pub fn relay_gave(&mut self, at: usize, pid: u32, given: Given, socket: Foreign) {
        let Some(slot) = self.slots.get(at) else { return };
        // Only one that was told to: nothing moves from a worker that gets connections itself.
        let gives = |old: &Retiring| old.out_of_rotation && old.worker.relay().is_some_and(|relay| relay.pid == pid);
        if slot.retiring.iter().any(gives) {
            let client = given.named.map(|(client, destination)| Client {
                destination: Some(Box::new(destination.into())),
                ..PeerAddress::from(client).into()
            });
            self.pass_on((at as u32, &slot.stats.clone()), given.listener, socket, client);
        }
    }

    /// The slot that a server's connection comes from, that one's counters, and what PROXY headers said.
    fn giver(&self, secret: &Secret) -> Option<(u32, &Arc<SlotStats>, Option<&TranslationsFile>)> {
        // As above.
        let of = |one: &&Attachment| one.secret == *secret && one.moves;
        let living = self.slots.iter().zip(0..).find_map(|(slot, at)| {
            let attachment = slot.workers().filter_map(Worker::attachment).find(of)?;
            Some((at, &slot.stats, attachment.translations.as_ref()))
        });
        let late = || self.state.late.find(secret).map(|late| (late.slot, &late.stats, late.translations.as_ref()));
        living.or_else(late)
    }

    /// Has the accept thread place a connection; closes it where it cannot go on. `client`: what a PROXY header said.
    fn pass_on(
        &self,
        (slot, stats): (u32, &Arc<SlotStats>),
        listener: ListenerId,
        socket: Foreign,
        client: Option<Client>,
    ) {
        let ends = self.stopping || self.paused || self.slots.is_empty();
        let Some(own) = self.listeners.find(listener).filter(|_| !ends) else { return };
        if has_room(stats)
            && connection::is_open_and_of(socket.as_fd(), own.socket.as_fd())
            && connection::accepted_anew(socket.as_fd()).is_ok()
        {
            stats.moving.fetch_add(1, Relaxed);
            let (service, stats) = (self.listeners.service(), stats.clone());
            self.context.orders.send(Order::Moved { service, slot, listener, socket, client, stats });
        }
    }
}

/// Whether a slot may have one more on its way.
fn has_room(stats: &SlotStats) -> bool {
    stats.moving.load(Relaxed) < MAX_UNDER_WAY
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_s_connections_on_their_way_are_bounded() {
        let stats = SlotStats::default();
        assert!(has_room(&stats));
        stats.moving.store(MAX_UNDER_WAY - 1, Relaxed);
        assert!(has_room(&stats));
        stats.moving.store(MAX_UNDER_WAY, Relaxed);
        assert!(!has_room(&stats));
    }

    #[test]
    fn a_worker_that_is_gone_is_known_for_a_while() {
        let now = Instant::now();
        let late = |secret: u8, until| Late {
            secret: Secret::from([secret; 16]),
            slot: 3,
            stats: Arc::default(),
            translations: None,
            until,
        };
        let workers = LateWorkers(vec![late(1, now + KNOWN), late(2, now)]);
        assert!(workers.has(&[1; 16]) && workers.find(&[1; 16]).unwrap().slot == 3);
        assert!(!workers.has(&[2; 16]), "too long ago");
        assert!(!workers.has(&[3; 16]));
    }
}
