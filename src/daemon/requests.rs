//! Requests on the control socket.

use std::time::Instant;

use super::Daemon;
use super::reconfigure::Begun;
use super::waiting::Waiting;
use crate::control::server::Finality;
use crate::control::{Hello, PROTOCOL, Reply, Request};
use crate::output::follow::{LogKind, Query};
use crate::service::Service;
use crate::service::draining::Force;
use crate::service::operations::{Operation, Ticket, no_slot};
use crate::service::weights::Of;
use crate::worker::Context;

impl Daemon {
    pub(super) fn accept_clients(&mut self) {
        if let Some(control) = &mut self.control {
            control.accept();
        }
    }

    pub(super) fn serve_client(&mut self, client: u32) {
        let Some(control) = &mut self.control else { return };
        for request in control.requests(client) {
            self.answer(client, request);
        }
    }

    fn answer(&mut self, client: u32, request: Request) {
        let now = Instant::now();
        let begun = match request {
            Request::Hello {} => {
                let version = env!("CARGO_PKG_VERSION").to_owned();
                return self.tell(client, &Hello { protocol: PROTOCOL, version });
            }
            Request::Ls {} => {
                let status = self.status();
                return self.tell(client, &status);
            }
            Request::Logs { service, slot, lines, follow, events } => {
                return self.show_logs(client, Query { of: LogKind::Lines, events, service, slot, lines, follow });
            }
            Request::Messages { service, slot, lines, follow } => {
                return self
                    .show_logs(client, Query { of: LogKind::Messages, events: false, service, slot, lines, follow });
            }
            Request::Events { service, slot, lines, follow } => {
                return self
                    .show_logs(client, Query { of: LogKind::Events, events: true, service, slot, lines, follow });
            }
            Request::Send { service, slot, message } => {
                let said = match self.send(service.as_deref(), slot, &message.to_string()) {
                    Ok(1) => Reply::Done("sent to 1 worker".to_owned()),
                    Ok(count) => Reply::Done(format!("sent to {count} workers")),
                    Err(why) => Reply::Error(why),
                };
                return self.tell(client, &said);
            }
            Request::Quit { service } => {
                return match self.may_quit(service.as_deref()) {
                    Ok(()) => {
                        self.note(client, format!("{}: stopping", self.names()));
                        self.begin_stop("quit");
                    }
                    Err(why) => self.tell(client, &Reply::Error(why)),
                };
            }
            Request::Upgrade { file } => {
                return match self.upgrade(file, Some(client)) {
                    Ok(next) => self.note(client, next),
                    Err(why) => self.tell(client, &Reply::Error(format!("not upgraded: {why}"))),
                };
            }
            Request::Reload { service, slot: None } => self.reload(service.as_deref(), now),
            Request::Reload { service, slot: Some(slot) } => {
                self.on_slot(service.as_deref(), Operation::ReloadSlot(slot), now)
            }
            Request::Restart { service, slot: None } => {
                self.each(service.as_deref(), |service, context| service.begin(Operation::Restart, context, now))
            }
            Request::Restart { service, slot: Some(slot) } => {
                self.on_slot(service.as_deref(), Operation::RestartSlot(slot), now)
            }
            Request::Drain { service, slot, upstream, force } => {
                let part = (service.as_deref(), slot, upstream);
                self.on_part(part, |of| Ok(Operation::Drain(of, Force::from(force))), now)
            }
            Request::Undrain { service, slot: None, upstream: None } => {
                self.each(service.as_deref(), |service, context| service.begin(Operation::Undrain(None), context, now))
            }
            Request::Undrain { service, slot, upstream } => {
                self.on_part((service.as_deref(), slot, upstream), |of| Ok(Operation::Undrain(Some(of))), now)
            }
            Request::Weight { service, slot, upstream, weight, force } => {
                let part = (service.as_deref(), slot, upstream);
                let weight = crate::config::upstream::weight(&weight.to_string());
                self.on_part(part, |of| Ok(Operation::Weigh(of, weight?, Force::from(force))), now)
            }
            Request::Stop { service } => {
                self.each(service.as_deref(), |service, context| service.begin(Operation::Stop, context, now))
            }
            Request::Start { service } => {
                self.each(service.as_deref(), |service, context| service.begin(Operation::Start, context, now))
            }
            Request::Scale { service, to } => self.is_one(service.as_deref()).and_then(|()| {
                self.each(service.as_deref(), |service, context| {
                    service.begin(Operation::Scale(to.from(service.config().instances)), context, now)
                })
            }),
        };
        match begun {
            Err(why) => self.tell(client, &Reply::Error(why)),
            Ok(begun) if begun.operations.is_empty() => {
                begun.notes.into_iter().for_each(|note| self.note(client, note));
                let why = begun.refused.first().cloned();
                self.tell(client, &why.map_or_else(|| Reply::Done("nothing to do".to_owned()), Reply::Error));
            }
            Ok(begun) => {
                let steps = begun.notes.into_iter().chain(begun.refused.iter().cloned());
                steps.for_each(|note| self.note(client, note));
                let failed = !begun.refused.is_empty();
                self.waiting.push(Waiting { client, operations: begun.operations, failed });
                // Some are done at once.
                self.pass_on_progress();
            }
        }
    }

