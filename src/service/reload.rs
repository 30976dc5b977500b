//! Rolling reload, restart, scale: what people ask of a running service.

use std::time::Instant;

use tracing::{info, warn};

use super::awaited::{Awaited, Verb};
use super::lifecycle::{Backoff, Event, Phase};
use super::pausing::Paused;
use super::rollout::{Facts, Failure, Leave, Reload, Step};
use super::{Service, SlotProcesses, Tools};
use crate::config::instances::MAX_INSTANCES;
use crate::sys::process;
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
    pub fn reload(&mut self, tools: &Tools, now: Instant) -> Result<(), String> {
        self.is_free()?;
        if self.paused == Paused::Yes {
            return self.start(Verb::StartedStopped, tools, now);
        }
        // What failed before, for another reason, is not this one's failure.
        self.slots.iter_mut().for_each(|slot| slot.reload_failed = None);
        info!(service = %self.config.name, slots = self.slots.len(), "reloading");
        if self.shared.is_some() {
            self.begin_all_again(Verb::Reloaded, tools, now);
            return Ok(());
        }
        self.reload = Some(Reloading { plan: Reload::new(self.slots.len(), now), began: now });
        Ok(())
    }

    /// Goes on with a reload, as far as it goes now.
    pub fn step_reload(&mut self, tools: &Tools, now: Instant) {
        let Some(mut reload) = self.reload.take() else { return };
        if self.stop.is_some() {
            self.say(Progress::Failed("the daemon is stopping".to_owned()));
            return;
        }
        let facts: Vec<Facts> = self.slots.iter().map(SlotProcesses::facts).collect();
        for step in reload.plan.step(now, &self.times(), &facts) {
            match step {
                Step::Replace(at) => self.begin_replace(at, now),
                Step::Relaunch(at) => self.relaunch(at, tools, now),
                Step::Revive(at) => self.slots[at].life = self.slots[at].life.again(now),
                Step::Done(at) => {
                    let who = self.slots[at].pid().map_or_else(|| "finished".to_owned(), |pid| format!("pid {pid}"));
                    let (done, of) = (reload.plan.done, reload.plan.of);
                    self.say(Progress::Step(format!("slot {at}: {who} ({done} of {of})")));
                }
                Step::Failed(at, why) => return self.reload_failed(at, why, tools),
                Step::Over => {
                    let done = self.reloaded(reload.plan.of, reload.began, tools, now);
                    return self.say(done);
                }
            }
        }
        self.reload = Some(reload);
    }

    /// All workers are new.
    pub(super) fn reloaded(&mut self, slots: usize, began: Instant, tools: &Tools, now: Instant) -> Progress {
        self.close_leaving(tools);
        self.reloads += 1;
        let took = now.duration_since(began).as_millis() as u64;
        let took = humantime::format_duration(std::time::Duration::from_millis(took));
        info!(service = %self.config.name, %took, "reloaded");
        Progress::Done(format!("reloaded {} in {took}", count_of(slots)))
    }

    /// Whether a reload is under way.
    pub fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.awaited.is_some_and(|awaited| awaited.verb == Verb::Reloaded)
    }

    /// When a reload has something to do by the clock alone.
    pub(super) fn reload_deadline(&self) -> Option<Instant> {
        let facts: Vec<Facts> = self.slots.iter().map(SlotProcesses::facts).collect();
        self.reload.as_ref()?.plan.deadline(&self.times(), &facts)
    }

    /// Ends a worker that was never online, to start another one in its place.
    fn relaunch(&mut self, at: usize, tools: &Tools, now: Instant) {
        let backoff = self.backoff();
        self.slots[at].begin_again(tools, &backoff, now);
    }

    /// A successor takes too long. Its death is what brings the old one back.
    pub(super) fn give_up_successor(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.reload_failure.is_none() {
            let seconds = self.config.limits.listen_timeout.as_secs_f32();
            let trouble = slot.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
            slot.reload_failure = Some(format!("the successor was not ready within {seconds} s{trouble}"));
        }
        let own = slot.server.iter().map(|server| server.pid).chain(slot.relay.iter().map(|relay| relay.pid));
        own.for_each(process::kill_tree);
    }

    fn reload_failed(&mut self, at: usize, why: Failure, tools: &Tools) {
        let slot = &mut self.slots[at];
        let (reason, pid, end) = match why {
            Failure::Successor => {
                let Some((reason, pid)) = slot.reload_failed.take() else { return };
                (reason, pid, "the workers before it stay")
            }
            Failure::Late => {
                let seconds = self.config.limits.listen_timeout.as_secs_f32();
                let trouble = slot.trouble().map(|trouble| format!(": {trouble}")).unwrap_or_default();
                let pid = slot.server.as_ref().map(|server| server.pid);
                (format!("the new worker is not ready after {seconds} s{trouble}"), pid, REST_STAYS)
            }
            Failure::Ended => {
                let how = slot.reason.clone().unwrap_or_default();
                (format!("the new worker failed: {how}"), slot.failed_pid.take(), REST_STAYS)
            }
        };
        warn!(service = %self.config.name, slot = at, "reload failed: {reason}; {end}");
        let last = |pid| tools.launcher.outputs.last(&self.config.name, pid, LAST_LINES);
        let written = pid.map(last).unwrap_or_default();
        let lines: String = decisive(&written).iter().map(|line| format!("\n  | {line}")).collect();
        self.say(Progress::Failed(format!("slot {at}: {reason}; {end}{lines}")));
    }

    /// Stops all workers and starts all anew; the listeners stay, clients wait. A service that is stopped is started.
    ///
    /// # Errors
    /// Why it cannot be now.
    pub fn restart(&mut self, tools: &Tools, now: Instant) -> Result<(), String> {
        self.is_free()?;
        if self.paused == Paused::Yes {
            return self.start(Verb::StartedStopped, tools, now);
        }
        info!(service = %self.config.name, "restarting");
        self.begin_all_again(Verb::Restarted, tools, now);
        Ok(())
    }

    /// Replaces one worker for a reason of its own.
    pub(super) fn replace_one(
        &mut self,
        at: usize,
        successor_first: bool,
        reason: String,
        tools: &Tools,
        now: Instant,
    ) {
        self.begin_replace(at, now);
        let slot = &mut self.slots[at];
        slot.replaced_for = Some(reason);
        if !successor_first {
            slot.stop_first = true;
            slot.retiring.iter_mut().for_each(|old| old.drain(tools, now));
        }
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
    pub fn scale(&mut self, to: u32, tools: &Tools, now: Instant) -> Result<(), String> {
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
        self.awaited = Some(Awaited::new(Verb::Scaled, &self.times(), now));
        let backoff = self.backoff();
        let missing = (to as usize).saturating_sub(before);
        self.slots.extend((0..missing).map(|_| SlotProcesses::new(now)));
        for slot in self.slots.iter_mut().take(to as usize) {
            if slot.life.phase == Phase::Gone {
                slot.life = slot.life.again(now);
            }
        }
        for slot in self.slots.iter_mut().skip(to as usize) {
            slot.dismiss(tools, &backoff, now, now);
        }
        Ok(())
    }

    /// Slots above the number wanted go when nothing of them is left.
    pub(super) fn step_scale(&mut self, now: Instant) {
        if self.stop.is_some() || self.paused != Paused::No {
            return;
        }
        let backoff = self.backoff();
        let wanted = self.config.instances as usize;
        while self.slots.len() > wanted {
            let Some(slot) = self.slots.last_mut().filter(|slot| slot.is_empty()) else { break };
            slot.life.apply(Event::Emptied, now, &backoff);
            self.slots.pop();
        }
        // Wanted again while it was still on its way out.
        for slot in self.slots.iter_mut().take(wanted).filter(|slot| slot.life.phase == Phase::Stopping) {
            if slot.is_empty() {
                slot.life = slot.life.again(now);
            }
        }
    }

    /// Keeps a line for whoever asked.
    pub fn say(&mut self, progress: Progress) {
        self.said.push_back(progress);
    }
}

