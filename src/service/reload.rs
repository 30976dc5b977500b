//! Rolling reload, restart, scale: what people ask of a running service.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::awaited::{Awaited, Verb};
use super::lifecycle::{Backoff, Event, Phase};
use super::pausing::Paused;
use super::rollout::{Failure, Reload, RolloutAction, SlotView, Times};
use super::slot::Slot;
use super::{Context, Service};
use crate::config::instances::MAX_INSTANCES;
use crate::worker::Worker;
use crate::worker::decisive::decisive;

/// Of a worker that failed, the decisive ones among so many of its last lines are shown.
pub(super) const LAST_LINES: usize = 60;

/// What a reload that ends early leaves.
const REST_STAYS: &str = "slots that it has not reached keep their workers";

/// A reload under way.
#[derive(Debug)]
pub struct Reloading {
    plan: Reload,
    began: Instant,
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

impl Service {
    /// Begins a rolling reload; of a service that is stopped: starts it.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn reload(&mut self, context: &Context, now: Instant) -> Result<(), String> {
        self.is_free()?;
        if self.paused == Paused::Yes {
            return self.start(Verb::StartedStopped, context, now);
        }
        // What failed before, for another reason, is not this one's failure.
        self.slots.iter_mut().for_each(|slot| slot.history.reload_failed = None);
        info!(service = %self.config.name, slots = self.slots.len(), "reloading");
        if self.shared.is_some() {
            self.begin_all_again(Verb::Reloaded, context, now);
            return Ok(());
        }
        self.reload = Some(Reloading { plan: Reload::new(self.slots.len(), now), began: now });
        Ok(())
    }

    /// Goes on with a reload, as far as it goes now.
    pub fn step_reload(&mut self, context: &Context, now: Instant) -> Option<Instant> {
        let mut reload = self.reload.take()?;
        if self.stop.is_some() {
            self.say(Progress::Failed("the daemon is stopping".to_owned()));
            return None;
        }
        let backoff = Backoff::of(&self.config.limits);
        let facts: Vec<SlotView> = self.slots.iter().map(Slot::view).collect();
        let (actions, due) = reload.plan.step(now, &Times::of(&self.config.limits), &facts);
        let due = if actions.is_empty() { due } else { Some(now) };
        for step in actions {
            match step {
                RolloutAction::Replace(at) => self.slots[at].begin_replace(&backoff, now),
                RolloutAction::Relaunch(at) => self.slots[at].begin_again(context, &backoff, now),
                RolloutAction::Revive(at) => self.slots[at].lifecycle = self.slots[at].lifecycle.again(now),
                RolloutAction::Done(at) => {
                    let who = self.slots[at].pid().map_or_else(|| "finished".to_owned(), |pid| format!("pid {pid}"));
                    let (done, of) = (reload.plan.done, reload.plan.of);
                    self.say(Progress::Step(format!("slot {at}: {who} ({done} of {of})")));
                }
                RolloutAction::Failed(at, why) => {
                    self.reload_failed(at, why, context);
                    return None;
                }
                RolloutAction::Over => {
                    let done = self.reloaded(reload.plan.of, reload.began, context, now);
                    self.say(done);
                    return None;
                }
            }
        }
        self.reload = Some(reload);
        due
    }

    /// All workers are new.
    pub(super) fn reloaded(&mut self, slots: usize, began: Instant, context: &Context, now: Instant) -> Progress {
        self.listeners.close_leaving(self.config.policy, context);
        self.reloads += 1;
        let took = now.duration_since(began).as_millis() as u64;
        let took = humantime::format_duration(std::time::Duration::from_millis(took));
        info!(service = %self.config.name, %took, "reloaded");
        Progress::Done(format!("reloaded {} in {took}", count_of(slots)))
    }

