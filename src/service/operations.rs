//! What people ask of a running service: reload, restart, stop, start, scale; what is under way, and what became of it.

use std::collections::VecDeque;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::info;

use super::Context;
use super::awaited::{Awaited, Verb};
use super::draining::Force;
use super::pausing::Paused;
use super::reload::Reloading;
use super::shared::SharedServer;
use super::upstreams::Upstreams;
use super::weights::Of;
use crate::accept::orders::ServiceId;
use crate::config::ServiceConfig;
use crate::config::instances::MAX_INSTANCES;
use crate::slot::Slot;
use crate::slot::lifecycle::{Backoff, Event, Phase};
use crate::slot::rollout::Times;

/// The files of `--allow` and `--deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Networks {
    /// Were read with the configuration file.
    AreRead,
    /// There is no such file.
    ToRead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Rolling; where all slots share a server, and of a service that is stopped: as `Restart`.
    Reload(Networks),
    /// Rolling, of one slot.
    ReloadSlot(u32),
    /// All workers end and come anew; the listeners stay, clients wait. A service that is stopped is started.
    Restart,
    /// One slot's worker ends and comes anew; the others stay.
    RestartSlot(u32),
    /// Clients are refused until `Start`; the daemon goes on.
    Stop,
    Start,
    Scale(u32),
    /// No new connections for a slot or upstream.
    Drain(Of, Force),
    /// Takes the mark from a slot or upstream, or from all.
    Undrain(Option<Of>),
    /// Sets the weight of a slot or upstream.
    Weigh(Of, u16, Force),
    /// Of a service that has just come into the configuration.
    FirstStart,
}

/// Names an operation of a service to the client that waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The operation; `None`: every operation of the service.
    pub of: Option<Ticket>,
    pub progress: Progress,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A line on the way.
    Step(String),
    /// It is done: a last line.
    Done(String),
    /// It failed: why.
    Failed(String),
}

/// What operations change.
#[derive(Debug)]
pub struct Workers<'a> {
    pub id: ServiceId,
    pub config: &'a mut ServiceConfig,
    pub slots: &'a mut Vec<Slot>,
    pub shared: &'a mut Option<SharedServer>,
    pub upstreams: &'a mut Option<Upstreams>,
    pub stopping: bool,
    /// It is stopping because it is no longer in the configuration.
    pub removed: bool,
    pub context: &'a Context,
    pub now: Instant,
}

/// What an operation does to the listeners.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// All workers are new: listeners that are no longer wanted close.
    CloseLeaving,
    /// None listens any more.
    AllClosed,
}

#[derive(Debug, Default)]
pub struct Operations {
    pub(super) reload: Option<Reloading>,
    pub(super) paused: Paused,
    /// Operations that end when their workers are online.
    pub(super) awaiting: Vec<Awaited>,
    /// The stop under way.
    pub(super) stop: Option<Ticket>,
    /// When it was stopped, until all that was accepted by then has a worker.
    pub(super) emptying: Option<Instant>,
    /// Oldest first; the daemon takes it.
    pub(super) news: VecDeque<News>,
    pub(super) effects: Vec<Effect>,
    /// Those that succeeded.
    pub(super) reloads: u64,
    /// Operations begun.
    tickets: u64,
}

/// Operations in a daemon's record: none is under way.
#[derive(Debug, Serialize, Deserialize)]
pub struct OperationsRecord {
    /// Whether the service was stopped; `None`: it comes after others.
    stopped: Option<bool>,
    reloads: u64,
    tickets: u64,
}

impl Operations {
    /// # Errors
    /// What is under way.
    pub fn record(&self) -> Result<OperationsRecord, String> {
        let Self { reload, paused, awaiting, stop, emptying, news: _, effects: _, reloads, tickets } = self;
        self.is_free(false)?;
        if reload.is_some() || !awaiting.is_empty() || stop.is_some() || emptying.is_some() {
            return Err("workers are being started or replaced".to_owned());
        }
        let stopped = match paused {
            Paused::No => Some(false),
            Paused::After => None,
            Paused::Stopping | Paused::Yes => Some(true),
        };
        Ok(OperationsRecord { stopped, reloads: *reloads, tickets: *tickets })
    }

