//! `after`: services start when those that they come after are ready, and stop before them.

use std::time::Instant;

use tracing::info;

use super::Daemon;
use crate::service::Service;
use crate::service::awaiting::{self, Others};

impl Daemon {
    /// Starts services whose others are ready by now; gives up those whose others were given up, and so on: nothing else
    /// happens afterwards that would be a reason to look again.
    pub(super) fn start_in_order(&mut self, now: Instant) {
        while self.start_some(now) {}
    }

    /// Whether any was started or given up.
    fn start_some(&mut self, now: Instant) -> bool {
        let mut some = false;
        for at in 0..self.services.len() {
            if !awaiting::waits_for_others(&self.services[at]) {
                continue;
            }
            let others = self.services[at].config().after.iter();
            let others: Vec<&Service> =
                others.filter_map(|name| self.in_config().find(|other| other.config().name == *name)).collect();
            let lost = others.iter().find_map(|other| Some((other.config().name.clone(), awaiting::lost(other)?)));
            let state = match lost {
                Some((name, code)) => Others::Lost { name, code },
                None if others.iter().all(|other| awaiting::is_ready(other)) => Others::Ready,
                None => Others::NotYet,
            };
            some |= !matches!(state, Others::NotYet);
            state.settle(&mut self.services[at], now);
        }
        some
    }

    /// Begins the stop of all services: first of those that no other one comes after.
    pub(super) fn begin_stop(&mut self, cause: &str) {
        if self.stopping.is_none() {
            self.stopping = Some(Instant::now());
            for service in &self.services {
                info!(name: "stopping", service = %service.config().name, cause, "stopping");
            }
            self.stop_in_order(Instant::now());
        }
    }

    /// Goes on with the stop: a service stops when those that come after it have ended, and at the latest at half of its
    /// time. The time counts from the beginning.
    pub(super) fn stop_in_order(&mut self, now: Instant) {
        let Some(began) = self.stopping else { return };
        for at in 0..self.services.len() {
            let service = &self.services[at];
            let name = &service.config().name;
            let needed = |other: &&Service| other.config().after.contains(name) && !other.is_over();
            if !awaiting::is_stopping(service)
                && (!self.services.iter().any(|other| needed(&other)) || now >= awaiting::stops_by(service, began))
            {
                self.services[at].begin_stop(began);
            }
        }
    }

    /// When a service stops at the latest.
    pub(super) fn next_stop(&self) -> Option<Instant> {
        let began = self.stopping?;
        self.services
            .iter()
            .filter(|service| !awaiting::is_stopping(service))
            .map(|service| awaiting::stops_by(service, began))
            .min()
    }
}
