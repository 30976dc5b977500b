//! Slots in a daemon's record.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::lifecycle::{Lifecycle, LifecycleRecord, Phase};
use super::retiring::Retiring;
use super::rollout::RetireStage;
use super::{History, Slot};
use crate::accept::orders::{Order, SlotStats, WorkerId};
use crate::handoff::page::{CountersPage, Counts};
use crate::record::{Found, Kept, Moment};
use crate::worker::children::Owner;
use crate::worker::exit::LastExit;
use crate::worker::record::{Libraries, Queues, WorkerRecord};
use crate::worker::relay::{Relay, RelayRecord};
use crate::worker::totals::Totals;
use crate::worker::{Context, Kind, Worker};

#[derive(Debug, Serialize, Deserialize)]
pub struct SlotRecord {
    lifecycle: LifecycleRecord,
    generation: u64,
    current: Option<WorkerRecord>,
    #[serde(default)]
    retiring: Vec<RetiringRecord>,
    #[serde(default)]
    finishing: Vec<RelayRecord>,
    stop_first: bool,
    drain: bool,
    weight: u16,
    last_exit: Option<(String, u8)>,
    reason: Option<String>,
    last_address: Option<SocketAddr>,
    insisted: Option<u16>,
    connections: u64,
    rescued: u64,
    moved: u64,
    past: Counts,
}

/// A worker on its way out, which the accept thread has forgotten.
#[derive(Debug, Serialize, Deserialize)]
struct RetiringRecord {
    worker: WorkerRecord,
    stage: StageRecord,
    online: Moment,
}

#[derive(Debug, Serialize, Deserialize)]
enum StageRecord {
    Draining(Moment),
    Stopping(Moment),
    Killed,
}

impl Retiring {
    fn record(&self, libraries: &mut Libraries, kept: &mut Kept) -> Result<RetiringRecord, String> {
        let Self { worker, stage, online, out_of_rotation } = self;
        let stage = match stage {
            RetireStage::Draining(since) if *out_of_rotation => StageRecord::Draining((*since).into()),
            RetireStage::Stopping(since) if *out_of_rotation => StageRecord::Stopping((*since).into()),
            RetireStage::Killed => StageRecord::Killed,
            RetireStage::Serving | RetireStage::Draining(_) | RetireStage::Stopping(_) => {
                return Err("a worker is being replaced".to_owned());
            }
        };
        Ok(RetiringRecord { worker: worker.record(libraries, kept)?, stage, online: (*online).into() })
    }

    fn adopt(
        RetiringRecord { worker, stage, online }: RetiringRecord,
        owner: Owner,
        libraries: &Libraries,
        found: &mut Found,
        context: &Context,
    ) -> io::Result<Self> {
        let stage = match stage {
            StageRecord::Draining(since) => RetireStage::Draining(since.into()),
            StageRecord::Stopping(since) => RetireStage::Stopping(since.into()),
            StageRecord::Killed => RetireStage::Killed,
        };
        // Its relay worker's queues are closed: it gets nothing more.
        let (worker, _) = Worker::adopt(worker, owner, libraries, found, context)?;
        Ok(Self { worker, stage, online: online.into(), out_of_rotation: true })
    }
}

impl Slot {
    /// # Errors
    /// Why it cannot be taken over now.
    pub fn record(&self, libraries: &mut Libraries, kept: &mut Kept) -> Result<SlotRecord, String> {
        let Self {
            lifecycle,
            generation,
            current,
            retiring,
            finishing,
            stop_first,
            drain,
            weight,
            history:
                History {
                    last_exit,
                    reason,
                    last_address,
                    replace_reason,
                    kill_reason,
                    failed_successor: _,
                    successor_trouble,
                    // Known to who began it, unless that is under way.
                    reload_failed: _,
                    insisted,
                    stall_logged: _,
                    rescue_logged: _,
                },
            stats,
            totals,
        } = self;
        if matches!(lifecycle.phase, Phase::Stopping) {
            return Err("a worker is being stopped".to_owned());
        }
        if matches!(lifecycle.phase, Phase::Launching { .. }) {
            return Err("a worker is being started".to_owned());
        }
        if replace_reason.is_some() || kill_reason.is_some() || successor_trouble.is_some() {
            return Err("a worker is being replaced".to_owned());
        }
        let SlotStats { connections, rescued, moved, moving: _ } = &**stats;
        Ok(SlotRecord {
            lifecycle: lifecycle.record(),
            generation: *generation,
            current: current.as_ref().map(|worker| worker.record(libraries, kept)).transpose()?,
            retiring: retiring.iter().map(|old| old.record(libraries, kept)).collect::<Result<_, _>>()?,
            finishing: finishing.iter().map(|relay| relay.record(kept)).collect::<Result<_, _>>()?,
            stop_first: *stop_first,
            drain: *drain,
            weight: *weight,
            last_exit: last_exit.as_ref().map(|LastExit { text, code }| (text.clone(), *code)),
            reason: reason.clone(),
            last_address: *last_address,
            insisted: *insisted,
            connections: connections.load(Relaxed),
            rescued: rescued.load(Relaxed),
            moved: moved.load(Relaxed),
            past: totals.without(&self.pages()),
        })
    }

