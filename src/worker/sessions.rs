//! Sessions in which a worker's processes had listeners, besides the server's own.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::sys::process;

/// The most that are remembered; the eldest is forgotten first.
const MAX: usize = 32;

/// Sessions by number, each with the start of its leader (as field 22 of /proc/PID/stat has it), if that had not ended yet: once
/// the last process has left a session, another one may get its number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions(VecDeque<(u32, Option<u64>)>);

impl Sessions {
    pub fn note(&mut self, session: u32) {
        if self.contains(session) {
            return;
        }
        self.0.retain(|(known, _)| *known != session);
        if self.0.len() == MAX {
            self.0.pop_front();
        }
        self.0.push_back((session, process::started(session)));
    }

    /// Those that can still be the same.
    pub fn same(&self) -> impl Iterator<Item = u32> {
        // Without its leader a session goes on under its number while a process is in it.
        let is_same =
            |(session, leader): &&(u32, Option<u64>)| process::started(*session).is_none_or(|now| *leader == Some(now));
        self.0.iter().filter(is_same).map(|(session, _)| *session)
    }

    pub fn contains(&self, session: u32) -> bool {
        self.same().any(|known| known == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_leader_and_the_latest_are() {
        let own = std::process::id();
        let mut sessions = Sessions::default();
        sessions.note(own);
        assert!(sessions.contains(own));
        let mut other = Sessions(VecDeque::from([(own, Some(1)), (own + 1, None)]));
        assert!(!other.contains(own), "a leader that began at another time");
        other.note(own);
        assert!(other.contains(own));
        // No process has these numbers.
        (0..MAX as u32).for_each(|n| sessions.note(u32::MAX / 2 - n));
        assert!(!sessions.contains(own) && sessions.contains(u32::MAX / 2), "the eldest is forgotten");
        assert_eq!(sessions.0.len(), MAX);
    }
}
