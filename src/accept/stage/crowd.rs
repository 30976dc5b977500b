//! The connections in the stages of all services: together they take no more of the master's descriptors than one may.

use std::sync::atomic::Ordering::Relaxed;

use crate::accept::Context;
use crate::accept::dispatcher::ServiceDispatcher;

/// After the turn of one service: where there are too many connections, those of the service where most of them wait leave.
pub(in crate::accept) fn make_room(services: &mut [ServiceDispatcher], after: usize, cx: &Context) {
    let rules = services.get(after).and_then(|service| service.rules.stage.as_ref());
    let Some(max) = rules.map(|rules| rules.max) else { return };
    // One that goes without a key may have to stay until a worker has room: it is still one of them.
    for _ in max..cx.staged.get() {
        let fullest = services.iter_mut().max_by_key(|service| service.stage.waiting.len());
        if !fullest.is_some_and(|service| service.evict(cx)) {
            return;
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
}
