//! What systemd is told (sd_notify(3)): ready, reloading, stopping, how it goes, and that we are alive.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

use crate::service::Service;
use crate::service::lifecycle::Wanted;

/// What systemd knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

/// The way to it.
#[derive(Debug)]
pub struct Systemd {
    known: Known,
    status: String,
    /// Half of what the watchdog allows, and when it is due.
    watchdog: Option<(Duration, Instant)>,
}

impl Systemd {
    /// `None` when nobody listens: not started by systemd, or not as Type=notify.
    pub fn find(now: Instant) -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().map(|limit| (limit / 2, now));
        Some(Self { known: Known::Starting, status: String::new(), watchdog })
    }

    /// Says what has changed.
    pub fn step(&mut self, services: &[Service], stopping: bool, now: Instant) {
        let reloading = services.iter().any(|service| service.is_reloading());
        let online = |service: &Service| service.online() > 0 || service.wanted() == Wanted::Stopped;
        let now_known = match self.known {
            _ if stopping => Known::Stopping,
            Known::Starting if !services.iter().all(online) => Known::Starting,
            Known::Starting | Known::Ready | Known::Reloading if reloading => Known::Reloading,
            Known::Starting | Known::Ready | Known::Reloading => Known::Ready,
            Known::Stopping => Known::Stopping,
        };
        if now_known != self.known {
            self.known = now_known;
            match now_known {
                Known::Starting => {}
                Known::Ready => say(&[NotifyState::Ready]),
                Known::Reloading => {
                    let since = NotifyState::monotonic_usec_now().ok();
                    say(&[NotifyState::Reloading].into_iter().chain(since).collect::<Vec<_>>());
                }
                Known::Stopping => say(&[NotifyState::Stopping]),
            }
        }
        let status = status(services);
        if status != self.status {
            say(&[NotifyState::Status(&status)]);
            self.status = status;
        }
        if let Some((interval, due)) = &mut self.watchdog
            && *due <= now
        {
            *due = now + *interval;
            say(&[NotifyState::Watchdog]);
        }
    }

    /// When the watchdog is to hear of us.
    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }
}

fn status(services: &[Service]) -> String {
    let of =
        |service: &Service| format!("{}: {} of {} online", service.config.name, service.online(), service.slots.len());
    services.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn say(state: &[NotifyState<'_>]) {
    // Whoever listened is gone, or never was: it is no reason to stop.
    if let Err(error) = sd_notify::notify(state) {
        debug!("NOTIFY_SOCKET: {error}");
    }
}
