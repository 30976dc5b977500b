//! The life of a slot: states, events, and what is to be done next. Pure; time is an argument.

mod record;

use std::time::{Duration, Instant};

pub use self::record::LifecycleRecord;
use crate::config::Limits;

/// Where a slot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Empty until then: the first start, or the back-off after a death.
    Waiting {
        /// When it is to be started.
        until: Instant,
    },
    /// Its worker was started and is not ready yet.
    Launching {
        /// Since when.
        since: Instant,
    },
    /// Its worker receives connections.
    Online {
        /// Since when.
        since: Instant,
    },
    /// Its worker finishes what it has.
    Stopping,
    /// Empty for good: stopped.
    Gone,
    /// Empty: its worker ended with exit code 0 under `--on-exit ok`, and is not started again.
    Finished,
    /// Given up: it died too often in a row.
    Errored,
}

impl Phase {
    /// The name of [`Phase::Launching`].
    pub const LAUNCHING: &str = "launching";

    /// As shown by `ls`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Launching { .. } => Self::LAUNCHING,
            Self::Online { .. } => "online",
            Self::Stopping => "stopping",
            Self::Gone | Self::Finished => "gone",
            Self::Errored => "errored",
        }
    }
}

/// What happens to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its worker was started.
    Started,
    /// Its worker is ready.
    Ready,
    /// Its worker (or the server behind it) died.
    Died,
    /// Its worker makes room for a successor.
    Replace,
    /// The successor failed: the worker that was online since then stays.
    Restored(Instant),
    /// Its worker ended, and starting it again would change nothing.
    GiveUp,
    /// Its worker has done its work.
    Finish,
    /// It shall end.
    Stop,
    /// Nothing of it is left.
    Emptied,
}

/// When to start again, and when to give up.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// A worker that was online for so long did not crash in a row.
    pub min_uptime: Duration,
    /// Deaths in a row before the slot is given up.
    pub most: u32,
}

impl Backoff {
    pub fn of(limits: &Limits) -> Self {
        let (first, longest) = limits.backoff;
        Self { first, longest, min_uptime: limits.min_uptime, most: limits.max_restarts }
    }
}

/// Deaths in a row before a slot is given up that was never online: it will not get better by itself.
const MAX_BEFORE_ONLINE: u32 = 3;

/// The facts about a slot.
#[derive(Debug, Clone, Copy)]
pub struct Lifecycle {
    /// Where it is.
    pub phase: Phase,
    /// Starts that a crash made necessary.
    pub restarts: u64,
    failures: u32,
    /// The next start follows a crash.
    crashed: bool,
    ever: Ever,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ever {
    Online,
    Never,
}

impl Lifecycle {
    /// An empty slot, to be started at once.
    pub fn new(now: Instant) -> Self {
        Self { phase: Phase::Waiting { until: now }, restarts: 0, failures: 0, crashed: false, ever: Ever::Never }
    }

    /// The same slot, to be started at once because somebody asked for it: only its counter stays.
    pub fn again(self, now: Instant) -> Self {
        Self { restarts: self.restarts, ..Self::new(now) }
    }

    /// As [`Lifecycle::again`], for one that is not given up sooner because of it: it was online once.
    pub fn again_as_known(self, now: Instant) -> Self {
        Self { ever: self.ever, ..self.again(now) }
    }

