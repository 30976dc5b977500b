//! Who has a worker's stand-ins open, where those who bound them have closed them: a parent that binds, forks the process
//! that accepts, and closes its own copy. The worker listens as long as any of its processes can.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::binding::find;
use crate::accept::orders::{ListenerId, Order};
use crate::direct::attach::Secret;
use crate::service::lifecycle::Phase;
use crate::service::slot::Slot;
use crate::service::{Context, Service};
use crate::sys::{process, sock};
use crate::worker::attachment::Attachment;
use crate::worker::server::StopRequest;
use crate::worker::stand_ins::Look;

/// A child that is about to call exec(2) has for a moment what its program will not have: it is looked at once more.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Looking takes at most one part in so many of the control thread's time.
const SHARE: u32 = 10;
/// A worker that listens nowhere for so long is not online.
const SILENCE: Duration = Duration::from_secs(1);

impl Slot {
    fn holders_due(&self, stopping: bool) -> Option<Instant> {
        let look = self.attachment().and_then(Attachment::look_due);
        look.into_iter().chain(self.silence_due().filter(|_| !stopping)).min()
    }

    /// When its worker is said to listen nowhere; `None` where it listens, that was said, or it need not listen: it is not
    /// online (yet), or was told to end.
    fn silence_due(&self) -> Option<Instant> {
        let (server, direct) = self.current.as_ref()?.direct()?;
        let (since, said) = direct.left.silent?;
        // A worker of Node's cluster may listen on what only its like share.
        let elsewhere = server.ipc.as_ref().is_some_and(|ipc| ipc.listens);
        let listens = matches!(self.lifecycle.phase, Phase::Online { .. })
            && server.stop_request == StopRequest::NotSent
            && !elsewhere;
        (listens && !said).then_some(since + SILENCE)
    }

    /// Whether its worker has closed all that it listened on.
    pub fn is_silent(&self) -> bool {
        self.attachment().is_some_and(|direct| direct.left.silent.is_some_and(|(_, said)| said))
    }
}