    /// # Errors
    /// When a descriptor is not there.
    pub fn adopt(
        record: SlotRecord,
        owner: Owner,
        libraries: &Libraries,
        found: &mut Found,
        context: &Context,
    ) -> io::Result<(Self, Queues)> {
        let SlotRecord {
            lifecycle,
            generation,
            current,
            retiring,
            finishing,
            stop_first,
            drain,
            weight,
            last_exit,
            reason,
            last_address,
            insisted,
            connections,
            rescued,
            moved,
            past,
        } = record;
        let (current, queues) = match current {
            Some(worker) => {
                let (worker, queues) = Worker::adopt(worker, owner, libraries, found, context)?;
                (Some(worker), queues)
            }
            None => (None, Queues::new()),
        };
        let retiring = retiring.into_iter().map(|old| Retiring::adopt(old, owner, libraries, found, context));
        let retiring = retiring.collect::<io::Result<_>>()?;
        let finishing = finishing.into_iter().map(|relay| {
            let relay = Relay::adopt(relay, found, context)?;
            context.children.add(relay.pid, owner);
            Ok(relay)
        });
        let finishing = finishing.collect::<io::Result<_>>()?;
        let stats = SlotStats::default();
        stats.connections.store(connections, Relaxed);
        stats.rescued.store(rescued, Relaxed);
        stats.moved.store(moved, Relaxed);
        let last_exit = last_exit.map(|(text, code)| LastExit { text, code });
        let mut slot = Self {
            lifecycle: Lifecycle::adopt(lifecycle),
            generation,
            current,
            retiring,
            finishing,
            stop_first,
            drain,
            weight,
            history: History { last_exit, reason, last_address, insisted, ..History::default() },
            stats: Arc::new(stats),
            totals: Totals::from_past(past),
        };
        slot.pages().iter().for_each(|page| slot.totals.track(page));
        Ok((slot, queues))
    }

    /// Those on which its workers count.
    fn pages(&self) -> Vec<Arc<CountersPage>> {
        let of_workers = self.workers().filter_map(Worker::page);
        of_workers.chain(self.finishing.iter().map(|relay| &relay.page)).cloned().collect()
    }

    /// Relay workers that have connections.
    pub fn relays(&self) -> impl Iterator<Item = &Relay> {
        self.workers().filter_map(Worker::relay).chain(&self.finishing)
    }

    /// Workers on their way out, and the pages on which they count.
    pub fn leaving(&self) -> Vec<(WorkerId, Arc<CountersPage>)> {
        let of = |old: &Retiring| Some((old.worker.id, old.worker.page()?.clone()));
        self.retiring.iter().filter_map(of).collect()
    }

    /// What gives its worker, if it is online, to the accept thread.
    pub fn give(&mut self, queues: Queues) -> Option<Order> {
        if !self.is_online() {
            return None;
        }
        self.current.as_mut()?.give(queues, &self.stats)
    }
}

impl Worker {
    /// The page on which it counts.
    fn page(&self) -> Option<&Arc<CountersPage>> {
        match &self.kind {
            Kind::Direct { attachment, .. } => Some(&attachment.page),
            Kind::Relay { relay, .. } => relay.as_ref().map(|relay| &relay.page),
            Kind::NoPort { .. } => None,
        }
    }
}
