//! Connections that a leaving server gave back between two requests (`--drain-idle move`): another worker goes on with them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{AttachReply, Handler};
use crate::accept::orders::{ListenerId, Order};
use crate::direct::attach::{Moved, Secret};
use crate::handoff::Client;
use crate::handoff::translations::TranslationsFile;
use crate::slot::Slot;
use crate::sys::closer::Foreign;
use crate::sys::sock;
use crate::worker::attachment::Attachment;

/// How long a worker is known that is gone. What it gave back before is read at once; this is for a machine that stands still.
const KNOWN: Duration = Duration::from_secs(60);

/// A worker that is gone.
#[derive(Debug)]
struct Late {
    secret: Secret,
    slot: usize,
    translations: Option<TranslationsFile>,
    until: Instant,
}

/// Workers that are gone, and whose last connections may still be on their way to the master.
#[derive(Debug, Default)]
pub struct LateWorkers(Vec<Late>);

impl LateWorkers {
    /// A worker of a slot that made room is gone.
    pub fn add(&mut self, slot: usize, attachment: &Attachment, now: Instant) {
        self.0.retain(|late| late.until > now);
        let translations = attachment.translations.as_ref().and_then(|file| file.try_clone().ok());
        self.0.push(Late { secret: attachment.secret, slot, translations, until: now + KNOWN });
    }

    pub fn has(&self, secret: &Secret) -> bool {
        self.0.iter().any(|late| late.secret == *secret)
    }
}

impl Handler<'_> {
    /// Gives a connection to another worker. Where that cannot be, it is closed, as the server has done.
    pub(super) fn moved(&mut self, secret: &Secret, moved: Moved) -> AttachReply {
        let Moved { listener, socket, translated } = moved;
        match self.client(secret, listener, &socket, translated) {
            Some((slot, client)) => {
                self.slots[slot].stats.moved.fetch_add(1, Relaxed);
                let service = self.listeners.service();
                self.context.orders.send(Order::Moved { service, listener, socket, client });
            }
            None => drop(Foreign::received(socket)),
        }
        AttachReply::Nothing
    }

    /// The slot that it comes from, and what a PROXY header said of it; `None` where it is not to go on.
    fn client(
        &self,
        secret: &Secret,
        listener: ListenerId,
        socket: &OwnedFd,
        translated: bool,
    ) -> Option<(usize, Option<Client>)> {
        if self.stopping || self.paused {
            return None;
        }
        let of = |attachment: &Attachment| attachment.secret == *secret;
        let has = |slot: &Slot| slot.workers().filter_map(|worker| worker.attachment()).find(|one| of(one)).is_some();
        let late = || self.state.late.0.iter().find(|late| late.secret == *secret);
        let slot =
            self.slots.iter().position(has).or_else(|| Some(late()?.slot)).filter(|&at| at < self.slots.len())?;
        let is_ours = self.listeners.find(listener).and_then(|listener| sock::local_addr(listener.socket.as_fd()));
        if !sock::is_open_connection(socket.as_fd(), is_ours?.port()) || sock::accepted_anew(socket.as_fd()).is_err() {
            return None;
        }
        if !translated {
            return Some((slot, None));
        }
        let current = self.slots[slot].workers().filter_map(|worker| worker.attachment()).find(|one| of(one));
        let file =
            current.map_or_else(|| late()?.translations.as_ref(), |attachment| attachment.translations.as_ref())?;
        Some((slot, Some(file.client(socket.as_fd())?)))
    }
}
