//! Connections that a leaving server gave back between two requests (`--drain-idle move`): another worker goes on with them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{AttachReply, Handler};
use crate::accept::orders::{ListenerId, Order, SlotStats};
use crate::direct::attach::{Moved, Secret};
use crate::handoff::Client;
use crate::handoff::translations::TranslationsFile;
use crate::sys::closer::Foreign;
use crate::sys::sock;
use crate::worker::Worker;
use crate::worker::attachment::Attachment;

/// How long a worker is known that is gone. What it gave back before is read at once; this is for a machine that stands still.
const KNOWN: Duration = Duration::from_secs(60);
/// The most connections of a slot that are on their way to the accept thread; more are closed.
const MAX_UNDER_WAY: u64 = 4096;

/// A worker that is gone.
#[derive(Debug)]
struct Late {
    secret: Secret,
    /// Of its slot, which may be gone, too.
    stats: Arc<SlotStats>,
    translations: Option<TranslationsFile>,
    until: Instant,
}

/// Workers that are gone, and whose last connections may still be on their way to the master.
#[derive(Debug, Default)]
pub struct LateWorkers(Vec<Late>);

impl LateWorkers {
    /// A worker that made room is gone.
    pub fn add(&mut self, stats: Arc<SlotStats>, attachment: &Attachment, now: Instant) {
        self.0.retain(|late| late.until > now);
        let translations = attachment.translations.as_ref().and_then(|file| file.try_clone().ok());
        self.0.push(Late { secret: attachment.secret, stats, translations, until: now + KNOWN });
    }

    pub fn has(&self, secret: &Secret) -> bool {
        self.find(secret).is_some()
    }

    fn find(&self, secret: &Secret) -> Option<&Late> {
        self.0.iter().find(|late| late.secret == *secret && late.until > Instant::now())
    }
}

impl Handler<'_> {
    /// Gives a connection to another worker. Where that cannot be, it is closed, as the server has done.
    pub(super) fn moved(&mut self, secret: &Secret, moved: Moved) -> AttachReply {
        let Moved { listener, socket, translated } = moved;
        match self.client(secret, listener, &socket, translated) {
            Some((stats, client)) => {
                stats.moving.fetch_add(1, Relaxed);
                let (service, socket) = (self.listeners.service(), Foreign::received(socket));
                self.context.orders.send(Order::Moved { service, listener, socket, client, stats });
            }
            None => drop(Foreign::received(socket)),
        }
        AttachReply::Nothing
    }

    /// The counters of the slot that it comes from, and what a PROXY header said of it; `None` where it is not to go on.
    fn client(
        &self,
        secret: &Secret,
        listener: ListenerId,
        socket: &OwnedFd,
        translated: bool,
    ) -> Option<(Arc<SlotStats>, Option<Client>)> {
        if self.stopping || self.paused || self.slots.is_empty() {
            return None;
        }
        // Only one that was told to: nothing moves from a worker that gets connections itself.
        let of = |one: &&Attachment| one.secret == *secret && one.moves;
        let living = self.slots.iter().find_map(|slot| {
            let attachment = slot.workers().filter_map(Worker::attachment).find(of)?;
            Some((&slot.stats, attachment.translations.as_ref()))
        });
        let late = || self.state.late.find(secret).map(|late| (&late.stats, late.translations.as_ref()));
        let (stats, translations) = living.or_else(late)?;
        if stats.moving.load(Relaxed) >= MAX_UNDER_WAY {
            return None;
        }
        let is_ours = self.listeners.find(listener).and_then(|listener| sock::local_addr(listener.socket.as_fd()));
        if !sock::is_open_connection(socket.as_fd(), is_ours?.port()) || sock::accepted_anew(socket.as_fd()).is_err() {
            return None;
        }
        let client = if translated { Some(translations?.client(socket.as_fd())?) } else { None };
        Some((stats.clone(), client))
    }
}
