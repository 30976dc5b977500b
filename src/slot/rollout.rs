//! What is to be done for workers that are replaced: pure decisions over plain facts. The clock is an argument; a seeded
//! simulation (`simulation`) drives the service that takes them through random histories.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::lifecycle::{Lifecycle, Phase};
use crate::config::Limits;

/// How far a worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetireStage {
    /// It still gets connections: its successor has not proved itself.
    Serving,
    /// It finishes what it has.
    Draining(Instant),
    /// Its server got the stop signal.
    Stopping(Instant),
    /// Killed.
    Killed,
}

/// Times that a replacement keeps to.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A successor has proved itself when it was online for so long.
    pub min_uptime: Duration,
    /// A successor has to be ready within this.
    pub listen_timeout: Duration,
    /// The old worker has so long to finish its connections.
    pub drain_timeout: Duration,
    /// And so long to end after its stop signal.
    pub kill_timeout: Duration,
    /// Slots that are replaced at once.
    pub max_surge: usize,
}

impl Times {
    pub fn of(limits: &Limits) -> Self {
        Self {
            min_uptime: limits.min_uptime,
            listen_timeout: limits.listen_timeout,
            drain_timeout: limits.drain_timeout,
            kill_timeout: limits.kill_timeout,
            max_surge: limits.max_surge as usize,
        }
    }
}

/// What is due for one worker on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetireAction {
    /// Nothing.
    Nothing,
    /// No more connections for it.
    RemoveFromRotation,
    /// The stop signal; `timed_out`: with connections left.
    SendStop {
        /// Its drain time is up.
        timed_out: bool,
    },
    /// The end.
    Kill,
    /// Its successor takes too long: that one ends, and this one stays.
    GiveUpSuccessor,
}

/// What is due for a worker on its way out whose slot is in `phase`.
pub fn due(now: Instant, times: &Times, phase: Phase, step: RetireStage, drained: bool) -> RetireAction {
    let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
    match (step, phase) {
        (RetireStage::Serving, Phase::Online { since }) if over(since, times.min_uptime) => {
            RetireAction::RemoveFromRotation
        }
        // It has done its work already.
        (RetireStage::Serving, Phase::Finished) => RetireAction::RemoveFromRotation,
        (RetireStage::Serving, Phase::Launching { since }) if over(since, times.listen_timeout) => {
            RetireAction::GiveUpSuccessor
        }
        (RetireStage::Draining(_), _) if drained => RetireAction::SendStop { timed_out: false },
        (RetireStage::Draining(since), _) if over(since, times.drain_timeout) => {
            RetireAction::SendStop { timed_out: true }
        }
        (RetireStage::Stopping(since), _) if over(since, times.kill_timeout) => RetireAction::Kill,
        (RetireStage::Serving | RetireStage::Draining(_) | RetireStage::Stopping(_) | RetireStage::Killed, _) => {
            RetireAction::Nothing
        }
    }
}

/// When [`due`] has something to do by the clock alone.
pub fn next_due(times: &Times, phase: Phase, stage: RetireStage) -> Option<Instant> {
    match (stage, phase) {
        (RetireStage::Serving, Phase::Online { since }) => Some(since + times.min_uptime),
        (RetireStage::Serving, Phase::Launching { since }) => Some(since + times.listen_timeout),
        (RetireStage::Draining(since), _) => Some(since + times.drain_timeout),
        (RetireStage::Stopping(since), _) => Some(since + times.kill_timeout),
        (RetireStage::Serving | RetireStage::Killed, _) => None,
    }
}

/// What a reload looks at.
#[derive(Debug, Clone, Copy)]
pub struct SlotView {
    /// The slot.
    pub lifecycle: Lifecycle,
    /// Workers on their way out.
    pub old: usize,
    /// One of them still serves.
    pub serving: bool,
    /// Its successor has failed.
    pub failed: bool,
}

/// What a reload wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutAction {
    /// Make room in a slot for a successor.
    Replace(usize),
    /// A worker that was never online runs the old code: end it, then start its successor.
    Relaunch(usize),
    /// A slot that has no worker gets one at once.
    Revive(usize),
    /// A slot is done.
    Done(usize),
    /// All are.
    Over,
    /// The reload ends here.
    Failed(usize, Failure),
}

