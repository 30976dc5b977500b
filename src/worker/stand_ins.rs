//! What a worker's processes have closed of their stand-ins.

use std::collections::BTreeMap;
use std::time::Instant;

use super::attachment::Attachment;
use crate::accept::orders::ListenerId;

/// What a worker's processes have closed.
#[derive(Debug, Default)]
pub struct Left {
    pub looks: BTreeMap<ListenerId, Look>,
    pub not_before: Option<Instant>,
    /// Whether a process has a stand-in that it inherited, and its parent no more.
    pub inherited: bool,
    /// Since when it listens nowhere, though it is online; and whether that was said.
    pub silent: Option<(Instant, bool)>,
}

/// Who else has a stand-in is to be seen.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Who has closed it.
    pub closer: u32,
    pub due: Instant,
    pub again: bool,
}

impl Left {
    /// Of a worker that was taken over: what its processes have closed is looked at anew.
    pub fn of_closed(closed: Vec<(ListenerId, u32)>, inherited: bool) -> Self {
        let look = |closer| Look { closer, due: Instant::now(), again: false };
        let looks = closed.into_iter().map(|(id, closer)| (id, look(closer))).collect();
        Self { looks, inherited, ..Self::default() }
    }

    /// A process has it that asked for it.
    pub fn has(&mut self, id: ListenerId) {
        self.looks.remove(&id);
    }
}

impl Attachment {
    /// When its stand-ins are to be looked at.
    pub fn look_due(&self) -> Option<Instant> {
        let due = self.left.looks.values().map(|look| look.due).min()?;
        Some(self.left.not_before.map_or(due, |not_before| due.max(not_before)))
    }
}