    /// Whether a reload is under way.
    pub fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.awaiting.is_some_and(|awaited| awaited.verb == Verb::Reloaded)
    }

    fn reload_failed(&mut self, at: usize, why: Failure, context: &Context) {
        let slot = &mut self.slots[at];
        let (reason, pid, end) = match why {
            Failure::Successor => {
                let Some((reason, pid)) = slot.history.reload_failed.take() else { return };
                (reason, pid, "the workers before it stay")
            }
            Failure::Late => {
                let seconds = self.config.limits.listen_timeout.as_secs_f32();
                let trouble = slot.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
                let pid = slot.server().map(|server| server.pid);
                (format!("the new worker is not ready after {seconds} s{trouble}"), pid, REST_STAYS)
            }
            Failure::Ended => {
                let how = slot.history.reason.clone().unwrap_or_default();
                (format!("the new worker failed: {how}"), slot.history.failed_successor.take(), REST_STAYS)
            }
        };
        warn!(service = %self.config.name, slot = at, "reload failed: {reason}; {end}");
        let last = |pid| context.launcher.outputs.last(&self.config.name, pid, LAST_LINES);
        let written = pid.map(last).unwrap_or_default();
        let lines: String = decisive(&written).iter().map(|line| format!("\n  | {line}")).collect();
        self.say(Progress::Failed(format!("slot {at}: {reason}; {end}{lines}")));
    }

    /// Stops all workers and starts all anew; the listeners stay, clients wait. A service that is stopped is started.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn restart(&mut self, context: &Context, now: Instant) -> Result<(), String> {
        self.is_free()?;
        if self.paused == Paused::Yes {
            return self.start(Verb::StartedStopped, context, now);
        }
        info!(service = %self.config.name, "restarting");
        self.begin_all_again(Verb::Restarted, context, now);
        Ok(())
    }

    /// All workers end and come anew, and with them a server that they share.
    fn begin_all_again(&mut self, verb: Verb, context: &Context, now: Instant) {
        let backoff = Backoff::of(&self.config.limits);
        for slot in &mut self.slots {
            slot.begin_again(context, &backoff, now);
        }
        self.shared.iter_mut().for_each(|shared| shared.end(now));
        self.awaiting = Some(Awaited::new(verb, &Times::of(&self.config.limits), now));
    }

    fn is_running(&self) -> Result<(), String> {
        if self.paused == Paused::No {
            Ok(())
        } else {
            Err("service is stopped; run `roundsman start` first".to_owned())
        }
    }

    /// Whether a reload, and a new configuration, may begin.
    ///
    /// # Errors
    /// Why not.
    pub fn may_reload(&self) -> Result<(), String> {
        self.is_free().map_err(|why| format!("{}: {why}", self.config.name))
    }

    pub(super) fn is_free(&self) -> Result<(), String> {
        match (&self.stop, self.is_reloading(), self.paused) {
            (Some(_), _, _) => Err("the daemon is stopping".to_owned()),
            (_, true, _) => Err("a reload is under way".to_owned()),
            (_, _, Paused::Stopping) => Err("it is being stopped".to_owned()),
            (None, false, Paused::Yes | Paused::No) => Ok(()),
        }
    }

    /// Sets the number of slots.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn scale(&mut self, to: u32, context: &Context, now: Instant) -> Result<(), String> {
        self.is_free()?;
        self.is_running()?;
        if !(1..=MAX_INSTANCES).contains(&to) {
            return Err(format!(
                "the number of slots must be between 1 and {MAX_INSTANCES}; to stop all workers: roundsman stop"
            ));
        }
        let before = self.slots.len();
        info!(service = %self.config.name, from = before, to, "scaling");
        self.config.instances = to;
        self.awaiting = Some(Awaited::new(Verb::Scaled, &Times::of(&self.config.limits), now));
        let backoff = Backoff::of(&self.config.limits);
        let missing = (to as usize).saturating_sub(before);
        self.slots.extend((0..missing).map(|_| Slot::new(now)));
        for slot in self.slots.iter_mut().take(to as usize) {
            if slot.lifecycle.phase == Phase::Gone {
                slot.lifecycle = slot.lifecycle.again(now);
            }
        }
        for slot in self.slots.iter_mut().skip(to as usize) {
            slot.dismiss(context, &backoff, now, now);
        }
        Ok(())
    }

    /// Slots above the number wanted go when nothing of them is left.
    pub(super) fn step_scale(&mut self, now: Instant) -> Option<Instant> {
        if self.stop.is_some() || self.paused != Paused::No {
            return None;
        }
        let (backoff, mut due) = (Backoff::of(&self.config.limits), None);
        let wanted = self.config.instances as usize;
        while self.slots.len() > wanted {
            let Some(slot) = self.slots.last_mut().filter(|slot| slot.is_empty()) else { break };
            slot.lifecycle.apply(Event::Emptied, now, &backoff);
            self.slots.pop();
            due = Some(now);
        }
        // Wanted again while it was still on its way out.
        for slot in self.slots.iter_mut().take(wanted).filter(|slot| slot.lifecycle.phase == Phase::Stopping) {
            if slot.is_empty() {
                slot.lifecycle = slot.lifecycle.again(now);
                due = Some(now);
            }
        }
        due
    }

    /// Keeps a line for whoever asked.
    pub fn say(&mut self, progress: Progress) {
        self.progress.push_back(progress);
    }
}

pub(super) fn count_of(slots: usize) -> String {
    format!("{slots} slot{}", if slots == 1 { "" } else { "s" })
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
