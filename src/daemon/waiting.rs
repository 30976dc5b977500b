//! Control clients that wait for the end of an operation.

use std::time::Instant;

use super::Daemon;
use crate::accept::orders::ServiceId;
use crate::control::Reply;
use crate::control::server::Finality;
use crate::service::operations::{News, Progress, Ticket};

/// An operation of a service; without a ticket: the end of the service.
pub type Operation = (ServiceId, Option<Ticket>);

/// A control client that waits for the end of something.
#[derive(Debug)]
pub struct Waiting {
    pub client: u32,
    /// Those that are not done.
    pub operations: Vec<Operation>,
    /// Whether one of them failed.
    pub failed: bool,
}

impl Daemon {
    /// Passes on what became of operations, to the clients that wait for them.
    pub(super) fn pass_on_progress(&mut self) {
        let several = self.services.len() > 1;
        for at in 0..self.services.len() {
            let (id, name) = (self.services[at].id(), self.services[at].config().name.clone());
            while let Some(News { of, progress }) = self.services[at].news().pop_front() {
                let named = |text: String| if several { format!("{name}: {text}") } else { text };
                let (text, end) = match progress {
                    Progress::Step(text) => (named(text), None),
                    Progress::Done(text) => (named(text), Some(false)),
                    Progress::Failed(text) => (named(text), Some(true)),
                };
                let mut waiting = std::mem::take(&mut self.waiting);
                waiting.retain_mut(|waiting| {
                    let meant = |other: &Operation| other.0 == id && of.is_none_or(|of| other.1 == Some(of));
                    !waiting.operations.iter().any(meant) || self.pass_on(waiting, meant, &text, end)
                });
                self.waiting = waiting;
            }
        }
    }

    /// Before the daemon ends by itself: what became of what was asked for may have been settled by that.
    pub(super) fn end_operations(&mut self, now: Instant) {
        for service in &mut self.services {
            service.step_last(&self.context, now);
        }
        self.pass_on_progress();
    }

    /// To one that waits for the operations `meant`. Whether it goes on waiting.
    fn pass_on(
        &mut self,
        waiting: &mut Waiting,
        meant: impl Fn(&Operation) -> bool,
        text: &str,
        end: Option<bool>,
    ) -> bool {
        let Some(control) = &mut self.control else { return false };
        if let Some(failed) = end {
            waiting.operations.retain(|operation| !meant(operation));
            waiting.failed |= failed;
        }
        let over = waiting.operations.is_empty();
        let said = match (over, waiting.failed, end) {
            (true, true, Some(true)) => Reply::Error(text.to_owned()),
            (true, false, _) => Reply::Done(text.to_owned()),
            _ => Reply::Step(text.to_owned()),
        };
        let last = over && matches!(said, Reply::Error(_) | Reply::Done(_));
        let there = control.tell(waiting.client, &said, if last { Finality::Last } else { Finality::More });
        if over && !last {
            // It went well, and another one before it did not.
            let said = Reply::Error("not all of it succeeded".to_owned());
            control.tell(waiting.client, &said, Finality::Last);
        }
        there && !over
    }
}
