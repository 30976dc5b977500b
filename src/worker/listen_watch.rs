//! Servers that do not listen where they are expected: found and named.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::warn;

use super::instead;
use super::server::Server;

/// A server that listens, but elsewhere, is named this soon.
pub const SOON: Duration = Duration::from_secs(2);
/// One that does not listen is named then, if `--listen-timeout` is not over sooner.
pub const LATE: Duration = Duration::from_secs(5);

/// What the log has said of a server that does not listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenWatch {
    /// Nothing.
    NotYet,
    /// It was looked for other ports.
    Ports,
    /// That it listens nowhere.
    Silence,
}

impl ListenWatch {
    /// When the next look is due.
    pub fn due(self, since: Instant, timeout: Duration) -> Option<Instant> {
        let timeout = timeout.min(LATE);
        match self {
            Self::NotYet => Some(since + SOON.min(timeout)),
            Self::Ports => Some(since + timeout),
            Self::Silence => None,
        }
    }

    /// What is to be said now.
    pub fn step(&mut self, since: Instant, timeout: Duration, now: Instant) -> Option<Self> {
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
    let text = match server.listen_watch.step(server.since, timeout, now) {
        Some(ListenWatch::Silence) => {
            let seconds = timeout.min(LATE).as_secs_f32();
            let wanted = wanted.map(|port| format!(" (it was given PORT={port})")).unwrap_or_default();
            let instead = instead::elsewhere(pid).map(|instead| format!(": {instead}")).unwrap_or_default();
            format!("server does not listen after {seconds} s{wanted}{instead}")
        }
        Some(_) => {
            let ports = instead::listens_on(pid)?;
            let instead = match wanted {
                Some(port) => {
                    format!("and was given PORT={port}: let it read PORT, or put {{port}} into the command")
                }
                None => "which no --upstream names".to_owned(),
            };
            format!("server listens on {ports}, {instead}")
        }
        None => return None,
    };
    warn!(name: "not-listening", service, slot, pid, "{text}; still waiting");
    // Where it listens says more than that it does not.
    if server.trouble.is_none() {
        server.trouble = Some(text);
    }
    None
}
