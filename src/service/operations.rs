//! What people ask of a running service: reload, restart, stop, start, scale; what is under way, and what became of it.

use std::collections::VecDeque;
use std::time::Instant;

use tracing::info;

use super::Context;
use super::awaited::{Awaited, Verb};
use super::pausing::Paused;
use super::reload::Reloading;
use super::shared::SharedServer;
use crate::accept::orders::ServiceId;
use crate::config::ServiceConfig;
use crate::config::instances::MAX_INSTANCES;
use crate::slot::Slot;
use crate::slot::lifecycle::{Backoff, Event, Phase};
use crate::slot::rollout::Times;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Rolling; where all slots share a server, and of a service that is stopped: as `Restart`.
    Reload,
    /// All workers end and come anew; the listeners stay, clients wait. A service that is stopped is started.
    Restart,
    /// Clients are refused until `Start`; the daemon goes on.
    Stop,
    Start,
    Scale(u32),
    /// Of a service that has just come into the configuration.
    FirstStart,
}

/// What became of something that was asked for, for whoever asked.
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
    /// Somebody waits until all workers are online.
    pub(super) awaiting: Option<Awaited>,
    /// When it was stopped, until all that was accepted by then has a worker.
    pub(super) emptying: Option<Instant>,
    /// Oldest first; the daemon takes it.
    pub(super) progress: VecDeque<Progress>,
    pub(super) effects: Vec<Effect>,
    /// Those that succeeded.
    pub(super) reloads: u64,
}

impl Operations {
    /// # Errors
    /// Why it cannot be now.
    pub fn begin(&mut self, operation: Operation, workers: &mut Workers) -> Result<(), String> {
        if operation == Operation::FirstStart {
            self.awaiting = Some(workers.awaited(Verb::Started));
            return Ok(());
        }
        self.is_free(workers.stopping)?;
        match operation {
            Operation::Reload | Operation::Restart if self.paused == Paused::Yes => {
                self.start(Verb::StartedStopped, workers);
            }
            Operation::Reload => self.begin_reload(workers),
            Operation::Restart => {
                info!(service = %workers.config.name, "restarting");
                self.begin_all_again(Verb::Restarted, workers);
            }
            Operation::Stop => self.pause(workers),
            Operation::Start | Operation::FirstStart => self.start(Verb::Started, workers),
            Operation::Scale(_) if self.paused != Paused::No => {
                return Err("service is stopped; run `roundsman start` first".to_owned());
            }
            Operation::Scale(to) => self.scale(to, workers)?,
        }
        Ok(())
    }

    /// # Errors
    /// Why no other operation may begin.
    pub fn is_free(&self, stopping: bool) -> Result<(), String> {
        match (stopping, self.is_reloading(), self.paused) {
            (true, _, _) => Err("the daemon is stopping".to_owned()),
            (_, true, _) => Err("a reload is under way".to_owned()),
            (_, _, Paused::Stopping) => Err("it is being stopped".to_owned()),
            (false, false, Paused::Yes | Paused::No) => Ok(()),
        }
    }

    pub fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.awaiting.is_some_and(|awaited| awaited.verb == Verb::Reloaded)
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

    pub fn say(&mut self, progress: Progress) {
        self.progress.push_back(progress);
    }

    /// All workers end and come anew, and with them a server that they share.
    pub(super) fn begin_all_again(&mut self, verb: Verb, workers: &mut Workers) {
        let (backoff, context, now) = (workers.backoff(), workers.context, workers.now);
        workers.slots.iter_mut().for_each(|slot| slot.begin_again(context, &backoff, now));
        workers.shared.iter_mut().for_each(|shared| shared.end(now));
        self.awaiting = Some(workers.awaited(verb));
    }

    fn scale(&mut self, to: u32, workers: &mut Workers) -> Result<(), String> {
        if !(1..=MAX_INSTANCES).contains(&to) {
            return Err(format!(
                "the number of slots must be between 1 and {MAX_INSTANCES}; to stop all workers: roundsman stop"
            ));
        }
        let (before, backoff, context, now) = (workers.slots.len(), workers.backoff(), workers.context, workers.now);
        info!(service = %workers.config.name, from = before, to, "scaling");
        workers.config.instances = to;
        self.awaiting = Some(workers.awaited(Verb::Scaled));
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

    pub fn awaited(&self, verb: Verb) -> Awaited {
        Awaited::new(verb, &Times::of(&self.config.limits), self.now)
    }
}

pub(super) fn count_of(slots: usize) -> String {
    format!("{slots} slot{}", if slots == 1 { "" } else { "s" })
}