/// Why a reload fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A successor failed, and the worker before it is back.
    Successor,
    /// A worker that replaced none is not ready in time.
    Late,
    /// A worker that replaced none has ended.
    Ended,
}

/// A rolling reload under way.
#[derive(Debug, Clone)]
pub struct Reload {
    began: Instant,
    /// Slots that have not had their turn.
    todo: VecDeque<usize>,
    /// Slots whose successor is coming, or whose old worker is still leaving.
    running: Vec<usize>,
    /// Slots that are done.
    pub done: usize,
    /// How many slots it is about.
    pub of: usize,
}

impl Reload {
    /// Of these slots.
    pub fn new(slots: Range<usize>, now: Instant) -> Self {
        let of = slots.len();
        Self { began: now, todo: slots.collect(), running: Vec::new(), done: 0, of }
    }

    /// Goes as far as it goes now. After [`RolloutAction::Over`] and [`RolloutAction::Failed`] it has ended. When it has
    /// something to do by the clock alone, too.
    pub fn step(&mut self, now: Instant, times: &Times, slots: &[SlotView]) -> (Vec<RolloutAction>, Option<Instant>) {
        let actions = self.actions(now, times, slots);
        let due = |slot: &SlotView| match slot.lifecycle.phase {
            Phase::Online { since } if slot.old == 0 => Some(since + times.min_uptime),
            Phase::Launching { since } if !slot.serving => Some(since + times.listen_timeout),
            _ => None,
        };
        (actions, self.running.iter().filter_map(|&at| due(slots.get(at)?)).min())
    }

    fn actions(&mut self, now: Instant, times: &Times, slots: &[SlotView]) -> Vec<RolloutAction> {
        let mut steps = Vec::new();
        if let Some(&at) = self.running.iter().find(|&&at| slots.get(at).is_some_and(|slot| slot.failed)) {
            return vec![RolloutAction::Failed(at, Failure::Successor)];
        }
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        for at in std::mem::take(&mut self.running) {
            let Some(slot) = slots.get(at) else { continue };
            match slot.lifecycle.phase {
                Phase::Online { since } if slot.old == 0 && over(since, times.min_uptime) => {
                    self.done += 1;
                    steps.push(RolloutAction::Done(at));
                    continue;
                }
                Phase::Finished if slot.old == 0 => {
                    self.done += 1;
                    steps.push(RolloutAction::Done(at));
                    continue;
                }
                Phase::Stopping | Phase::Gone => {
                    self.done += 1;
                    continue;
                }
                // Where an old worker serves, it comes back, which is a failure of its own.
                Phase::Launching { since } if !slot.serving && over(since, times.listen_timeout) => {
                    return vec![RolloutAction::Failed(at, Failure::Late)];
                }
                Phase::Errored if !slot.serving => return vec![RolloutAction::Failed(at, Failure::Ended)],
                Phase::Waiting { .. } if !slot.serving && slot.old == 0 && slot.lifecycle.is_failing() => {
                    return vec![RolloutAction::Failed(at, Failure::Ended)];
                }
                _ => {}
            }
            self.running.push(at);
        }
        // A reload that failed may have left replacements under way.
        let others = slots.iter().enumerate().filter(|(at, slot)| slot.serving && !self.running.contains(at)).count();
        while self.running.len() + others < times.max_surge {
            let Some(at) = self.todo.pop_front() else { break };
            if slots.get(at).is_some_and(|slot| slot.serving) {
                // It is being replaced already; it has its turn when that is over.
                self.todo.push_front(at);
                break;
            }
            let step = match slots.get(at).map(|slot| slot.lifecycle.phase) {
                Some(Phase::Online { .. }) => Some(RolloutAction::Replace(at)),
                Some(Phase::Launching { since }) if since <= self.began => Some(RolloutAction::Relaunch(at)),
                // It is new already, and has to come online.
                Some(Phase::Launching { .. }) => None,
                Some(Phase::Waiting { .. } | Phase::Errored | Phase::Finished) => Some(RolloutAction::Revive(at)),
                Some(Phase::Stopping | Phase::Gone) => {
                    self.done += 1;
                    continue;
                }
                None => continue,
            };
            steps.extend(step);
            self.running.push(at);
        }
        if self.todo.is_empty() && self.running.is_empty() {
            steps.push(RolloutAction::Over);
        }
        steps
    }
}
