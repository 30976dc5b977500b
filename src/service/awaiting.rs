//! A service that comes after others, until they are ready.

use std::time::Instant;

use tracing::{error, info};

use super::Service;
use super::pausing::Paused;
use super::shutdown;
use crate::config::Backend;
use crate::config::options::OnExit;
use crate::slot::lifecycle::Phase;
use crate::slot::online;
use crate::worker::exit::LastExit;

/// What became of the services that one waits for.
#[derive(Debug)]
pub enum Others {
    NotYet,
    Ready,
    /// One of them was given up: its name, and its exit code.
    Lost {
        name: String,
        code: u8,
    },
}

impl Others {
    /// Lets the service wait, start, or be given up.
    pub fn settle(&self, service: &mut Service, now: Instant) {
        match self {
            Self::NotYet if service.operations.paused == Paused::After => {}
            Self::NotYet => {
                let after = service.config.after.join(", ");
                info!(name: "waiting", service = %service.config.name, after, "waiting until others are ready");
                service.operations.paused = Paused::After;
                service.slots.iter_mut().for_each(|slot| slot.history.reason = Some(format!("waits for {after}")));
            }
            Self::Ready => {
                info!(name: "starting-workers", service = %service.config.name, after = service.config.after.join(", "), "starting: others are ready");
                service.operations.paused = Paused::No;
                for slot in &mut service.slots {
                    slot.history.reason = None;
                    slot.lifecycle = slot.lifecycle.again(now);
                }
            }
            Self::Lost { name, code } => {
                let text = format!("not started: {name}, which it comes after, was given up");
                error!(name: "given-up", service = %service.config.name, "{text}");
                service.operations.paused = Paused::No;
                for slot in &mut service.slots {
                    slot.history.reason = Some(text.clone());
                    slot.history.last_exit = Some(LastExit { text: text.clone(), code: *code });
                    slot.lifecycle.phase = Phase::Errored;
                }
            }
        }
    }
}

/// Whether it has not been started because of others.
pub fn waits_for_others(service: &Service) -> bool {
    service.operations.paused == Paused::After
}

/// Whether those that come after it can start: a worker is online; a job without a port is done.
pub fn is_ready(service: &Service) -> bool {
    let is_job = matches!(service.config.backend, Backend::NoPort(_)) && service.config.limits.on_exit == OnExit::Ok;
    let finished = |phase| phase == Phase::Finished;
    match is_job {
        true => service.slots.iter().all(|slot| finished(slot.lifecycle.phase)),
        false => online(&service.slots) > 0,
    }
}

/// The exit code, when it will not get ready any more.
pub fn lost(service: &Service) -> Option<u8> {
    service.given_up().filter(|_| !is_ready(service))
}

/// Whether it is stopping because the daemon is, or because it was removed.
pub fn is_stopping(service: &Service) -> bool {
    service.stop.is_some()
}

/// When it stops at the latest, in a stop of the daemon that began at this time, though others still run.
pub fn stops_by(service: &Service, began: Instant) -> Instant {
    let limits = &service.config.limits;
    began + limits.stop_delay + limits.stop_timeout.mul_f64(shutdown::OTHERS_SHARE)
}
