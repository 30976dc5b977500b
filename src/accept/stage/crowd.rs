//! The connections in the stages of all services: together those that wait take no more of the master's descriptors
//! than those of one service may, and those that have passed no more than that.

use std::sync::atomic::Ordering::Relaxed;

use super::refusals::Refusal;
use crate::accept::Context;
use crate::accept::dispatcher::ServiceDispatcher;

/// After the turn of one service: where there are too many connections, those of the service where most of them wait leave.
pub(in crate::accept) fn make_room(services: &mut [ServiceDispatcher], after: usize, cx: &Context) {
    let rules = services.get(after).and_then(|service| service.rules.stage.as_ref());
    let Some(max) = rules.map(|rules| rules.max) else { return };
    for _ in max..cx.staged.get() {
        let fullest = services.iter_mut().max_by_key(|service| service.stage.waiting.len());
        if !fullest.is_some_and(|service| service.evict(cx)) {
            break;
        }
    }
    // Those that have passed are not among them: one that goes without its key may have to stay until a worker has room, and would have the
    // next one go.
    for _ in max..cx.passed.get() {
        let fullest = services.iter_mut().max_by_key(|service| service.stage.passed.len());
        if !fullest.is_some_and(|service| service.refuse_newest(cx)) {
            break;
        }
    }
}

impl ServiceDispatcher {
    /// Makes room for another connection; `false`: none waits here.
    pub(super) fn evict(&mut self, cx: &Context) -> bool {
        let evicted = self.stage.evictions.next().and_then(|place| self.stage.remove(place, cx));
        let Some(evicted) = evicted else { return false };
        self.give_way(evicted, cx);
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
        true
    }

    /// Resets the one that has passed last, of the listener with most of them; `false`: none has.
    fn refuse_newest(&mut self, cx: &Context) -> bool {
        let Some(newest) = self.stage.passed.pop_newest() else { return false };
        cx.passed.set(cx.passed.get().saturating_sub(1));
        self.refuse_one(newest, Refusal::StageFull);
        self.stats.stage.waiting.store(self.stage.len() as u64, Relaxed);
        true
    }
}
