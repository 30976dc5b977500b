//! Who has a worker's stand-ins open, where those who bound them have closed them: a parent that binds, forks the process
//! that accepts, and closes its own copy. The worker listens as long as any of its processes can.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Handler;
use crate::accept::orders::{ListenerId, Order};
use crate::direct::attach::Secret;
use crate::direct::keeping::is_keeper;
use crate::sys::{process, sock, sockets};
use crate::worker::Worker;
use crate::worker::attachment::Attachment;
use crate::worker::stand_ins::Look;

/// A child that is about to call exec(2) has for a moment what its program will not have: it is looked at once more.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Looking takes at most one part in so many of the control thread's time.
const SHARE: u32 = 10;
/// What we started has so long to follow the server that it started.
const GRACE: Duration = Duration::from_secs(1);

impl Handler<'_> {
    /// A process has closed a stand-in, and no other one is known that bound it: who else has it?
    pub(super) fn look_for_holders(&mut self, at: usize, id: ListenerId, closer: u32, now: Instant) {
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.left.looks.insert(id, Look { closer, due: now, again: false });
        }
        self.step_looks(at, now);
    }

    /// Before a bind: what the workers have closed is known then.
    pub(super) fn look_now(&mut self) {
        for at in 0..self.slots.len() {
            if let Some(direct) = self.slots[at].attachment_mut() {
                direct.left.not_before = None;
            }
            self.step_looks(at, Instant::now());
        }
    }

    /// Looks at what is due, and notices workers that listen nowhere.
    pub(super) fn step_holders(&mut self, now: Instant) -> Option<Instant> {
        for at in 0..self.slots.len() {
            self.step_looks(at, now);
        }
        let (name, stopping) = (&self.config.name, self.stopping);
        let due = self.slots.iter_mut().enumerate().flat_map(|(at, slot)| {
            let silence = if stopping { None } else { slot.step_silence(name, at, now) };
            [slot.attachment().and_then(Attachment::look_due), silence]
        });
        due.flatten().min()
    }

    fn step_looks(&mut self, at: usize, now: Instant) {
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
            None => sock::inode(self.listeners.find(id)?.socket.as_fd()),
        };
        let mut wanted: Vec<_> = due.iter().filter_map(|(&id, look)| Some((inode(id)?, id, look.closer))).collect();
        let mut found: BTreeMap<ListenerId, u32> = BTreeMap::new();
        let roots = direct.sessions.same().chain([server.pid]);
        let processes: BTreeSet<u32> = roots.flat_map(process::descendants).collect();
        for pid in processes.into_iter().filter(|&pid| !(direct.is_kept() && is_keeper(pid))) {
            if wanted.iter().all(|&(_, _, closer)| closer == pid) {
                continue;
            }
            for open in sockets::sockets(pid) {
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
            if direct.lease(pid, server.pid) {
                self.state.watch.push((pid, direct.secret));
            }
            if let Some(look) = due.get(&id).filter(|look| !look.again) {
                direct.left.looks.insert(id, Look { due: now + RETRY_AFTER, again: true, ..*look });
            }
        }
        for id in due.into_keys().filter(|id| !found.contains_key(id)) {
            self.unlistened(at, id, now);
        }
    }

    /// Nobody of a worker has a stand-in any more.
    pub(super) fn unlistened(&mut self, at: usize, id: ListenerId, now: Instant) {
        let Some(worker) = &mut self.slots[at].current else { return };
        let worker_id = worker.id;
        let Some(direct) = worker.attachment_mut() else { return };
        direct.forget(id);
        if direct.listening.remove(&id) {
            self.context.orders.send(Order::Unlistens { worker: worker_id, listener: id });
        }
        if direct.listening.is_empty() && direct.left.silent.is_none() {
            direct.left.silent = Some((now, false));
        }
        worker.queues.retain(|queue| queue.strong_count() > 0);
        self.closed(at, id, now);
    }

    /// Processes with stand-ins whose end nobody watches yet, each with its worker's secret.
    pub fn take_unwatched(&mut self) -> Vec<(u32, Secret)> {
        std::mem::take(&mut self.state.watch)
    }

    /// A process is gone that held a lease, or had stand-ins open.
    pub fn ended(&mut self, pid: u32, secret: Secret, now: Instant) {
        let of = |worker: &Worker| worker.attachment().is_some_and(|attachment| attachment.secret == secret);
        let retiring = self.slots.iter_mut().flat_map(|slot| &mut slot.retiring).map(|old| &mut old.worker);
        if let Some(attachment) = retiring.into_iter().find(|worker| of(worker)).and_then(Worker::attachment_mut) {
            attachment.leased.remove(&pid);
            attachment.pid = attachment.pid.filter(|&first| first != pid).or(attachment.leased.first().copied());
            return;
        }
        let Some(at) = self.slots.iter().position(|slot| slot.current.as_ref().is_some_and(of)) else { return };
        let Some((server, direct)) = self.slots[at].direct_mut() else { return };
        // Of a process that we started we hear otherwise.
        let started = server.pid == pid;
        if !started {
            let left =
                direct.bound.iter_mut().filter_map(|(&id, pids)| (pids.remove(&pid) && pids.is_empty()).then_some(id));
            for id in left.collect::<Vec<_>>() {
                self.look_for_holders(at, id, pid, now);
            }
        }
        let Some(direct) = self.slots[at].attachment_mut() else { return };
        direct.leased.remove(&pid);
        direct.adopted.remove(&pid);
        if direct.pid == Some(pid) {
            direct.pid = direct.leased.first().copied();
        }
        if direct.leased.is_empty() && !started {
            direct.abandoned = Some(now + GRACE);
        }
    }
}