pub(super) fn count_of(slots: usize) -> String {
    format!("{slots} slot{}", if slots == 1 { "" } else { "s" })
}

impl SlotProcesses {
    /// What a reload looks at.
    fn facts(&self) -> Facts {
        Facts {
            life: self.life,
            old: self.retiring.len(),
            serving: self.retiring.iter().any(|old| old.step == Leave::Serving),
            failed: self.reload_failed.is_some(),
        }
    }

    /// The process that receives connections, or does the work of a service without a port.
    pub fn pid(&self) -> Option<u32> {
        let server = self.server.as_ref();
        match (&self.direct, &self.relay) {
            (Some(direct), _) => direct.pid.or(server.map(|server| server.pid)),
            (None, Some(relay)) => Some(relay.pid),
            // One that has an address waits for its relay worker.
            (None, None) => server.filter(|server| server.address.is_none()).map(|server| server.pid),
        }
    }

    /// The server behind a relay worker.
    pub fn server_pid(&self) -> Option<u32> {
        let server = self.server.as_ref().filter(|_| self.direct.is_none()).map(|server| server.pid);
        server.filter(|&server| self.pid() != Some(server))
    }

    /// Its worker ends, then another one is started; one that has none gets one at once.
    pub(super) fn begin_again(&mut self, tools: &Tools, backoff: &Backoff, now: Instant) {
        if self.has_processes() {
            self.life.apply(Event::Replace, now, backoff);
            self.set_aside(now);
            self.retiring.iter_mut().for_each(|old| old.drain(tools, now));
            self.stop_first = true;
        } else if matches!(self.life.phase, Phase::Waiting { .. } | Phase::Errored | Phase::Finished) {
            self.life = self.life.again(now);
        }
    }

    /// What is known of a worker that is not online.
    pub fn trouble(&self) -> Option<&str> {
        let launching = matches!(self.life.phase, Phase::Launching { .. });
        self.server.as_ref().filter(|_| launching).and_then(|server| server.trouble.as_deref())
    }

    /// Its worker leaves, and no other comes. Its time to finish began at `since`.
    pub(super) fn dismiss(&mut self, tools: &Tools, backoff: &Backoff, now: Instant, since: Instant) {
        // Also what waits for the other half of its worker: a server whose relay worker died.
        if self.has_processes() {
            self.set_aside(now);
        }
        self.retiring.iter_mut().for_each(|old| old.drain(tools, since));
        self.life.apply(Event::Stop, now, backoff);
    }

    fn has_processes(&self) -> bool {
        self.relay.is_some() || self.server.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.retiring.is_empty() && !self.has_processes() && self.leaving.is_empty()
    }
}
