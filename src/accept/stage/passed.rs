//! Connections of which all is known that has to be, on their way to a worker. Mostly that is the rest of a turn; where every worker is
//! full and no more clients may be held, it is longer.

use std::collections::{BTreeMap, VecDeque};

use super::Arrival;
use crate::accept::orders::ListenerId;

/// By listener, since each has workers of its own; the one that passed first is the first to go.
#[derive(Debug, Default)]
pub struct Passed {
    queues: BTreeMap<ListenerId, VecDeque<Arrival>>,
    len: usize,
    /// Some have passed since the last turn.
    pub any_new: bool,
}

impl Passed {
    pub fn len(&self) -> usize {
        self.len
    }

    /// All; those of a listener in their order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arrival> {
        self.queues.values().flatten()
    }

    pub(super) fn push(&mut self, arrival: Arrival) {
        self.queues.entry(arrival.listener).or_default().push_back(arrival);
        self.len += 1;
        self.any_new = true;
    }

    /// Listeners with connections here.
    pub fn listeners(&self) -> Vec<ListenerId> {
        self.queues.keys().copied().collect()
    }

    /// Takes out the first one of a listener.
    pub(super) fn pop(&mut self, listener: ListenerId) -> Option<Arrival> {
        self.take(listener, VecDeque::pop_front)
    }

    /// Takes out the last one of the listener that has most.
    pub(super) fn pop_newest(&mut self) -> Option<Arrival> {
        let (&fullest, _) = self.queues.iter().max_by_key(|(_, queue)| queue.len())?;
        self.take(fullest, VecDeque::pop_back)
    }

    fn take(
        &mut self,
        listener: ListenerId,
        end: impl FnOnce(&mut VecDeque<Arrival>) -> Option<Arrival>,
    ) -> Option<Arrival> {
        let queue = self.queues.get_mut(&listener)?;
        let arrival = end(queue);
        self.len -= usize::from(arrival.is_some());
        // Nothing is due for those that were reset before a turn came.
        self.any_new &= self.len > 0;
        if queue.is_empty() {
            self.queues.remove(&listener);
        }
        arrival
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::handoff::Client;
    use crate::sys::sock::PeerAddress;

    #[test]
    fn each_listener_has_its_own_order() {
        let mut passed = Passed::default();
        for (listener, looked) in [(3, 0), (1, 1), (3, 2), (1, 3), (3, 4)] {
            let (socket, peer) = (std::os::unix::net::UnixStream::pair().unwrap().0.into(), PeerAddress::default());
            passed.push(Arrival { listener, socket, client: Client::default(), peer, looked });
        }
        assert_eq!((passed.listeners(), passed.len(), passed.any_new), (vec![1, 3], 5, true));
        let mut order = |listener| std::iter::from_fn(|| Some(passed.pop(listener)?.looked)).collect::<Vec<_>>();
        assert_eq!((order(3), order(2), order(1)), (vec![0, 2, 4], vec![], vec![1, 3]));
        assert_eq!((passed.listeners(), passed.len()), (vec![], 0));
        for (listener, looked) in [(1, 0), (3, 1), (3, 2)] {
            let (socket, peer) = (std::os::unix::net::UnixStream::pair().unwrap().0.into(), PeerAddress::default());
            passed.push(Arrival { listener, socket, client: Client::default(), peer, looked });
        }
        assert_eq!((passed.pop_newest().unwrap().looked, passed.pop(3).unwrap().looked, passed.len()), (2, 1, 1));
    }
}
