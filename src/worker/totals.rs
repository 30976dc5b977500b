//! What the workers of a slot counted, over all of them: no restart and no reload lets a total fall.

use std::sync::Arc;

use crate::handoff::page::{CountersPage, Counts};

/// A slot's totals.
#[derive(Debug, Default)]
pub struct Totals {
    /// Of workers that are gone.
    past: Counts,
    /// Pages that somebody may still write to.
    pages: Vec<Arc<CountersPage>>,
}

impl Totals {
    /// A new worker counts on this page.
    pub fn track(&mut self, page: &Arc<CountersPage>) {
        let past = &mut self.past;
        self.pages.retain(|page| {
            // Nobody but us has it any more: its worker is gone.
            let ended = Arc::strong_count(page) == 1;
            if ended {
                *past += page.counts();
            }
            !ended
        });
        self.pages.push(page.clone());
    }

    /// What workers counted whose pages are not among these.
    pub fn without(&self, current: &[Arc<CountersPage>]) -> Counts {
        let others = self.pages.iter().filter(|page| !current.iter().any(|current| Arc::ptr_eq(current, page)));
        others.fold(self.past, |mut sum, page| {
            sum += page.counts();
            sum
        })
    }

    /// Goes on from what was counted before.
    pub fn from_past(past: Counts) -> Self {
        Self { past, pages: Vec::new() }
    }

    /// All that was counted so far; `open` in it means nothing.
    pub fn total(&self) -> Counts {
        self.pages.iter().fold(self.past, |mut sum, page| {
            sum += page.counts();
            sum
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::abi::page::row;

    #[test]
    fn totals_outlive_their_workers_and_only_pages_in_use_are_kept() {
        let mut totals = Totals::default();
        for _ in 0..10 {
            let page = Arc::new(CountersPage::create().unwrap().0);
            totals.track(&page);
            page.add(row::PID, 1);
            page.add(row::RECEIVED, 3);
            page.record_latency(3, 10_000);
        }
        let total = totals.total();
        assert_eq!((total.received, total.latencies.iter().sum::<u64>(), total.latency_ns), (30, 30, 300_000));
        assert_eq!(totals.pages.len(), 1);
    }
}