    /// Passes a message to workers in Node. Returns to how many.
    fn send(&mut self, only: Option<&str>, slot: Option<u32>, text: &str) -> Result<usize, String> {
        self.is_known(only)?;
        self.has_slot(only, slot)?;
        let meant = self.services.iter_mut().filter(|service| only.is_none_or(|only| only == service.config().name));
        let wanted = |at: usize, _| slot.is_none_or(|slot| slot as usize == at);
        match meant.map(|service| service.attach(&self.context).pass_to(wanted, text)).sum() {
            0 => Err("no worker there takes messages: they are for node FILE (see --node-ipc)".to_owned()),
            count => Ok(count),
        }
    }

    /// All that there is to say to a request.
    fn tell(&mut self, client: u32, answer: &impl serde::Serialize) {
        if let Some(control) = &mut self.control {
            control.tell(client, answer, Finality::Last);
        }
    }

    /// A line on the way there.
    fn note(&mut self, client: u32, note: String) {
        if let Some(control) = &mut self.control {
            control.tell(client, &Reply::Step(note), Finality::More);
        }
    }

    /// The output thread shows it from here on.
    fn show_logs(&mut self, client: u32, query: Query) {
        if let Some(name) =
            query.service.as_deref().filter(|name| !self.services.iter().any(|one| one.config().name == *name))
        {
            let why = self.unknown(name);
            return self.tell(client, &Reply::Error(why));
        }
        if let Err(why) = self.has_slot(query.service.as_deref(), query.slot) {
            return self.tell(client, &Reply::Error(why));
        }
        if let Some((stream, unwritten)) = self.control.as_mut().and_then(|control| control.give_away(client)) {
            self.context.launcher.outputs.follow(stream, query, unwritten);
        }
    }

    /// Does something to one service, or to all.
    ///
    /// # Errors
    /// When there is no such service.
    pub(super) fn each(
        &mut self,
        only: Option<&str>,
        mut act: impl FnMut(&mut Service, &Context) -> Result<Ticket, String>,
    ) -> Result<Begun, String> {
        self.is_known(only)?;
        let several = self.services.len() > 1;
        let mut begun = Begun::default();
        let meant = self.services.iter_mut().filter(|service| only.is_none_or(|only| only == service.config().name));
        for service in meant {
            match act(service, &self.context) {
                Ok(ticket) => begun.operations.push((service.id(), Some(ticket))),
                Err(why) if several => begun.refused.push(format!("{}: {why}", service.config().name)),
                Err(why) => begun.refused.push(why),
            }
        }
        Ok(begun)
    }

    /// Does something to one slot; with the only service, that need not be named.
    fn on_slot(&mut self, only: Option<&str>, operation: Operation, now: Instant) -> Result<Begun, String> {
        self.is_one(only)?;
        self.each(only, |service, context| service.begin(operation, context, now))
    }

    /// Does something to one slot or one upstream.
    fn on_part(
        &mut self,
        (only, slot, upstream): (Option<&str>, Option<u32>, Option<String>),
        operation: impl FnOnce(Of) -> Result<Operation, String>,
        now: Instant,
    ) -> Result<Begun, String> {
        self.is_one(only)?;
        self.is_known(only)?;
        let of = match (slot, upstream) {
            (Some(slot), None) => Of::Slot(slot),
            (None, Some(address)) => {
                let mut services =
                    self.in_config().filter(|service| only.is_none_or(|only| only == service.config().name));
                let service = services.next().ok_or("there is no service")?;
                let upstreams = service.view().upstreams;
                let none = || format!("{} has no upstreams", service.config().name);
                Of::Upstream(upstreams.ok_or_else(none)?.find(&address)?)
            }
            _ => return Err("name a slot or an upstream, one of them".to_owned()),
        };
        self.on_slot(only, operation(of)?, now)
    }

    /// # Errors
    /// When one service has to be named, and is not.
    fn is_one(&self, only: Option<&str>) -> Result<(), String> {
        match only {
            None if self.in_config().count() > 1 => Err(format!("several services; say which: {}", self.names())),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// When a service is named, and the daemon has others.
    fn may_quit(&self, only: Option<&str>) -> Result<(), String> {
        self.is_known(only)?;
        match only.filter(|_| self.in_config().count() > 1) {
            Some(name) => Err(format!(
                "{name} is one of several services of {}; to end them all: roundsman quit {}; only {name}: roundsman stop \
                 {name}",
                self.config.name, self.config.name
            )),
            None => Ok(()),
        }
    }

    fn is_known(&self, only: Option<&str>) -> Result<(), String> {
        match only.filter(|name| !self.in_config().any(|service| service.config().name == *name)) {
            Some(name) => Err(self.unknown(name)),
            None => Ok(()),
        }
    }

    /// Whether a service that is named has a slot.
    fn has_slot(&self, name: Option<&str>, slot: Option<u32>) -> Result<(), String> {
        let service = self.services.iter().find(|service| name == Some(service.config().name.as_str()));
        match (service, slot) {
            (Some(service), Some(slot)) if slot as usize >= service.slots().len() => {
                Err(no_slot(&service.config().name, slot, service.slots().len()))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unknown(&self, name: &str) -> String {
        format!("there is no service {name:?}; here are {}", self.names())
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.in_config().map(|service| service.config().name.as_str()).collect();
        names.join(", ")
    }
}
