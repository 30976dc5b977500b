//! What `restart`, `start`, `scale` and the reload of a shared server wait for: all workers online, in bounded time.

use std::time::{Duration, Instant};

use tracing::warn;

use super::operations::{Operations, Progress, Ticket, Workers, count_of};
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

/// An operation that ends when all workers, or one slot's, are online.
#[derive(Debug, Clone, Copy)]
pub struct Awaited {
    ticket: Ticket,
    pub(super) verb: Verb,
    /// The index of the only slot that matters.
    slot: Option<usize>,
    began: Instant,
    /// By then every worker that had to end has ended.
    ended: Instant,
    listen_timeout: Duration,
    /// When the command fails; known once nothing has to end any more.
    until: Option<Instant>,
}

impl Awaited {
    /// From `now` on.
    pub(super) fn new(ticket: Ticket, verb: Verb, times: &Times, now: Instant) -> Self {
        let ended = now + times.drain_timeout + times.kill_timeout;
        Self { ticket, verb, slot: None, began: now, ended, listen_timeout: times.listen_timeout, until: None }
    }

    pub(super) fn of_slot(self, at: usize) -> Self {
        Self { slot: Some(at), ..self }
    }
}

impl Operations {
    /// Says of each operation when its workers are there, or that they are not in time.
    pub(super) fn step_awaited(&mut self, workers: &mut Workers) -> Option<Instant> {
        let awaiting = std::mem::take(&mut self.awaiting);
        awaiting.into_iter().filter_map(|awaited| self.step_one_awaited(awaited, workers)).min()
    }

    fn step_one_awaited(&mut self, mut awaited: Awaited, workers: &mut Workers) -> Option<Instant> {
        let (ticket, now) = (awaited.ticket, workers.now);
        if workers.stopping && !workers.removed {
            self.say(ticket, Progress::Failed("the daemon is stopping".to_owned()));
            return None;
        }
        let meant = awaited.slot.map_or(0..workers.slots.len(), |at| at..at + 1);
        let Some(slots) = workers.slots.get(meant.clone()) else {
            self.say(ticket, Progress::Failed(format!("slot {} is gone: scaled down", meant.start)));
            return None;
        };
        let right_number = awaited.slot.is_some() || slots.len() == workers.config.instances as usize;
        // A scale does not touch the workers that stay, whatever is going on with them.
        let nobody_ends = slots.iter().all(|slot| slot.retiring.is_empty())
            && !workers.shared.as_ref().is_some_and(SharedServer::is_ending);
        let ended = right_number && (awaited.verb == Verb::Scaled || nobody_ends);
        let settled =
            |slot: &Slot| matches!(slot.lifecycle.phase, Phase::Online { .. } | Phase::Errored | Phase::Finished);
        let what = awaited.slot.map_or_else(|| count_of(slots.len()), |at| format!("slot {at}"));
        let said = workers
            .shared
            .as_ref()
            .map(|shared| shared.said(&workers.config.name, workers.context))
            .unwrap_or_default();
        let hopeless = workers.shared.as_ref().is_some_and(SharedServer::is_given_up);
        let down = || not_online(slots, meant.start, workers.shared.as_ref(), workers.config.limits.wait_ready);
        if (ended && slots.iter().all(settled)) || hopeless {
            let (down, verb) = (down(), awaited.verb);
            if down.is_empty() && verb == Verb::Reloaded {
                self.reloaded(ticket, slots.len(), awaited.began, workers);
                return None;
            }
            self.say(
                ticket,
                match (down.is_empty(), verb) {
                    (true, Verb::Scaled) => Progress::Done(what),
                    (true, verb) => Progress::Done(format!("{} {what}", verb.text())),
                    (false, verb) => Progress::Failed(format!("{}: {down}{said}", verb.failed(&what))),
                },
            );
            return None;
        }
        if awaited.until.is_none() && (ended || now >= awaited.ended) {
            awaited.until = Some(now + awaited.listen_timeout);
        }
        if awaited.until.is_none_or(|until| now < until) {
            let due = awaited.until.unwrap_or(awaited.ended);
            self.awaiting.push(awaited);
            return Some(due);
        }
        let (failed, seconds) = (awaited.verb.failed(&what), awaited.listen_timeout.as_secs_f32());
        let text = format!("{failed} after {seconds} s: {}", down());
        warn!(service = %workers.config.name, "{text}");
        self.say(ticket, Progress::Failed(format!("{text}; roundsman goes on waiting for them{said}")));
        None
    }

    /// A stop comes between.
    pub(super) fn give_up_awaited(&mut self) {
        for awaited in std::mem::take(&mut self.awaiting) {
            self.say(awaited.ticket, Progress::Failed("stopped before all workers were online".to_owned()));
        }
    }
}

/// The slots that are not up, and why; `first`: the number of the first one; those with the same reason together.
fn not_online(slots: &[Slot], first: usize, shared: Option<&SharedServer>, wait_ready: bool) -> String {
    let shared = shared.and_then(SharedServer::trouble);
    let mut down: Vec<(String, Vec<String>)> = Vec::new();
    for (at, slot) in (first..).zip(slots) {
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
