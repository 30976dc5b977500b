//! What `restart`, `start`, `scale` and the reload of a shared server wait for: all workers online, in bounded time.

use std::time::{Duration, Instant};

use tracing::warn;

use super::operations::{Operations, Progress, Workers, count_of};
use super::shared::SharedServer;
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;
use crate::slot::rollout::Times;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `reload`, where all slots share a server.
    Reloaded,
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
            Self::Reloaded => "reloaded",
            Self::Restarted => "restarted",
            Self::Started => "started",
            Self::StartedStopped => "it was stopped; started",
            Self::Scaled => "scaled to",
        }
    }

    fn failed(self, count: &str) -> String {
        match self {
            Self::Reloaded => "reload failed, not all slots are online".to_owned(),
            verb => format!("{} {count}, not all are online", verb.text()),
        }
    }
}

/// A client waits until all workers are online.
#[derive(Debug, Clone, Copy)]
pub struct Awaited {
    pub(super) verb: Verb,
    began: Instant,
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
        Self { verb, began: now, ended, listen_timeout: times.listen_timeout, until: None }
    }
}

impl Operations {
    /// Says when all workers are there, or that they are not in time.
    pub(super) fn step_awaited(&mut self, workers: &mut Workers) -> Option<Instant> {
        let mut awaited = self.awaiting.take()?;
        let now = workers.now;
        if workers.stopping && !workers.removed {
            self.say(Progress::Failed("the daemon is stopping".to_owned()));
            return None;
        }
        let right_number = workers.slots.len() == workers.config.instances as usize;
        // A scale does not touch the workers that stay, whatever is going on with them.
        let nobody_ends = workers.slots.iter().all(|slot| slot.retiring.is_empty())
            && !workers.shared.as_ref().is_some_and(SharedServer::is_ending);
        let ended = right_number && (awaited.verb == Verb::Scaled || nobody_ends);
        let settled =
            |slot: &Slot| matches!(slot.lifecycle.phase, Phase::Online { .. } | Phase::Errored | Phase::Finished);
        let count = count_of(workers.slots.len());
        let said = workers
            .shared
            .as_ref()
            .map(|shared| shared.said(&workers.config.name, workers.context))
            .unwrap_or_default();
        let hopeless = workers.shared.as_ref().is_some_and(SharedServer::is_given_up);
        if (ended && workers.slots.iter().all(settled)) || hopeless {
            let down = not_online(workers.slots, workers.shared.as_ref(), workers.config.limits.wait_ready);
            let verb = awaited.verb;
            if down.is_empty() && verb == Verb::Reloaded {
                self.reloaded(workers.slots.len(), awaited.began, workers);
                return None;
            }
            let text = match (down.is_empty(), verb) {
                (true, Verb::Scaled) => count,
                (true, verb) => format!("{} {count}", verb.text()),
                (false, verb) => format!("{}: {down}{}", verb.failed(&count), said),
            };
            self.say(match (self.reload.is_some(), down.is_empty()) {
                // A reload that began with it, or after it, has the last word.
                (true, _) => Progress::Step(text),
                (false, true) => Progress::Done(text),
                (false, false) => Progress::Failed(text),
            });
            return None;
        }
        if awaited.until.is_none() && (ended || now >= awaited.ended) {
            awaited.until = Some(now + awaited.listen_timeout);
        }
        if awaited.until.is_none_or(|until| now < until) {
            self.awaiting = Some(awaited);
            return Some(awaited.until.unwrap_or(awaited.ended));
        }
        let (failed, seconds) = (awaited.verb.failed(&count), awaited.listen_timeout.as_secs_f32());
        let text = format!(
            "{failed} after {seconds} s: {}",
            not_online(workers.slots, workers.shared.as_ref(), workers.config.limits.wait_ready)
        );
        warn!(service = %workers.config.name, "{text}");
        let text = format!("{text}; roundsman goes on waiting for them{}", said);
        self.say(if self.reload.is_some() { Progress::Step(text) } else { Progress::Failed(text) });
        None
    }

    /// A stop comes between.
    pub(super) fn give_up_awaited(&mut self) {
        if self.awaiting.take().is_some() {
            self.say(Progress::Failed("stopped before all workers were online".to_owned()));
        }
    }
}

/// The slots that are not up, and why; those with the same reason together.
fn not_online(slots: &[Slot], shared: Option<&SharedServer>, wait_ready: bool) -> String {
    let shared = shared.and_then(SharedServer::trouble);
    let mut down: Vec<(String, Vec<String>)> = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        let Some(why) = slot.why_not_online(shared.as_deref(), wait_ready) else { continue };
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

impl Slot {
    fn why_not_online(&self, shared: Option<&str>, wait_ready: bool) -> Option<String> {
        let name = match self.lifecycle.phase {
            Phase::Online { .. } | Phase::Finished => return None,
            phase => phase.name(),
        };
        let launching = matches!(self.lifecycle.phase, Phase::Launching { .. });
        let why = match (self.trouble().or(shared), &self.history.reason) {
            (Some(trouble), _) => Some(trouble),
            (None, _) if launching && wait_ready => Some("it has not said that it is ready"),
            (None, _) if launching => Some("it does not listen"),
            (None, reason) => reason.as_deref(),
        };
        Some(format!("{name}{}", why.map(|why| format!(" ({why})")).unwrap_or_default()))
    }
}