    pub fn adopt(OperationsRecord { stopped, reloads, tickets }: OperationsRecord) -> Self {
        let paused = match stopped {
            Some(false) => Paused::No,
            Some(true) => Paused::Yes,
            None => Paused::After,
        };
        Self { paused, reloads, tickets, ..Self::default() }
    }

    /// # Errors
    /// Why it cannot be now.
    pub fn begin(&mut self, operation: Operation, workers: &mut Workers) -> Result<Ticket, String> {
        match operation {
            Operation::FirstStart => {}
            // They replace no worker, and may come while others do.
            Operation::Drain(..) | Operation::Undrain(_) | Operation::Weigh(..) if !workers.stopping => {}
            _ => self.is_free(workers.stopping)?,
        }
        let one = match operation {
            Operation::ReloadSlot(slot) | Operation::RestartSlot(slot) => Some(workers.place(slot)?),
            _ => None,
        };
        if self.paused != Paused::No && (one.is_some() || matches!(operation, Operation::Scale(_))) {
            return Err("service is stopped; run `roundsman start` first".to_owned());
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        match (operation, one) {
            (Operation::FirstStart, _) => self.awaiting.push(workers.awaited(ticket, Verb::Started)),
            // It has no workers to replace, and starts in its turn.
            (Operation::Reload(_), _) if self.paused == Paused::After => {
                self.awaiting.push(workers.awaited(ticket, Verb::Started));
            }
            (Operation::Reload(_), _) if self.paused == Paused::Yes => {
                self.start(ticket, Verb::StartedStopped, workers);
            }
            (Operation::Restart, _) if matches!(self.paused, Paused::Yes | Paused::After) => {
                self.start(ticket, Verb::StartedStopped, workers);
            }
            (Operation::Reload(_) | Operation::ReloadSlot(_), _) => self.begin_reload(ticket, one, workers),
            (Operation::Restart, _) => {
                info!(name: "restarting", service = %workers.config.name, "restarting");
                self.begin_all_again(ticket, Verb::Restarted, workers);
            }
            (Operation::RestartSlot(slot), Some(at)) => {
                info!(name: "restarting", service = %workers.config.name, slot, "restarting");
                let (backoff, context, now) = (workers.backoff(), workers.context, workers.now);
                workers.slots[at].begin_again(context, &backoff, now);
                self.awaiting.push(workers.awaited(ticket, Verb::Restarted).of_slot(at));
            }
            (Operation::RestartSlot(_), None) => {}
            (Operation::Stop, _) => self.pause(ticket, workers),
            (Operation::Start, _) => self.start(ticket, Verb::Started, workers),
            (Operation::Scale(to), _) => self.scale(ticket, to, workers)?,
            (Operation::Drain(of, force), _) => self.drain(ticket, (of, force), workers)?,
            (Operation::Weigh(of, weight, force), _) => self.weigh(ticket, (of, weight, force), workers)?,
            (Operation::Undrain(of), _) => self.undrain(ticket, of, workers)?,
        }
        Ok(ticket)
    }

    /// # Errors
    /// Why no other operation may begin.
    pub fn is_free(&self, stopping: bool) -> Result<(), String> {
        match (stopping, self.is_reloading(), self.paused) {
            (true, _, _) => Err("the daemon is stopping".to_owned()),
            (_, true, _) => Err("a reload is under way".to_owned()),
            (_, _, Paused::Stopping) => Err("it is being stopped".to_owned()),
            (false, false, Paused::Yes | Paused::No | Paused::After) => Ok(()),
        }
    }

    /// Whether workers are being replaced, started or stopped because somebody asked for it.
    pub fn is_busy(&self) -> bool {
        self.reload.is_some() || !self.awaiting.is_empty() || self.paused != Paused::No
    }

    pub fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.awaiting.iter().any(|awaited| awaited.verb == Verb::Reloaded)
    }

    /// Goes on with what is under way; when there is more to do by the clock alone.
    pub fn step(&mut self, workers: &mut Workers) -> Option<Instant> {
        let due =
            [self.step_reload(workers), self.step_pause(workers), self.step_scale(workers), self.step_awaited(workers)];
        due.into_iter().flatten().min()
    }