    /// Whether workers of it have died in a row.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Moves on. Every state says what it makes of every event.
    pub fn apply(&mut self, event: Event, now: Instant, backoff: &Backoff) {
        self.phase = match (self.phase, event) {
            (Phase::Waiting { .. }, Event::Started) => {
                self.restarts += u64::from(std::mem::take(&mut self.crashed));
                Phase::Launching { since: now }
            }
            // A command that cannot even be started.
            (Phase::Waiting { .. } | Phase::Launching { .. }, Event::Died) => self.fail(now, backoff),
            (Phase::Launching { .. }, Event::Ready) => {
                self.ever = Ever::Online;
                Phase::Online { since: now }
            }
            (Phase::Online { since }, Event::Died) => {
                if now.duration_since(since) >= backoff.min_uptime {
                    self.failures = 0;
                }
                self.fail(now, backoff)
            }
            (Phase::Launching { .. } | Phase::Online { .. }, Event::Replace) => {
                // What died before does not count against the successor.
                self.failures = 0;
                Phase::Waiting { until: now }
            }
            (Phase::Waiting { .. } | Phase::Launching { .. } | Phase::Online { .. }, Event::GiveUp) => Phase::Errored,
            (Phase::Waiting { .. } | Phase::Launching { .. } | Phase::Online { .. }, Event::Finish) => Phase::Finished,
            (
                Phase::Waiting { .. } | Phase::Launching { .. } | Phase::Online { .. } | Phase::Errored,
                Event::Restored(since),
            ) => {
                // That a successor fails says nothing of the worker before it.
                self.failures = 0;
                self.crashed = false;
                Phase::Online { since }
            }
            (Phase::Launching { .. } | Phase::Online { .. }, Event::Stop) => Phase::Stopping,
            (Phase::Waiting { .. } | Phase::Errored | Phase::Finished, Event::Stop) => Phase::Gone,
            (Phase::Stopping, Event::Emptied) => Phase::Gone,
            // A process of a slot may end while others of it still do: only the last one matters.
            (
                Phase::Stopping,
                Event::Died
                | Event::Ready
                | Event::Stop
                | Event::Started
                | Event::Replace
                | Event::Restored(_)
                | Event::GiveUp
                | Event::Finish,
            ) => Phase::Stopping,
            (phase @ (Phase::Waiting { .. } | Phase::Errored), Event::Replace) => phase,
            (phase @ (Phase::Waiting { .. } | Phase::Online { .. } | Phase::Errored), Event::Ready)
            | (phase @ (Phase::Launching { .. } | Phase::Online { .. } | Phase::Errored), Event::Started)
            | (
                phase @ (Phase::Waiting { .. } | Phase::Launching { .. } | Phase::Online { .. } | Phase::Errored),
                Event::Emptied,
            )
            | (phase @ Phase::Errored, Event::Died | Event::GiveUp | Event::Finish) => phase,
            (
                phase @ (Phase::Gone | Phase::Finished),
                Event::Started
                | Event::Ready
                | Event::Died
                | Event::Emptied
                | Event::Replace
                | Event::Restored(_)
                | Event::GiveUp
                | Event::Finish,
            ) => phase,
            (Phase::Gone, Event::Stop) => Phase::Gone,
        };
    }

    fn fail(&mut self, now: Instant, backoff: &Backoff) -> Phase {
        self.failures = self.failures.saturating_add(1);
        self.crashed = true;
        let most = if self.ever == Ever::Online { backoff.most } else { backoff.most.min(MAX_BEFORE_ONLINE) };
        if self.failures > most {
            return Phase::Errored;
        }
        let doubled = backoff.first.saturating_mul(1 << (self.failures - 1).min(20));
        Phase::Waiting { until: now + doubled.min(backoff.longest) }
    }
}

/// What the service shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All slots filled.
    Running,
    /// All slots empty.
    Stopped,
}

