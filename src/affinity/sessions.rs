//! Sessions that workers have made, and which worker has which.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::forgotten::Forgotten;

/// Sessions of one worker, at most; one more makes it forget the oldest, which has most likely become a WebSocket: that
/// needs no further connection.
pub const MAX_PER_WORKER: usize = 65_536;
/// Below this capacity, memory is not given back.
const SMALL: usize = 1024;
/// The longest name of a session, in bytes.
pub const MAX_NAME: usize = 256;

/// A session began or ended, by the [`super::digest`] of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Opened(u64),
    Closed(u64),
}

/// Sessions by their digest. `W` names a worker.
#[derive(Debug)]
pub struct Sessions<W> {
    /// The worker, and the session's number, counted over all.
    all: HashMap<u64, (W, u64)>,
    /// By number: the oldest first.
    of: HashMap<W, BTreeMap<u64, u64>>,
    forgotten: Forgotten,
    last: u64,
    max: usize,
}

impl<W> Default for Sessions<W> {
    fn default() -> Self {
        Self { all: HashMap::new(), of: HashMap::new(), forgotten: Forgotten::default(), last: 0, max: MAX_PER_WORKER }
    }
}

impl<W: Copy + Eq + Hash> Sessions<W> {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All with their workers, the oldest first.
    pub fn all(&self) -> Vec<(u64, W)> {
        let mut all: Vec<_> = self.all.iter().map(|(session, (worker, number))| (*number, *session, *worker)).collect();
        all.sort_by_key(|(number, ..)| *number);
        all.into_iter().map(|(_, session, worker)| (session, worker)).collect()
    }

    /// The worker that has a session.
    pub fn worker(&self, session: u64) -> Option<W> {
        self.all.get(&session).map(|(worker, _)| *worker)
    }

    /// Whether nobody has the session any more: no report is on its way.
    pub fn is_over(&self, session: u64) -> bool {
        !self.all.contains_key(&session) && self.forgotten.contains(session)
    }

    /// A worker reports. The sessions of others stay what they are.
    pub fn change(&mut self, worker: W, change: Change) {
        match change {
            Change::Opened(session) if self.all.contains_key(&session) => {}
            Change::Opened(session) => {
                self.last += 1;
                self.all.insert(session, (worker, self.last));
                let own = self.of.entry(worker).or_default();
                own.insert(self.last, session);
                if own.len() > self.max
                    && let Some((_, oldest)) = own.pop_first()
                {
                    self.drop(oldest);
                }
            }
            Change::Closed(session) => {
                if let Some(&(owner, number)) = self.all.get(&session)
                    && owner == worker
                {
                    self.drop(session);
                    if let Some(own) = self.of.get_mut(&worker) {
                        own.remove(&number);
                    }
                    self.shrink();
                }
            }
        }
    }

    fn drop(&mut self, session: u64) {
        self.all.remove(&session);
        self.forgotten.add(session);
    }

    /// Gives memory back after a crowd.
    fn shrink(&mut self) {
        if self.all.capacity() > SMALL && self.all.len() < self.all.capacity() / 4 {
            self.all.shrink_to(self.all.len() * 2);
        }
    }

    /// Forgets the sessions of a worker.
    pub fn forget(&mut self, worker: W) {
        for session in self.of.remove(&worker).unwrap_or_default().into_values() {
            self.drop(session);
        }
        self.shrink();
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        let all = std::mem::take(&mut self.all);
        all.into_keys().for_each(|session| self.forgotten.add(session));
        self.of.clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn few(max: usize) -> Sessions<u8> {
        Sessions { max, ..Sessions::default() }
    }

    #[test]
    fn a_session_is_its_workers_until_that_one_ends_it_or_is_gone() {
        let mut sessions = few(9);
        sessions.change(1, Change::Opened(10));
        sessions.change(2, Change::Opened(20));
        assert_eq!((sessions.worker(10), sessions.worker(20), sessions.worker(30)), (Some(1), Some(2), None));
        sessions.change(2, Change::Opened(10));
        sessions.change(2, Change::Closed(10));
        assert_eq!(sessions.worker(10), Some(1), "another worker changes nothing");
        sessions.change(1, Change::Closed(10));
        assert_eq!(sessions.worker(10), None);
        sessions.forget(2);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_session_is_over_once_nobody_has_it_whatever_took_it_away() {
        let mut sessions = few(2);
        let over = |sessions: &Sessions<u8>| (0..7).filter(|session| sessions.is_over(*session)).collect::<Vec<_>>();
        (0..4).for_each(|session| sessions.change(1, Change::Opened(session)));
        assert_eq!(over(&sessions), [0, 1], "displaced");
        sessions.change(1, Change::Closed(2));
        sessions.change(2, Change::Closed(3));
        assert_eq!(over(&sessions), [0, 1, 2]);
        sessions.change(2, Change::Opened(0));
        assert_eq!(over(&sessions), [1, 2], "somebody has it again");
        sessions.forget(1);
        assert_eq!(over(&sessions), [1, 2, 3]);
        sessions.change(1, Change::Opened(4));
        sessions.clear();
        assert_eq!(over(&sessions), [0, 1, 2, 3, 4]);
        assert!(sessions.is_empty());
    }

    #[test]
    fn memory_is_given_back_after_a_crowd_however_it_leaves() {
        for forgets in [false, true] {
            let mut sessions = few(usize::MAX);
            (0..50_000).for_each(|session| sessions.change(1, Change::Opened(session)));
            sessions.change(2, Change::Opened(60_000));
            if forgets {
                sessions.forget(1);
            } else {
                (0..50_000).for_each(|session| sessions.change(1, Change::Closed(session)));
            }
            assert_eq!((sessions.len(), sessions.worker(60_000)), (1, Some(2)));
            assert!(sessions.all.capacity() <= SMALL, "{}", sessions.all.capacity());
        }
    }

    #[test]
    fn one_too_many_displaces_the_workers_own_oldest() {
        let mut sessions = few(3);
        sessions.change(2, Change::Opened(1000));
        (0..10).for_each(|session| sessions.change(1, Change::Opened(session)));
        let kept: Vec<_> = (0..10).filter(|session| sessions.worker(*session).is_some()).collect();
        assert_eq!(kept, [7, 8, 9]);
        assert_eq!(sessions.worker(1000), Some(2));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Change(u8, Change),
        Forget(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..3_u8, 0..20_u64).prop_map(|(worker, session)| Step::Change(worker, Change::Opened(session))),
            4 => (0..3_u8, 0..20_u64).prop_map(|(worker, session)| Step::Change(worker, Change::Closed(session))),
            1 => (0..3_u8).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn both_tables_agree_and_are_bounded(steps in prop::collection::vec(step(), 0..200)) {
            let mut sessions = few(4);
            for step in steps {
                match step {
                    Step::Change(worker, change) => sessions.change(worker, change),
                    Step::Forget(worker) => sessions.forget(worker),
                }
                let listed: HashMap<u64, (u8, u64)> = sessions
                    .of
                    .iter()
                    .flat_map(|(worker, own)| own.iter().map(|(number, session)| (*session, (*worker, *number))))
                    .collect();
                prop_assert_eq!(&listed, &sessions.all);
                prop_assert!(sessions.of.values().all(|own| own.len() <= 4));
            }
        }
    }
}
