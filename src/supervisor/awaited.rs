//! What `restart`, `start` and `scale` wait for: all workers online, in bounded time.

use std::time::{Duration, Instant};

use tracing::warn;

use super::plan::Times;
use super::reload::{Progress, count_of};
use super::service::{Service, SlotProcesses};
use super::slot::Phase;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `restart`.
    Restarted,
    /// `start`.
    Started,
    /// `restart` or `reload` of a service that was stopped.
    StartedStopped,
    /// `scale`.
    Scaled,
}

impl Verb {
    fn text(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::Started => "started",
            Self::StartedStopped => "it was stopped; started",
            Self::Scaled => "scaled to",
        }
    }
}

/// A client waits until all workers are online.
#[derive(Debug, Clone, Copy)]
pub struct Awaited {
    verb: Verb,
    /// By then every worker that had to end has ended.
    ended: Instant,
    listen_timeout: Duration,
    /// When the command fails; known once nothing has to end any more.
    until: Option<Instant>,
}

impl Awaited {
    /// From `now` on.
    pub fn new(verb: Verb, times: &Times, now: Instant) -> Self {
        let ended = now + times.drain_timeout + times.kill_timeout;
        Self { verb, ended, listen_timeout: times.listen_timeout, until: None }
    }
}

impl Service {
    /// Says when all workers are there, or that they are not in time.
    pub(super) fn step_awaited(&mut self, now: Instant) {
        let Some(mut awaited) = self.awaited.take() else { return };
        let right_number = self.slots.len() == self.config.instances as usize;
        // A scale does not touch the workers that stay, whatever is going on with them.
        let ended =
            right_number && (awaited.verb == Verb::Scaled || self.slots.iter().all(|slot| slot.retiring.is_empty()));
        let settled =
            |slot: &SlotProcesses| matches!(slot.life.phase, Phase::Online { .. } | Phase::Errored | Phase::Finished);
        let count = count_of(self.slots.len());
        if ended && self.slots.iter().all(settled) {
            let down = self.not_online();
            let text = match (down.is_empty(), awaited.verb) {
                (true, Verb::Scaled) => count,
                (true, verb) => format!("{} {count}", verb.text()),
                (false, verb) => format!("{} {count}, not all are online: {down}", verb.text()),
            };
            return self.say(match (self.reload.is_some(), down.is_empty()) {
                // A reload that began with it, or after it, has the last word.
                (true, _) => Progress::Step(text),
                (false, true) => Progress::Done(text),
                (false, false) => Progress::Failed(text),
            });
        }
        if awaited.until.is_none() && (ended || now >= awaited.ended) {
            awaited.until = Some(now + awaited.listen_timeout);
        }
        if awaited.until.is_none_or(|until| now < until) {
            self.awaited = Some(awaited);
            return;
        }
        let (verb, seconds, down) = (awaited.verb.text(), awaited.listen_timeout.as_secs_f32(), self.not_online());
        warn!(service = %self.config.name, "{verb} {count}, not all are online after {seconds} s: {down}");
        let text =
            format!("{verb} {count}, not all are online after {seconds} s: {down}; roundsman goes on waiting for them");
        self.say(if self.reload.is_some() { Progress::Step(text) } else { Progress::Failed(text) });
    }

    /// A stop comes between.
    pub(super) fn give_up_awaited(&mut self) {
        if self.awaited.take().is_some() {
            self.say(Progress::Failed("stopped before all workers were online".to_owned()));
        }
    }

    /// When that is due.
    pub(super) fn awaited_deadline(&self) -> Option<Instant> {
        self.awaited.as_ref().map(|awaited| awaited.until.unwrap_or(awaited.ended))
    }

    /// The slots that are not up, and why; those with the same reason together.
    fn not_online(&self) -> String {
        let mut down: Vec<(String, Vec<String>)> = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(why) = self.why_not_online(slot) else { continue };
            match down.iter_mut().find(|(other, _)| *other == why) {
                Some((_, slots)) => slots.push(at.to_string()),
                None => down.push((why, vec![at.to_string()])),
            }
        }
        let group = |(why, slots): (String, Vec<String>)| match slots.as_slice() {
            [one] => format!("slot {one} is {why}"),
            several => format!("slots {} are {why}", several.join(", ")),
        };
        down.into_iter().map(group).collect::<Vec<_>>().join("; ")
    }

    fn why_not_online(&self, slot: &SlotProcesses) -> Option<String> {
        let name = match slot.life.phase {
            Phase::Online { .. } | Phase::Finished => return None,
            phase => phase.name(),
        };
        let launching = matches!(slot.life.phase, Phase::Launching { .. });
        let why = match (slot.trouble(), &slot.reason) {
            (Some(trouble), _) => Some(trouble),
            (None, _) if launching && self.config.limits.wait_ready => Some("it has not said that it is ready"),
            (None, _) if launching => Some("it does not listen"),
            (None, reason) => reason.as_deref(),
        };
        Some(format!("{name}{}", why.map(|why| format!(" ({why})")).unwrap_or_default()))
    }
}
