//! Workers that have closed all that they listened on.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::slot::Slot;
use crate::slot::lifecycle::Phase;
use crate::worker::server::StopRequest;

/// A worker that listens nowhere for so long is not online.
const SILENCE: Duration = Duration::from_secs(1);

impl Slot {
    /// When its worker is said to listen nowhere; `None` where it listens, that was said, or it need not listen: it is not
    /// online (yet), or was told to end.
    fn silence_due(&self) -> Option<Instant> {
        let (server, direct) = self.current.as_ref()?.direct()?;
        let (since, said) = direct.left.silent?;
        // A worker of Node's cluster may listen on what only its like share.
        let elsewhere = server.ipc.as_ref().is_some_and(|ipc| ipc.listens);
        let listens = matches!(self.lifecycle.phase, Phase::Online { .. })
            && server.stop_request == StopRequest::NotSent
            && !elsewhere;
        (listens && !said).then_some(since + SILENCE)
    }

    /// Says that its worker listens nowhere, when it is due.
    pub(super) fn step_silence(&mut self, service: &str, at: usize, now: Instant) -> Option<Instant> {
        let due = self.silence_due()?;
        if now < due {
            return Some(due);
        }
        if let Some((_, said)) = self.attachment_mut().and_then(|direct| direct.left.silent.as_mut()) {
            *said = true;
        }
        self.history.reason = Some("it has closed what it listened on".to_owned());
        let pid = self.server().map(|server| server.pid);
        warn!(service, slot = at, pid, "worker has closed what it listened on; nobody receives there");
        None
    }

    /// Its worker listens, perhaps again.
    pub(super) fn listens_again(&mut self, service: &str, at: usize) {
        let Some(direct) = self.attachment_mut() else { return };
        if let Some((_, true)) = direct.left.silent.take() {
            self.history.reason = None;
            info!(service, slot = at, "worker listens again");
        }
    }

    /// Whether its worker has closed all that it listened on.
    pub fn is_silent(&self) -> bool {
        self.attachment().is_some_and(|direct| direct.left.silent.is_some_and(|(_, said)| said))
    }
}
