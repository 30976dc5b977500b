//! What the accept thread has of a service, in a daemon's record: connections that have no worker yet, and what workers were given.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use serde::{Deserialize, Serialize};

use super::Context;
use super::dispatcher::ServiceDispatcher;
use super::line::Held;
use super::orders::{ListenerId, WorkerId};
use super::stage::StagedRecord;
use crate::affinity::sessions::Change;
use crate::handoff::page::CountersPage;
use crate::handoff::{Client, ClientRecord};
use crate::record::{Fd, Found, Kept, Moment};

/// A connection that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting<S> {
    listener: ListenerId,
    socket: S,
    client: ClientRecord,
    place: Place,
}

/// Where it waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Place {
    /// For a worker, since when, and the slot whose worker gave it back between two requests.
    Line(Moment, Option<u32>),
    Stage(StagedRecord),
}

/// A worker by its slot and generation.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Given {
    slot: u32,
    generation: u64,
    /// Connections that it was given in all, and how many of these were taken back.
    sent: u64,
    taken_back: u64,
}

/// `S`: a descriptor, by its number or found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Accepts<S> {
    /// Those in the line in their order.
    waiting: Vec<Waiting<S>>,
    given: Vec<Given>,
    /// Workers that get nothing new and still have connections, with `--max-conns`.
    #[serde(default)]
    leaving: Vec<Given>,
    /// By digest, with slot and generation, oldest first.
    sessions: Vec<(u64, u32, u64)>,
}

pub type ServiceAccepts = Accepts<Fd>;

impl ServiceAccepts {
    /// # Errors
    /// When a connection is not there.
    pub fn found(self, found: &mut Found) -> io::Result<Accepts<OwnedFd>> {
        let Self { waiting, given, leaving, sessions } = self;
        let waiting = waiting.into_iter().map(|Waiting { listener, socket, client, place }| {
            Ok(Waiting { listener, socket: found.take(socket)?, client, place })
        });
        Ok(Accepts { waiting: waiting.collect::<io::Result<_>>()?, given, leaving, sessions })
    }
}

/// What the accept thread tells before it stands still.
#[derive(Debug)]
pub struct Told {
    pub services: Vec<ServiceAccepts>,
    pub kept: Kept,
}

/// Has the accept thread tell what it has, and then wait: for the end of the program, or until it is told to go on.
#[derive(Debug)]
pub struct StandStill {
    /// `Err`: why it cannot now; then it goes on.
    pub told: Sender<Result<Told, String>>,
    pub go_on: Receiver<()>,
}

impl ServiceDispatcher {
    /// # Errors
    /// Why not now.
    pub(super) fn record(&self, kept: &mut Kept) -> Result<ServiceAccepts, String> {
        let Self {
            id: _,
            rules: _,
            stats: _,
            listeners: _,
            workers,
            line,
            counted: _,
            stage,
            blocked: _,
            rescues,
            paused: _,
            until_bell: _,
            pace: _,
            limit,
            phase: _,
            overflow: _,
            waited: _,
        } = self;
        if *rescues > 0 {
            return Err("connections are being taken back from a worker".to_owned());
        }
        let mut held: Vec<(i64, &Held)> = line.all().chain(workers.all_in_line()).collect();
        held.sort_by_key(|(ticket, _)| *ticket);
        let mut waiting: Vec<_> = held
            .into_iter()
            .map(|(_, Held { listener, socket, client, since, watched: _, slot })| Waiting {
                listener: *listener,
                socket: kept.keep(socket),
                client: client.into(),
                place: Place::Line((*since).into(), *slot),
            })
            .collect();
        for (listener, socket, client, staged) in stage.all() {
            let socket = kept.keep(socket);
            waiting.push(Waiting { listener, socket, client: client.into(), place: Place::Stage(staged) });
        }
        let given = workers.iter().map(|worker| {
            let (sent, taken_back) = worker.given();
            Given { slot: worker.id.slot, generation: worker.id.generation, sent, taken_back }
        });
        let leaving = limit.all().map(|(WorkerId { service: _, slot, generation }, sent)| Given {
            slot,
            generation,
            sent,
            taken_back: 0,
        });
        let sessions = stage.sessions().map(|(session, worker)| (session, worker.slot, worker.generation)).collect();
        Ok(Accepts { waiting, given: given.collect(), leaving: leaving.collect(), sessions })
    }

    /// Goes on with what the program before had.
    pub(super) fn take_over(
        &mut self,
        accepts: Accepts<OwnedFd>,
        pages: Vec<(WorkerId, Arc<CountersPage>)>,
        now: Instant,
        cx: &Context,
    ) {
        let Accepts { waiting, given, leaving, sessions } = accepts;
        for (id, page) in pages {
            let of = |one: &&Given| (one.slot, one.generation) == (id.slot, id.generation);
            if let Some(one) = leaving.iter().find(of) {
                self.limit.left_before(id, page, one.sent);
            }
        }
        for Given { slot, generation, sent, taken_back } in given {
            let id = WorkerId { service: self.id, slot, generation };
            self.workers.was_given(id, sent, taken_back, now);
        }
        for (session, slot, generation) in sessions {
            let id = WorkerId { service: self.id, slot, generation };
            self.stage.change(id, Change::Opened(session));
        }
        for Waiting { listener, socket, client, place } in waiting {
            let client: Client = client.into();
            match place {
                Place::Line(since, slot) => {
                    let ticket = self.line.ticket();
                    let held = Held { listener, socket, client, since: since.into(), watched: false, slot };
                    self.hold(ticket, held, None, cx);
                }
                Place::Stage(staged) => self.stage_again((listener, socket, client), staged, cx),
            }
        }
        self.show_waiting();
    }
}
