//! Servers that do not listen where they are expected: found and named.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::warn;

use super::binding::ids;
use super::service::Service;
use super::slot::Phase;
use super::worker::Server;
use crate::who;

/// A server that listens, but elsewhere, is named this soon.
const SOON: Duration = Duration::from_secs(2);

/// What the log has said of a server that does not listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complained {
    /// Nothing.
    NotYet,
    /// It was looked for other ports.
    Ports,
    /// That it listens nowhere.
    Silence,
}

impl Complained {
    /// When the next look is due.
    pub fn due(self, since: Instant, timeout: Duration) -> Option<Instant> {
        match self {
            Self::NotYet => Some(since + SOON.min(timeout)),
            Self::Ports => Some(since + timeout),
            Self::Silence => None,
        }
    }

    /// What is to be said now.
    fn step(&mut self, since: Instant, timeout: Duration, now: Instant) -> Option<Self> {
        if self.due(since, timeout).is_none_or(|at| now < at) {
            return None;
        }
        *self = match self {
            Self::NotYet if SOON < timeout => Self::Ports,
            _ => Self::Silence,
        };
        Some(*self)
    }
}

/// One look at a server behind a relay that does not accept yet; the address that does, when it begins to.
pub fn look(
    server: &mut Server,
    service: &str,
    slot: Option<usize>,
    timeout: Duration,
    now: Instant,
) -> Option<SocketAddr> {
    let accepting = server.probe.as_mut()?.accepts(now);
    if let Some(accepting) = accepting {
        server.probe = None;
        return accepting.as_socket();
    }
    let pid = server.pid;
    let wanted = server.address.map(|address| address.port());
    match server.complained.step(server.since, timeout, now) {
        Some(Complained::Silence) => {
            let seconds = timeout.as_secs_f32();
            let wanted = wanted.map(|port| format!(" (it was given PORT={port})")).unwrap_or_default();
            warn!(service, slot, pid, "server does not listen after {seconds} s{wanted}; still waiting");
        }
        Some(_) => {
            if let Some(ports) = listens_on(pid) {
                let instead = match wanted {
                    Some(port) => {
                        format!("and was given PORT={port}: let it read PORT, or put {{port}} into the command")
                    }
                    None => "which no --upstream names".to_owned(),
                };
                warn!(service, slot, pid, "server listens on {ports}, {instead}");
            }
        }
        None => {}
    }
    None
}

impl Service {
    /// Names, once, a server that gets its connections directly and does not listen.
    pub(super) fn complain_of_silence(&mut self, at: usize, now: Instant) {
        let timeout = self.config.limits.listen_timeout;
        let slot = &mut self.slots[at];
        let (Some(direct), Some(server), Phase::Launching { since }) =
            (&slot.direct, &mut slot.server, slot.life.phase)
        else {
            return;
        };
        let (name, pid) = (&self.config.name, server.pid);
        match server.complained.step(since, timeout, now) {
            Some(Complained::Silence) => {
                let seconds = timeout.as_secs_f32();
                let hint = match (direct.pid, self.config.listen.first()) {
                    (None, None) => "; if it serves no port, use --no-listen; if a script starts a statically linked \
                                     program, --via relay"
                        .to_owned(),
                    (None, Some(_)) => "; if a script starts a statically linked program, use --via relay".to_owned(),
                    (Some(_), Some(_)) => {
                        let missing = ids(&self.listeners).filter(|(id, _)| !direct.listening.contains(id));
                        let missing: Vec<_> = missing.map(|(_, listener)| listener.address.as_str()).collect();
                        format!(" on {}", missing.join(", "))
                    }
                    (Some(_), None) => String::new(),
                };
                warn!(service = %name, slot = at, pid, "server does not listen after {seconds} s{hint}; still waiting");
            }
            Some(_) if direct.pid.is_none() => {
                if let Some(ports) = listens_on(pid) {
                    warn!(
                        service = %name, slot = at, pid,
                        "server listens on {ports} by itself: what listens there cannot be preloaded; use --via relay"
                    );
                }
            }
            Some(_) | None => {}
        }
    }
}

/// Where a process, or one below it, listens.
fn listens_on(pid: u32) -> Option<String> {
    let ports: Vec<_> = who::ports_of(pid).iter().map(|port| format!(":{port}")).collect();
    (!ports.is_empty()).then(|| ports.join(", "))
}