    /// Before the daemon ends by itself: settles what this end decides.
    pub fn step_last(&mut self, workers: &mut Workers) {
        self.step_reload(workers);
        self.step_awaited(workers);
    }

    pub(super) fn say(&mut self, of: Ticket, progress: Progress) {
        self.news.push_back(News { of: Some(of), progress });
    }

    /// All workers end and come anew, and with them a server that they share.
    pub(super) fn begin_all_again(&mut self, ticket: Ticket, verb: Verb, workers: &mut Workers) {
        let (backoff, context, now) = (workers.backoff(), workers.context, workers.now);
        workers.slots.iter_mut().for_each(|slot| slot.begin_again(context, &backoff, now));
        workers.shared.iter_mut().for_each(|shared| shared.end(now));
        self.awaiting.push(workers.awaited(ticket, verb));
    }

    fn scale(&mut self, ticket: Ticket, to: u32, workers: &mut Workers) -> Result<(), String> {
        if !(1..=MAX_INSTANCES).contains(&to) {
            return Err(format!(
                "the number of slots must be between 1 and {MAX_INSTANCES}; to stop all workers: roundsman stop"
            ));
        }
        workers.may_shrink(to as usize)?;
        let (before, backoff, context, now) = (workers.slots.len(), workers.backoff(), workers.context, workers.now);
        info!(name: "scaling", service = %workers.config.name, from = before, to, "scaling");
        workers.config.instances = to;
        self.awaiting.push(workers.awaited(ticket, Verb::Scaled));
        let to = to as usize;
        workers.slots.extend((before..to).map(|_| Slot::new(now)));
        for slot in workers.slots.iter_mut().take(to).filter(|slot| slot.lifecycle.phase == Phase::Gone) {
            slot.lifecycle = slot.lifecycle.again(now);
        }
        workers.slots.iter_mut().skip(to).for_each(|slot| slot.dismiss(context, &backoff, now, now));
        Ok(())
    }

    /// Slots above the number wanted go when nothing of them is left.
    fn step_scale(&self, workers: &mut Workers) -> Option<Instant> {
        if workers.stopping || self.paused != Paused::No {
            return None;
        }
        let (backoff, now, mut due) = (workers.backoff(), workers.now, None);
        let wanted = workers.config.instances as usize;
        while workers.slots.len() > wanted {
            let Some(slot) = workers.slots.last_mut().filter(|slot| slot.is_empty()) else { break };
            slot.lifecycle.apply(Event::Emptied, now, &backoff);
            if std::mem::take(&mut slot.drain) | (std::mem::replace(&mut slot.weight, 1) != 1) {
                // A slot that comes in its place is another one.
                workers.pass_weight(workers.slots.len() - 1);
            }
            workers.slots.pop();
            due = Some(now);
        }
        // Wanted again while it was still on its way out.
        for slot in workers.slots.iter_mut().take(wanted).filter(|slot| slot.lifecycle.phase == Phase::Stopping) {
            if slot.is_empty() {
                slot.lifecycle = slot.lifecycle.again(now);
                due = Some(now);
            }
        }
        due
    }
}

impl Workers<'_> {
    pub fn backoff(&self) -> Backoff {
        Backoff::of(&self.config.limits)
    }

    pub(super) fn awaited(&self, ticket: Ticket, verb: Verb) -> Awaited {
        Awaited::new(ticket, verb, &Times::of(&self.config.limits), self.now)
    }

    /// The index of a slot that stays.
    pub(super) fn place(&self, slot: u32) -> Result<usize, String> {
        let count = self.slots.len().min(self.config.instances as usize);
        let at = slot as usize;
        if at < count { Ok(at) } else { Err(no_slot(&self.config.name, slot, count)) }
    }
}

/// That a service has no such slot.
pub fn no_slot(service: &str, slot: u32, count: usize) -> String {
    match count {
        0 | 1 => format!("{service} has no slot {slot}; its only one is 0"),
        count => format!("{service} has no slot {slot}; it has slots 0 to {}", count - 1),
    }
}

pub(super) fn count_of(slots: usize) -> String {
    format!("{slots} slot{}", if slots == 1 { "" } else { "s" })
}
