//! Notifications to systemd (sd_notify(3)): ready, reloading, stopping, a status line, the watchdog, and the
//! descriptor store.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::fd_store::{Store, Stored};
use crate::service::Service;
use crate::slot::online;
use crate::sys::reason;

/// The state that systemd was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

#[derive(Debug)]
pub struct Systemd {
    state: State,
    status: String,
    /// Half of the watchdog's limit, and when the next message is due.
    watchdog: Option<(Duration, Instant)>,
    store: Store,
}

/// What systemd was told, in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct SystemdRecord {
    state: State,
    status: String,
    stored: Vec<Stored>,
}

impl Systemd {
    pub fn record(&self, services: &[Service]) -> SystemdRecord {
        let Self { state, status, watchdog: _, store } = self;
        SystemdRecord { state: *state, status: status.clone(), stored: store.record(services) }
    }

    /// Tells nothing that was told by the program before.
    pub fn go_on(&mut self, SystemdRecord { state, status, stored }: SystemdRecord, services: &[Service]) {
        (self.state, self.status, self.store) = (state, status, Store::adopt(stored, services));
    }

    /// `None` where systemd did not start us, or not as Type=notify.
    pub fn find(now: Instant) -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().map(|limit| (limit / 2, now));
        Some(Self { state: State::Starting, status: String::new(), watchdog, store: Store::default() })
    }

    /// Sends what has changed.
    pub fn step(&mut self, services: &[Service], stopping: bool, now: Instant) {
        self.store.step(services, stopping);
        let reloading = services.iter().any(|service| service.view().reloading);
        let is_online = |service: &Service| online(service.slots()) > 0 || service.view().stopped;
        let state = match self.state {
            _ if stopping => State::Stopping,
            State::Starting if !services.iter().all(is_online) => State::Starting,
            State::Starting | State::Ready | State::Reloading if reloading => State::Reloading,
            State::Starting | State::Ready | State::Reloading => State::Ready,
            State::Stopping => State::Stopping,
        };
        if state != self.state {
            self.state = state;
            match state {
                State::Starting => {}
                State::Ready => send(&[NotifyState::Ready]),
                State::Reloading => {
                    let since = NotifyState::monotonic_usec_now().ok();
                    send(&[NotifyState::Reloading].into_iter().chain(since).collect::<Vec<_>>());
                }
                State::Stopping => send(&[NotifyState::Stopping]),
            }
        }
        let status = status(services);
        if status != self.status {
            send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
        if let Some((interval, due)) = &mut self.watchdog
            && *due <= now
        {
            *due = now + *interval;
            send(&[NotifyState::Watchdog]);
        }
    }

    /// When the watchdog's next message is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }
}

fn status(services: &[Service]) -> String {
    let of = |service: &Service| {
        format!("{}: {} of {} online", service.config().name, online(service.slots()), service.slots().len())
    };
    services.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn send(state: &[NotifyState<'_>]) {
    // A listener that is gone is no reason to stop.
    if let Err(error) = sd_notify::notify(state) {
        debug!("NOTIFY_SOCKET: {}", reason(&error));
    }
}
