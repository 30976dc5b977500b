//! Connections that are refused before a worker is chosen: why, how many, and what the log says of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::affinity::head::NoKey;

/// What was refused is reported this often at most.
const REPORTS: Duration = Duration::from_secs(1);

/// Why a connection was refused before a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A trusted source did not begin with a valid PROXY header.
    ProxyInvalid,
    /// Its header did not come in time.
    ProxyTimeout,
    /// It left before it had sent all that was to be known.
    ClientLeft,
    /// More connections waited here than may.
    StageFull,
    /// Its address may not connect.
    Denied,
    /// Its source has as many connections as it may.
    SourceConns,
    /// Its source's connections come faster than they may.
    SourceRate,
    /// It has sent nothing in time.
    FirstByteTimeout,
}

impl Refusal {
    pub const ALL: [Self; 8] = [
        Self::ProxyInvalid,
        Self::ProxyTimeout,
        Self::ClientLeft,
        Self::StageFull,
        Self::Denied,
        Self::SourceConns,
        Self::SourceRate,
        Self::FirstByteTimeout,
    ];

    /// The reason in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProxyInvalid => "proxy-invalid",
            Self::ProxyTimeout => "proxy-timeout",
            Self::ClientLeft => "client-left",
            Self::StageFull => "stage-full",
            Self::Denied => "denied",
            Self::SourceConns => "source-conns",
            Self::SourceRate => "source-rate",
            Self::FirstByteTimeout => "first-byte-timeout",
        }
    }
}

/// Counters of the stage. The accept thread writes them, the control thread reads them.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Connections that wait here (a gauge).
    pub waiting: AtomicU64,
    /// Valid PROXY headers.
    pub headers: AtomicU64,
    /// Connections whose first request had a key, which decided.
    pub keys: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    no_key: [AtomicU64; NoKey::ALL.len()],
}

impl StageStats {
    /// Connections whose first request was looked at and did not decide.
    pub fn without_key(&self, reason: NoKey) -> u64 {
        self.no_key[reason as usize].load(Relaxed)
    }

    pub(super) fn no_key(&self, reason: NoKey) {
        self.no_key[reason as usize].fetch_add(1, Relaxed);
    }

    /// All that it counts, without what is there now.
    pub fn counters(&self) -> impl Iterator<Item = &AtomicU64> {
        let Self { waiting: _, headers, keys, refused, no_key } = self;
        [headers, keys].into_iter().chain(refused).chain(no_key)
    }

    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    pub(super) fn count(&self, reason: Refusal) {
        self.refused[reason as usize].fetch_add(1, Relaxed);
    }
}

/// What was refused and is not in the log yet. Clients that come and go as they like write at most one line a second for
/// each reason; one that only left writes none.
#[derive(Debug, Default)]
pub(super) struct Unreported {
    counts: [usize; Refusal::ALL.len()],
    reported: Option<Instant>,
}

impl Unreported {
    pub fn add(&mut self, reason: Refusal) {
        if reason != Refusal::ClientLeft {
            self.counts[reason as usize] += 1;
        }
    }

    /// When the next report is due; `None`: there is nothing to report.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let any = self.counts.iter().any(|count| *count > 0);
        any.then(|| self.reported.map_or(now, |last| last + REPORTS))
    }

    /// What is to be reported now, by reason.
    pub fn take(&mut self, now: Instant) -> impl Iterator<Item = (Refusal, usize)> + use<> {
        let counts = if self.due(now).is_some_and(|at| at <= now) {
            self.reported = Some(now);
            std::mem::take(&mut self.counts)
        } else {
            Default::default()
        };
        Refusal::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_where_they_are_read() {
        for (at, reason) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
        for (at, reason) in NoKey::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }

    #[test]
    fn all_is_reported_once_and_at_most_once_a_second() {
        let (start, mut unreported) = (Instant::now(), Unreported::default());
        let mut add = |seconds, reason| {
            let now = start + Duration::from_millis(seconds);
            unreported.add(reason);
            (
                unreported.take(now).collect::<Vec<_>>(),
                unreported.due(now).map(|at| at.duration_since(start).as_millis()),
            )
        };
        assert_eq!(add(0, Refusal::ClientLeft), (vec![], None));
        assert_eq!(add(0, Refusal::StageFull), (vec![(Refusal::StageFull, 1)], None));
        assert_eq!(add(10, Refusal::StageFull), (vec![], Some(1000)));
        assert_eq!(add(999, Refusal::ProxyTimeout), (vec![], Some(1000)));
        let both = vec![(Refusal::ProxyTimeout, 2), (Refusal::StageFull, 1)];
        assert_eq!(add(1000, Refusal::ProxyTimeout), (both, None));
    }
}
