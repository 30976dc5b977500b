//! The workers online and the policy's view of them, kept up so that a turn costs what happens in it and not how many
//! workers there are: only who has something on its way is looked at again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::orders::{ListenerId, WorkerId, place};
use super::policy::{Candidate, MOST_OWED, Policy, Turn, pick};
use super::roster::{Member, Returned};
use crate::handoff::QueueTx;
use crate::sys::sock::PeerAddress;

/// The workers of a service.
#[derive(Default)]
pub(super) struct Crew {
    /// By slot and generation.
    members: Vec<Member>,
    /// The policy's view of each.
    views: Vec<Candidate>,
    /// Who has to be looked at, and whether it is in that list.
    busy: Vec<usize>,
    is_busy: Vec<bool>,
    /// Who got something in this turn.
    touched: Vec<usize>,
    /// How many serve each listener, by its place.
    serving: Vec<usize>,
    /// The policy's rotation.
    turn: Turn,
}

impl Crew {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// A worker came online.
    pub fn insert(&mut self, member: Member, policy: Policy, now: Instant) {
        let at = self.members.partition_point(|other| other.id < member.id);
        self.views.insert(at, member.candidate(policy, now));
        self.members.insert(at, member);
        self.turn.inserted(at);
        self.changed();
    }

    /// One leaves.
    pub fn remove(&mut self, id: WorkerId) -> Option<Member> {
        let at = self.position(id)?;
        self.views.remove(at);
        let member = self.members.remove(at);
        self.turn.removed(at);
        self.changed();
        Some(member)
    }

    /// All leave.
    pub fn clear(&mut self) {
        self.members.clear();
        self.views.clear();
        self.changed();
    }

    /// A worker listens on one more listener.
    pub fn listens(&mut self, id: WorkerId, listener: ListenerId, queue: Arc<QueueTx>) {
        if let Some(at) = self.position(id) {
            self.members[at].listens(listener, queue);
            self.changed();
        }
    }

    /// One has closed a listener: gives up its queue.
    pub fn unlistens(&mut self, id: WorkerId, listener: ListenerId) -> Option<(&Member, Arc<QueueTx>)> {
        let at = self.position(id)?;
        let queue = self.members[at].unlistens(listener)?;
        self.changed();
        Some((&self.members[at], queue))
    }

    /// A listener is gone for good.
    pub fn forget(&mut self, listener: ListenerId) {
        for member in &mut self.members {
            member.unlistens(listener);
        }
        self.changed();
    }

    /// Rare changes: indices and counts are made anew, and everybody is looked at once.
    fn changed(&mut self) {
        self.everybody_is_busy();
        self.touched.clear();
        let most = self.members.iter().map(Member::most_listeners).max().unwrap_or(0);
        self.serving.clear();
        self.serving.extend((0..most).map(|at| self.members.iter().filter(|member| member.serves_at(at)).count()));
    }

    fn everybody_is_busy(&mut self) {
        self.busy.clear();
        self.busy.extend(0..self.members.len());
        self.is_busy.clear();
        self.is_busy.resize(self.members.len(), true);
    }

    fn position(&self, id: WorkerId) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    fn serve(&self, listener: ListenerId) -> usize {
        self.serving.get(place(listener)).copied().unwrap_or(0)
    }

    /// Whether a worker serves a listener now.
    pub fn is_served(&self, listener: ListenerId) -> bool {
        self.serve(listener) > 0
    }

    /// Those who have something on its way, or are watched for another reason.
    pub fn busy(&self) -> impl Iterator<Item = &Member> {
        self.busy.iter().filter_map(|&at| self.members.get(at))
    }

    /// Connections that they have, received or about to be.
    pub fn has(&self) -> u64 {
        self.members.iter().map(Member::has).sum()
    }

    /// Looks at who is busy; under `least-conn` at everybody, since connections end without us.
    pub fn look(&mut self, policy: Policy, now: Instant) {
        if policy == Policy::LeastConn {
            self.everybody_is_busy();
        }
        let Self { members, views, busy, is_busy, .. } = self;
        busy.retain(|&at| {
            let (member, view) = (&mut members[at], &mut views[at]);
            member.refresh();
            *view = Candidate { owed: view.owed, ..member.candidate(policy, now) };
            is_busy[at] = member.is_busy();
            is_busy[at]
        });
    }

    /// Whether anybody may get a connection.
    pub fn any_free(&self) -> bool {
        self.views.iter().any(|view| !view.stalled && view.pending < view.cap)
    }

    fn another_is_free(&self, than: usize) -> bool {
        let free = |view: &Candidate| !view.stalled && !view.behind && view.pending < view.cap;
        self.views.iter().enumerate().any(|(at, view)| at != than && free(view))
    }

    /// Puts a connection into a worker's batch, or gives it back when no worker may get one.
    pub fn place(
        &mut self,
        policy: Policy,
        listener: ListenerId,
        socket: OwnedFd,
        peer: PeerAddress,
    ) -> Option<OwnedFd> {
        let Some(at) = self.pick(policy, listener, peer) else { return Some(socket) };
        self.members[at].push(listener, socket, peer);
        self.touched.push(at);
        if !self.is_busy[at] {
            self.is_busy[at] = true;
            self.busy.push(at);
        }
        None
    }

    fn pick(&mut self, policy: Policy, listener: ListenerId, peer: PeerAddress) -> Option<usize> {
        let client = peer.ip();
        if self.serve(listener) == self.members.len() {
            return pick(policy, &mut self.views, &mut self.turn, client);
        }
        // Rare: a server does not (yet, or any more) listen here. It counts as stalled for this choice.
        let mut those_here = self.views.clone();
        for (view, member) in those_here.iter_mut().zip(&self.members) {
            view.stalled |= !member.serves(listener);
        }
        let at = pick(policy, &mut those_here, &mut self.turn, client)?;
        self.views[at] = those_here[at];
        Some(at)
    }

    /// Sends the batches. What could not be sent is appended to `returned`; whether there was such.
    pub fn flush(&mut self, now: Instant, returned: &mut Returned) -> bool {
        let mut refused = false;
        for at in self.touched.drain(..) {
            // EAGAIN and ETOOMANYREFS: the kernel's own back-pressure. Nothing is lost, all is tried again.
            refused |= self.members[at].flush(now, returned).is_err();
        }
        refused
    }

    /// The rescue thread has emptied a queue: turns that the worker did not have.
    pub fn rescued(&mut self, id: WorkerId, sockets: usize) {
        if let Some(at) = self.position(id) {
            self.members[at].rescued(sockets);
            let owed = u32::try_from(sockets).unwrap_or(MOST_OWED);
            self.views[at].owed = self.views[at].owed.saturating_add(owed).min(MOST_OWED);
        }
    }

    /// Calls `act` with each who is busy.
    pub fn each_busy(&mut self, mut act: impl FnMut(&mut Member)) {
        for &at in &self.busy {
            act(&mut self.members[at]);
        }
    }

    /// The workers that `overdue` names while another one is free, marked as stalled.
    pub fn stall(&mut self, overdue: impl Fn(&Member) -> bool, mut act: impl FnMut(&mut Member)) {
        for n in 0..self.busy.len() {
            let at = self.busy[n];
            if overdue(&self.members[at]) && self.another_is_free(at) {
                self.views[at].stalled = true;
                act(&mut self.members[at]);
            }
        }
    }
}
