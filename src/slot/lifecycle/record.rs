//! A slot's life in a daemon's record.

use serde::{Deserialize, Serialize};

use super::{Ever, Lifecycle, Phase};
use crate::record::Moment;

#[derive(Debug, Serialize, Deserialize)]
pub struct LifecycleRecord {
    phase: PhaseRecord,
    restarts: u64,
    failures: u32,
    crashed: bool,
    ever_online: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum PhaseRecord {
    Waiting(Moment),
    Launching(Moment),
    Online(Moment),
    Stopping,
    Gone,
    Finished,
    Errored,
}

impl Lifecycle {
    pub fn record(&self) -> LifecycleRecord {
        let Self { phase, restarts, failures, crashed, ever } = *self;
        let phase = match phase {
            Phase::Waiting { until } => PhaseRecord::Waiting(until.into()),
            Phase::Launching { since } => PhaseRecord::Launching(since.into()),
            Phase::Online { since } => PhaseRecord::Online(since.into()),
            Phase::Stopping => PhaseRecord::Stopping,
            Phase::Gone => PhaseRecord::Gone,
            Phase::Finished => PhaseRecord::Finished,
            Phase::Errored => PhaseRecord::Errored,
        };
        LifecycleRecord { phase, restarts, failures, crashed, ever_online: ever == Ever::Online }
    }

    pub fn adopt(LifecycleRecord { phase, restarts, failures, crashed, ever_online }: LifecycleRecord) -> Self {
        let phase = match phase {
            PhaseRecord::Waiting(until) => Phase::Waiting { until: until.into() },
            PhaseRecord::Launching(since) => Phase::Launching { since: since.into() },
            PhaseRecord::Online(since) => Phase::Online { since: since.into() },
            PhaseRecord::Stopping => Phase::Stopping,
            PhaseRecord::Gone => Phase::Gone,
            PhaseRecord::Finished => Phase::Finished,
            PhaseRecord::Errored => Phase::Errored,
        };
        Self { phase, restarts, failures, crashed, ever: if ever_online { Ever::Online } else { Ever::Never } }
    }
}
