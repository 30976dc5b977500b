//! Ports that a worker opens for itself, besides those that the workers of its service share: passive FTP's, for example.
//! The kernel serves them, as without us. Shared, they would bring a client to a worker that knows nothing of it.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{Handler, State};
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;

/// What decides about an address for which the service has no listener, when a worker binds it.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// No slot is on its way through its first start.
    all_started: bool,
    /// How long the worker has been online.
    online: Option<Duration>,
    /// It has received a connection, so the port may be for that client.
    received: bool,
    /// It listens on a port of the service. Without one, this is where the service goes on.
    serves: bool,
}

impl Facts {
    /// Servers open the ports of their service one after the other, and are online with the first one. As long as no client
    /// has come, a worker has `min_uptime` for the others.
    fn are_of_own_port(self, min_uptime: Duration) -> bool {
        let has_started = self.online.is_some_and(|online| self.received || online >= min_uptime);
        self.all_started && self.serves && has_started
    }
}

/// Whether a slot has got through its first start, or failed. One that does not listen in time is not waited for.
fn has_started(slot: &Slot, listen_timeout: Duration, now: Instant) -> bool {
    match slot.lifecycle.phase {
        Phase::Waiting { .. } => slot.generation > 0 || slot.lifecycle.is_failing(),
        Phase::Launching { since } => slot.generation > 1 || now.duration_since(since) >= listen_timeout,
        Phase::Online { .. } | Phase::Stopping | Phase::Gone | Phase::Finished | Phase::Errored => true,
    }
}

impl State {
    /// Notes the end of the first start. Slots that come later, and their first start, change nothing.
    pub(super) fn note_started(&mut self, slots: &[Slot], listen_timeout: Duration, now: Instant) {
        self.all_started = self.all_started || slots.iter().all(|slot| has_started(slot, listen_timeout, now));
    }
}

impl Handler<'_> {
    /// Whether an address that is new to the service is only that worker's.
    pub(super) fn is_own(&mut self, at: usize, now: Instant) -> bool {
        self.state.note_started(self.slots, self.config.limits.listen_timeout, now);
        let slot = &self.slots[at];
        let Some(direct) = slot.attachment() else { return false };
        let online = match slot.lifecycle.phase {
            Phase::Online { since } => Some(now.duration_since(since)),
            _ => None,
        };
        let facts = Facts {
            all_started: self.state.all_started,
            online,
            received: direct.page.received_and_open().0 > 0,
            serves: !direct.listening.is_empty(),
        };
        facts.are_of_own_port(self.config.limits.min_uptime)
    }

    /// Leaves a port to the kernel.
    pub(super) fn leave_to_kernel(&mut self, at: usize, port: u16) {
        if let Some(direct) = self.slots[at].attachment_mut() {
            direct.passed.insert(port);
        }
    }

    /// A worker that starts cannot have a port that another one opened for itself: says, once, what to do.
    pub(super) fn explain_own(&mut self, at: usize, port: u16) {
        let has = |slot: &Slot| {
            slot.workers().filter_map(|worker| worker.attachment()).any(|direct| direct.passed.contains(&port))
        };
        let Some(other) = self.slots.iter().position(has).filter(|_| !self.state.hinted) else { return };
        self.state.hinted = true;
        let served = self.listeners.all().iter().filter_map(|listener| listener.port);
        let flags: Vec<_> = served.chain([port]).map(|port| format!("-l {port}")).collect();
        warn!(
            service = %self.config.name, slot = at,
            "worker {at} cannot listen on :{port}: worker {other} opened it for itself after the start; if all workers \
             shall serve it, use {}", flags.join(" ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN_UPTIME: Duration = Duration::from_secs(1);

    #[test]
    fn a_port_is_a_workers_own_once_all_have_started_and_it_serves() {
        let online = [None, Some(Duration::ZERO), Some(MIN_UPTIME / 2), Some(MIN_UPTIME), Some(MIN_UPTIME * 100)];
        let bools = [false, true];
        for all_started in bools {
            for serves in bools {
                for received in bools {
                    for (at, online) in online.into_iter().enumerate() {
                        let facts = Facts { all_started, online, received, serves };
                        let expected = all_started && serves && (at >= 3 || at > 0 && received);
                        assert_eq!(facts.are_of_own_port(MIN_UPTIME), expected, "{facts:?}");
                    }
                }
            }
        }
        let facts = Facts { all_started: true, online: Some(Duration::ZERO), received: false, serves: true };
        assert!(facts.are_of_own_port(Duration::ZERO), "--min-uptime 0s");
    }

    #[test]
    fn the_first_start_is_over_when_no_slot_is_waited_for() {
        const TIMEOUT: Duration = Duration::from_secs(30);
        let now = Instant::now();
        let slot = |phase, generation| {
            let mut slot = Slot::new(now);
            (slot.lifecycle.phase, slot.generation) = (phase, generation);
            slot
        };
        let launching = |since| Phase::Launching { since };
        let late = now.checked_sub(TIMEOUT).unwrap_or(now);
        for (phase, generation, started) in [
            (Phase::Waiting { until: now }, 0, false),
            // Its first worker has died.
            (Phase::Waiting { until: now }, 1, true),
            (launching(now), 1, false),
            (launching(late), 1, true),
            (launching(now), 2, true),
            (Phase::Online { since: now }, 1, true),
            (Phase::Stopping, 1, true),
            (Phase::Gone, 0, true),
            (Phase::Finished, 1, true),
            (Phase::Errored, 1, true),
        ] {
            let slots = [slot(Phase::Online { since: now }, 1), slot(phase, generation)];
            let mut state = State::default();
            state.note_started(&slots, TIMEOUT, now);
            assert_eq!(state.all_started, started, "{phase:?}, generation {generation}");
            state.note_started(&slots[..1], TIMEOUT, now);
            state.note_started(&slots, TIMEOUT, now);
            assert!(state.all_started, "a slot that comes later does not begin it again");
        }
    }
}