/// The slots to be started now, and when the next one is.
pub fn due_starts(now: Instant, wanted: Wanted, slots: &[Lifecycle]) -> (Vec<usize>, Option<Instant>) {
    let waits = slots.iter().enumerate().filter_map(|(at, slot)| match slot.phase {
        Phase::Waiting { until } if wanted == Wanted::Running => Some((at, until)),
        _ => None,
    });
    let (due, later): (Vec<_>, Vec<_>) = waits.partition(|&(_, until)| until <= now);
    (due.into_iter().map(|(at, _)| at).collect(), later.into_iter().map(|(_, until)| until).min())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(15),
        min_uptime: Duration::from_secs(1),
        most: 10,
    };

    fn pauses(mut slot: Lifecycle, mut now: Instant, online: bool) -> (Vec<u128>, Lifecycle) {
        let mut pauses = Vec::new();
        while let Phase::Waiting { until } = slot.phase {
            pauses.push(until.saturating_duration_since(now).as_millis());
            now = now.max(until);
            slot.apply(Event::Started, now, &BACKOFF);
            if online {
                slot.apply(Event::Ready, now, &BACKOFF);
            }
            slot.apply(Event::Died, now, &BACKOFF);
        }
        (pauses, slot)
    }

    #[test]
    fn a_crash_loop_backs_off_and_is_given_up() {
        let now = Instant::now();
        let (waits, slot) = pauses(Lifecycle::new(now), now, true);
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
        assert_eq!((slot.phase, slot.restarts), (Phase::Errored, 10));
    }

    #[test]
    fn one_that_was_never_online_is_given_up_sooner() {
        let now = Instant::now();
        assert_eq!(pauses(Lifecycle::new(now), now, false).0, [0, 100, 200, 400]);
    }

    #[test]
    fn only_starts_after_a_crash_are_restarts() {
        let now = Instant::now();
        let mut slot = Lifecycle::new(now);
        let mut apply = |events: &[Event]| {
            events.iter().for_each(|&event| slot.apply(event, now, &BACKOFF));
            slot
        };
        let online = [Event::Started, Event::Ready];
        apply(&online);
        assert_eq!(apply(&[Event::Replace, Event::Started, Event::Ready]).restarts, 0);
        // A successor that died, and the worker before it back in its place.
        let restored = [Event::Replace, Event::Started, Event::Died, Event::Restored(now)];
        assert_eq!(apply(&restored).restarts, 0);
        assert_eq!(apply(&[Event::Replace, Event::Started, Event::Ready]).restarts, 0);
        assert_eq!(apply(&[Event::Died, Event::Started, Event::Ready]).restarts, 1);
        assert_eq!(apply(&[Event::Replace, Event::Started]).restarts, 1);
        assert_eq!(slot.again(now).restarts, 1);
    }

    #[test]
    fn a_slot_that_has_finished_or_was_given_up_is_not_started_again() {
        let now = Instant::now();
        for (event, phase) in [(Event::Finish, Phase::Finished), (Event::GiveUp, Phase::Errored)] {
            let mut slot = Lifecycle::new(now);
            slot.apply(Event::Started, now, &BACKOFF);
            slot.apply(event, now, &BACKOFF);
            assert_eq!(slot.phase, phase);
            assert_eq!(due_starts(now + Duration::from_secs(60), Wanted::Running, &[slot]), (vec![], None));
            slot.apply(Event::Stop, now, &BACKOFF);
            assert_eq!(slot.phase, Phase::Gone);
        }
    }

    #[test]
    fn a_long_life_resets_the_back_off() {
        let mut now = Instant::now();
        let mut slot = Lifecycle::new(now);
        for _ in 0..50 {
            slot.apply(Event::Started, now, &BACKOFF);
            slot.apply(Event::Ready, now, &BACKOFF);
            now += BACKOFF.min_uptime;
            slot.apply(Event::Died, now, &BACKOFF);
            assert_eq!(slot.phase, Phase::Waiting { until: now + BACKOFF.first });
            now += BACKOFF.first;
        }
    }

    #[test]
    fn a_stop_ends_every_slot_whatever_it_does() {
        let now = Instant::now();
        let mut online = Lifecycle::new(now);
        online.apply(Event::Started, now, &BACKOFF);
        let launching = online;
        online.apply(Event::Ready, now, &BACKOFF);
        let mut slots = [Lifecycle::new(now), launching, online];
        slots.iter_mut().for_each(|slot| slot.apply(Event::Stop, now, &BACKOFF));
        assert_eq!(due_starts(now, Wanted::Running, &slots), (vec![], None));
        slots.iter_mut().for_each(|slot| slot.apply(Event::Emptied, now, &BACKOFF));
        assert!(slots.iter().all(|slot| slot.phase == Phase::Gone));
    }

    proptest! {
        #[test]
        fn no_history_brings_a_gone_slot_back_or_starts_one_that_runs(
            events in proptest::collection::vec((0u8..5, 0u64..5000), 0..200),
        ) {
            let mut now = Instant::now();
            let mut slot = Lifecycle::new(now);
            for (event, wait) in events {
                now += Duration::from_millis(wait);
                let event = [Event::Started, Event::Ready, Event::Died, Event::Stop, Event::Emptied][usize::from(event)];
                let before = slot.phase;
                slot.apply(event, now, &BACKOFF);
                if before == Phase::Gone { prop_assert_eq!(slot.phase, Phase::Gone); }
                let (starts, _) = due_starts(now + Duration::from_secs(60), Wanted::Running, &[slot]);
                let empty = matches!(slot.phase, Phase::Waiting { .. });
                prop_assert_eq!(!starts.is_empty(), empty);
            }
        }
    }
}
