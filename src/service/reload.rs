//! A rolling reload under way: does what its plan wants done.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::awaited::Verb;
use super::operations::{Effect, Operations, Progress, Ticket, Workers, count_of};
use crate::slot::Slot;
use crate::slot::rollout::{Failure, Reload, RolloutAction, SlotView, Times};
use crate::worker::Worker;
use crate::worker::decisive::decisive;

/// Of a worker that failed, the decisive ones among so many of its last lines are shown.
pub(super) const LAST_LINES: usize = 60;

/// What a reload that ends early leaves.
const REST_STAYS: &str = "slots that it has not reached keep their workers";

#[derive(Debug)]
pub struct Reloading {
    ticket: Ticket,
    /// The index of the only slot that is replaced.
    slot: Option<usize>,
    plan: Reload,
    began: Instant,
}

impl Operations {
    /// `only`: the index of the only slot to be replaced.
    pub(super) fn begin_reload(&mut self, ticket: Ticket, only: Option<usize>, workers: &mut Workers) {
        // What failed before, for another reason, is not this one's failure.
        workers.slots.iter_mut().for_each(|slot| slot.history.reload_failed = None);
        let (slots, now) = (workers.slots.len(), workers.now);
        match only {
            Some(slot) => info!(name: "reloading", service = %workers.config.name, slot, "reloading"),
            None => info!(name: "reloading", service = %workers.config.name, slots, "reloading"),
        }
        if workers.shared.is_some() && only.is_none() {
            self.begin_all_again(ticket, Verb::Reloaded, workers);
        } else {
            let plan = Reload::new(only.map_or(0..slots, |at| at..at + 1), now);
            self.reload = Some(Reloading { ticket, slot: only, plan, began: now });
        }
    }

    /// Goes on with a reload, as far as it goes now.
    pub(super) fn step_reload(&mut self, workers: &mut Workers) -> Option<Instant> {
        let mut reload = self.reload.take()?;
        if workers.stopping {
            self.say(reload.ticket, Progress::Failed("the daemon is stopping".to_owned()));
            return None;
        }
        let (backoff, context, now) = (workers.backoff(), workers.context, workers.now);
        let facts: Vec<SlotView> = workers.slots.iter().map(Slot::view).collect();
        let (actions, due) = reload.plan.step(now, &Times::of(&workers.config.limits), &facts);
        let due = if actions.is_empty() { due } else { Some(now) };
        for action in actions {
            match action {
                RolloutAction::Replace(at) => workers.slots[at].begin_replace(&backoff, now),
                RolloutAction::Relaunch(at) => workers.slots[at].begin_again(context, &backoff, now),
                RolloutAction::Revive(at) => workers.slots[at].lifecycle = workers.slots[at].lifecycle.again(now),
                RolloutAction::Done(at) => {
                    let pid = workers.slots[at].pid();
                    let who = pid.map_or_else(|| "finished".to_owned(), |pid| format!("pid {pid}"));
                    let (done, of) = (reload.plan.done, reload.plan.of);
                    info!(name: "reload-step", service = %workers.config.name, slot = at, pid, done, of, "worker replaced");
                    self.say(reload.ticket, Progress::Step(format!("slot {at}: {who} ({done} of {of})")));
                }
                RolloutAction::Failed(at, why) => {
                    self.reload_failed(reload.ticket, at, why, workers);
                    return None;
                }
                RolloutAction::Over => {
                    match reload.slot {
                        Some(at) => self.slot_reloaded(&reload, at, workers),
                        None => self.reloaded(reload.ticket, reload.plan.of, reload.began, workers),
                    }
                    return None;
                }
            }
        }
        self.reload = Some(reload);
        due
    }

    /// All workers are new.
    pub(super) fn reloaded(&mut self, ticket: Ticket, slots: usize, began: Instant, workers: &Workers) {
        self.effects.push(Effect::CloseLeaving);
        self.reloads += 1;
        let took = whole_millis(workers.now.duration_since(began));
        info!(name: "reloaded", service = %workers.config.name, %took, "reloaded");
        self.say(ticket, Progress::Done(format!("reloaded {} in {took}", count_of(slots))));
    }

    /// The others have the workers that they had.
    fn slot_reloaded(&mut self, reload: &Reloading, slot: usize, workers: &Workers) {
        let took = whole_millis(workers.now.duration_since(reload.began));
        info!(name: "reloaded", service = %workers.config.name, slot, %took, "reloaded");
        self.say(reload.ticket, Progress::Done(format!("reloaded slot {slot} in {took}")));
    }

    fn reload_failed(&mut self, ticket: Ticket, at: usize, why: Failure, workers: &mut Workers) {
        let Some(slot) = workers.slots.get_mut(at) else { return };
        let (reason, pid, end) = match why {
            Failure::Successor => {
                let Some((reason, pid)) = slot.history.reload_failed.take() else { return };
                (reason, pid, "the workers before it stay")
            }
            Failure::Late => {
                let seconds = workers.config.limits.listen_timeout.as_secs_f32();
                let trouble = slot.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
                let pid = slot.server().map(|server| server.pid);
                (format!("the new worker is not ready after {seconds} s{trouble}"), pid, REST_STAYS)
            }
            Failure::Ended => {
                let how = slot.history.reason.clone().unwrap_or_default();
                (format!("the new worker failed: {how}"), slot.history.failed_successor.take(), REST_STAYS)
            }
        };
        warn!(name: "reload-failed", service = %workers.config.name, slot = at, "reload failed: {reason}; {end}");
        let last = |pid| workers.context.launcher.outputs.last(&workers.config.name, pid, LAST_LINES);
        let written = pid.map(last).unwrap_or_default();
        let lines: String = decisive(&written).iter().map(|line| format!("\n  | {line}")).collect();
        self.say(ticket, Progress::Failed(format!("slot {at}: {reason}; {end}{lines}")));
    }
}

fn whole_millis(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(time.as_millis() as u64))
}

impl Slot {
    /// A successor takes too long. Its death is what brings the old one back.
    pub fn give_up_successor(&mut self, listen_timeout: Duration) {
        if self.history.successor_trouble.is_none() {
            let seconds = listen_timeout.as_secs_f32();
            let trouble = self.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
            self.history.successor_trouble = Some(format!("the successor was not ready within {seconds} s{trouble}"));
        }
        self.current.iter().for_each(Worker::kill);
    }
}