impl Service {
    /// A process has closed a stand-in, and no other one is known that bound it: who else has it?
    pub(in crate::service) fn look_for_holders(
        &mut self,
        at: usize,
        id: ListenerId,
        closer: u32,
        context: &Context,
        now: Instant,
    ) {
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.left.looks.insert(id, Look { closer, due: now, again: false });
        }
        self.step_looks(at, context, now);
    }

    /// Before a bind: what the workers have closed is known then.
    pub(in crate::service) fn look_now(&mut self, context: &Context) {
        for at in 0..self.slots.len() {
            if let Some(direct) = self.slots[at].attachment_mut() {
                direct.left.not_before = None;
            }
            self.step_looks(at, context, Instant::now());
        }
    }

    /// Looks at what is due, and notices workers that listen nowhere.
    pub(in crate::service) fn step_holders(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        for at in 0..self.slots.len() {
            self.step_looks(at, context, now);
            self.step_silence(at, now);
        }
        self.slots.iter().filter_map(|slot| slot.holders_due(self.stop.is_some())).min()
    }

    fn step_looks(&mut self, at: usize, context: &Context, now: Instant) {
        let slot = &mut self.slots[at];
        let Some((server, direct)) = slot.direct_mut() else { return };
        if direct.left.looks.is_empty() || direct.left.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        let looks = std::mem::take(&mut direct.left.looks);
        let (due, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = looks.into_iter().partition(|(_, look)| look.due <= now);
        direct.left.looks = rest;
        if due.is_empty() {
            return;
        }
        let begin = Instant::now();
        // Before the look: whoever closes it after that says so.
        direct.page.report_closes(true);
        let inode = |id: ListenerId| match direct.queues.get(&id) {
            Some(queue) => queue.inode(),
            None => sock::inode(find(&self.listeners, id)?.socket.as_fd()),
        };
        let mut wanted: Vec<_> = due.iter().filter_map(|(&id, look)| Some((inode(id)?, id, look.closer))).collect();
        let mut found: BTreeMap<ListenerId, u32> = BTreeMap::new();
        for pid in process::descendants(server.pid) {
            if wanted.iter().all(|&(_, _, closer)| closer == pid) {
                continue;
            }
            for open in process::sockets(pid) {
                wanted.retain(|&(inode, id, closer)| {
                    let has = inode == open && closer != pid;
                    if has {
                        found.insert(id, pid);
                    }
                    !has
                });
            }
        }
        direct.left.inherited |= !found.is_empty();
        direct.page.report_closes(direct.left.inherited);
        direct.left.not_before = Some(now + begin.elapsed() * SHARE);
        for (&id, &pid) in &found {
            direct.bound.insert(id, BTreeSet::from([pid]));
            if direct.leased.insert(pid) {
                self.opened.watch.push((pid, direct.secret));
            }
            if let Some(look) = due.get(&id).filter(|look| !look.again) {
                direct.left.looks.insert(id, Look { due: now + RETRY_AFTER, again: true, ..*look });
            }
        }
        for (id, look) in due.into_iter().filter(|(id, _)| !found.contains_key(id)) {
            self.unlistened(at, id, look.closer, context, now);
        }
    }

    /// Nobody of a worker has a stand-in any more.
    pub(in crate::service) fn unlistened(
        &mut self,
        at: usize,
        id: ListenerId,
        closer: u32,
        context: &Context,
        now: Instant,
    ) {
        let Some(worker) = &mut self.slots[at].current else { return };
        let worker_id = worker.id;
        let Some(direct) = worker.attachment_mut() else { return };
        direct.bound.remove(&id);
        direct.queues.remove(&id);
        if direct.listening.remove(&id) {
            context.orders.send(Order::Unlistens { worker: worker_id, listener: id });
        }
        if direct.listening.is_empty() && direct.left.silent.is_none() {
            direct.left.silent = Some((now, false));
        }
        worker.queues.retain(|queue| queue.strong_count() > 0);
        self.closed(at, id, closer, context, now);
    }

    /// A process is gone that had stand-ins open.
    pub(in crate::service) fn holder_ended(&mut self, pid: u32, secret: Secret, context: &Context, now: Instant) {
        let of = |slot: &Slot| slot.attachment().is_some_and(|direct| direct.secret == secret);
        let Some(at) = self.slots.iter().position(of) else { return };
        // Of the end of what we started we hear otherwise.
        if self.slots[at].server().is_none_or(|server| server.pid == pid) {
            return;
        }
        let Some(direct) = self.slots[at].attachment_mut() else { return };
        let left =
            direct.bound.iter_mut().filter_map(|(&id, pids)| (pids.remove(&pid) && pids.is_empty()).then_some(id));
        for id in left.collect::<Vec<_>>() {
            self.look_for_holders(at, id, pid, context, now);
        }
    }

    /// It listens (again).
    pub(in crate::service) fn listens_again(&mut self, at: usize) {
        let Some(direct) = self.slots[at].attachment_mut() else { return };
        if let Some((_, true)) = direct.left.silent.take() {
            self.slots[at].history.reason = None;
            info!(service = %self.config.name, slot = at, "worker listens again");
        }
    }

    fn step_silence(&mut self, at: usize, now: Instant) {
        let slot = &mut self.slots[at];
        if self.stop.is_some() || slot.silence_due().is_none_or(|due| now < due) {
            return;
        }
        let Some((_, said)) = slot.attachment_mut().and_then(|direct| direct.left.silent.as_mut()) else { return };
        *said = true;
        slot.history.reason = Some("it has closed what it listened on".to_owned());
        let pid = slot.server().map(|server| server.pid);
        warn!(service = %self.config.name, slot = at, pid, "worker has closed what it listened on; nobody receives there");
    }
}
