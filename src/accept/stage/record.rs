//! Connections of which something has to be known, in a daemon's record.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::steps::Step;
use super::{Arrival, Stage, Staged};
use crate::accept::Context;
use crate::accept::dispatcher::ServiceDispatcher;
use crate::accept::orders::{ListenerId, WorkerId};
use crate::affinity::sessions::Change;
use crate::handoff::{Client, address_bytes, address_of};
use crate::record::Moment;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StagedRecord {
    /// The kernel's address of its client.
    peer: Vec<u8>,
    looked: usize,
    /// What has to be known next, since when it is here, and until when; `None`: it has passed.
    step: Option<(Step, Moment, Moment)>,
}

/// The same with what is recorded of every connection.
type Recorded<'a> = (ListenerId, &'a OwnedFd, &'a Client, StagedRecord);

fn recorded(arrival: &Arrival, step: Option<(Step, Moment, Moment)>) -> Recorded<'_> {
    let Arrival { listener, socket, client, peer, looked } = arrival;
    (*listener, socket, client, StagedRecord { peer: address_bytes(peer), looked: *looked, step })
}

impl Stage {
    pub fn all(&self) -> impl Iterator<Item = Recorded<'_>> {
        let passed = self.passed.all().map(|arrival| recorded(arrival, None));
        let waiting = self.waiting.iter().map(|(_, Staged { arrival, rules: _, step, since, deadline })| {
            recorded(arrival, Some((*step, (*since).into(), (*deadline).into())))
        });
        passed.chain(waiting)
    }

    /// Sessions with their workers, the oldest first.
    pub fn sessions(&self) -> impl Iterator<Item = (u64, WorkerId)> {
        self.desk.sessions.all().into_iter()
    }

    pub fn change(&mut self, worker: WorkerId, change: Change) {
        self.desk.sessions.change(worker, change);
    }
}

impl ServiceDispatcher {
    /// A connection that was here before another program took the place of the one that had it: it goes on with the step at which
    /// it was.
    pub(in crate::accept) fn stage_again(
        &mut self,
        (listener, socket, client): (ListenerId, OwnedFd, Client),
        StagedRecord { peer, looked, step }: StagedRecord,
        cx: &Context,
    ) {
        self.stage.desk.translates = self.workers.translate();
        let arrival = Arrival { listener, socket, client, peer: address_of(&peer), looked };
        match (step, self.rules.stage.clone()) {
            (Some((step, since, deadline)), Some(rules)) => {
                let (since, deadline) = (Instant::from(since), Instant::from(deadline));
                self.stay(Staged { arrival, rules, step, since, deadline }, cx);
            }
            _ => self.stage.pass(arrival, cx),
        }
    }
}
