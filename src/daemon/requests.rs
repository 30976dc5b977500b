//! What comes in over sockets: relay workers' channels, the attach socket, the control socket.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use tracing::warn;

use super::reconfigure::Begun;
use super::{Supervisor, status};
use crate::accept::orders::ServiceId;
use crate::control::server::Last;
use crate::control::{Hello, PROTOCOL, Request, Said};
use crate::direct::attach::{AttachEvent, Refusal, RequestKind, Secret};
use crate::direct::guests::Ours;
use crate::node::channel::More;
use crate::output::follow::{Of, Query};
use crate::relay::protocol::{self, FromWorker};
use crate::service::awaited::Verb;
use crate::service::reload::Progress;
use crate::service::{Service, Tools};
use crate::sys::closer::Foreign;
use crate::sys::process;

/// Requests of one attach connection before others have their turn.
const REQUESTS_A_TURN: usize = 8;

/// A control client that waits for the end of something.
#[derive(Debug)]
pub struct Waiting {
    client: u32,
    /// Services that are not done.
    services: Vec<ServiceId>,
    /// Whether one of them failed.
    failed: bool,
}

impl Supervisor {
    /// A relay worker says something. One that talks nonsense is killed, and so replaced.
    pub(super) fn hear(&mut self, pid: u32) {
        let of = |relay: &crate::worker::relay::Relay| relay.pid == pid;
        let found = self.services.iter_mut().find_map(|service| {
            let at = service.slots.iter().position(|slot| slot.relay.as_ref().is_some_and(of))?;
            Some((service, at))
        });
        let Some((service, at)) = found else { return };
        loop {
            let Some(relay) = &service.slots[at].relay else { return };
            let mut fds = Vec::new();
            let received = protocol::receive::<FromWorker>(relay.channel.as_fd(), &mut fds);
            // It has none to send.
            fds.into_iter().map(Foreign::received).for_each(drop);
            match received {
                Ok(Some(message)) => service.told(at, message, Instant::now()),
                // Its death follows.
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(service = %service.config.name, slot = at, pid, "killed: nonsense on its channel: {error}");
                    process::kill_tree(pid);
                    return;
                }
            }
        }
    }

    /// A worker in Node says something.
    pub(super) fn hear_node(&mut self, pid: u32) {
        let more = self.services.iter_mut().find_map(|service| service.hear_node(pid, &self.tools));
        if more == Some(More::Yes) {
            self.talking.push(pid);
        }
    }

    /// Takes connections of preload libraries.
    pub(super) fn accept_attached(&mut self) {
        let Some(attach) = &mut self.tools.attach else { return };
        let users = self.services.iter().filter_map(|service| Some(service.config.user.as_ref()?.uid.as_raw()));
        let ours = Ours {
            users: users.chain([0, nix::unistd::geteuid().as_raw()]).collect(),
            servers: self.services.iter().flat_map(Service::pids).collect(),
        };
        attach.accept(&ours, Instant::now());
    }

    /// A server's preload library asks; one connection is heard for a turn.
    pub(super) fn serve_attached(&mut self, number: u32) {
        for _ in 0..REQUESTS_A_TURN {
            let Some(attach) = &mut self.tools.attach else { return };
            let admits = |secret: &Secret, pid, uid| self.services.iter().any(|one| one.admits(secret, pid, uid));
            match attach.next(number, admits) {
                Ok(None) => return,
                Ok(Some(AttachEvent::Ended(pid, secret))) => {
                    let now = Instant::now();
                    self.services.iter_mut().for_each(|service| service.lease_ended(pid, secret, &self.tools, now));
                    return;
                }
                Ok(Some(AttachEvent::Request(request))) => {
                    let leases = matches!(request.kind, RequestKind::Lease).then_some((request.pid, request.secret));
                    let known = |one: &&mut Service| one.admits(&request.secret, request.pid, request.uid);
                    let reply =
                        self.services.iter_mut().find(known).and_then(|one| one.attach_request(request, &self.tools));
                    let Some(attach) = &mut self.tools.attach else { return };
                    match reply {
                        Some(reply) => {
                            attach.reply(number, &reply);
                            if let Some((pid, secret)) = leases {
                                attach.watch(pid, secret);
                            }
                        }
                        None => attach.close(number),
                    }
                }
                Err(Refusal::NotOurs { pid, uid }) => {
                    if let Some(suppressed) = self.refused.pass(Instant::now()) {
                        warn!(pid, uid, suppressed, "refused to attach: it is none of our workers");
                    }
                    return;
                }
                Err(Refusal::Nonsense(why)) => {
                    if let Some(suppressed) = self.nonsense.pass(Instant::now()) {
                        warn!(suppressed, "nonsense on the attach socket: {why}");
                    }
                    return;
                }
            }
        }
        self.asking.push(number);
    }

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
                let daemon = status::daemon(&self.services, self.started, self.stopping, &mut self.cpu);
                return self.tell(client, &daemon);
            }
            Request::Logs { service, slot, lines, follow, events } => {
                return self.show_logs(client, Query { of: Of::Lines, events, service, slot, lines, follow });
            }
            Request::Messages { service, slot, lines, follow } => {
                return self.show_logs(client, Query { of: Of::Messages, events: false, service, slot, lines, follow });
            }
            Request::Send { service, slot, message } => {
                let said = match self.send(service.as_deref(), slot, &message.to_string()) {
                    Ok(1) => Said::Done("sent to 1 worker".to_owned()),
                    Ok(count) => Said::Done(format!("sent to {count} workers")),
                    Err(why) => Said::Error(why),
                };
                return self.tell(client, &said);
            }
            Request::Reload { service } => self.reload(service.as_deref(), now),
            Request::Restart { service } => self.each(service.as_deref(), |service, tools| service.restart(tools, now)),
            Request::Stop { service } => self.each(service.as_deref(), |service, tools| service.pause(tools, now)),
            Request::Start { service } => {
                self.each(service.as_deref(), |service, tools| service.start(Verb::Started, tools, now))
            }
            Request::Scale { service: None, .. } if self.in_config().count() > 1 => {
                Err(format!("several services; say which: {}", self.names()))
            }
            Request::Scale { service, to } => self.each(service.as_deref(), |service, tools| {
                service.scale(to.from(service.config.instances), tools, now)
            }),
        };
        match begun {
            Err(why) => self.tell(client, &Said::Error(why)),
            Ok(begun) if begun.services.is_empty() => {
                begun.notes.into_iter().for_each(|note| self.note(client, note));
                let why = begun.refused.first().cloned();
                self.tell(client, &why.map_or_else(|| Said::Done("nothing to do".to_owned()), Said::Error));
            }
            Ok(begun) => {
                let steps = begun.notes.into_iter().chain(begun.refused.iter().cloned());
                steps.for_each(|note| self.note(client, note));
                let failed = !begun.refused.is_empty();
                // What this has ended is for those that waited before.
                self.tell_waiting();
                self.waiting.push(Waiting { client, services: begun.services, failed });
            }
        }
    }

    /// Passes a message to workers in Node. Returns to how many.
    fn send(&mut self, only: Option<&str>, slot: Option<u32>, text: &str) -> Result<usize, String> {
        self.is_known(only)?;
        self.has_slot(only, slot)?;
        let meant = self.services.iter_mut().filter(|service| only.is_none_or(|only| only == service.config.name));
        let wanted = |at: usize, _| slot.is_none_or(|slot| slot as usize == at);
        match meant.map(|service| service.pass_to(wanted, text)).sum() {
            0 => Err("no worker there takes messages: they are for node FILE (see --node-ipc)".to_owned()),
            count => Ok(count),
        }
    }

    /// All that there is to say to a request.
    fn tell(&mut self, client: u32, answer: &impl serde::Serialize) {
        if let Some(control) = &mut self.control {
            control.tell(client, answer, Last::Yes);
        }
    }

    /// A line on the way there.
    fn note(&mut self, client: u32, note: String) {
        if let Some(control) = &mut self.control {
            control.tell(client, &Said::Step(note), Last::No);
        }
    }

    /// The output thread shows it from here on.
    fn show_logs(&mut self, client: u32, query: Query) {
        if let Some(name) =
            query.service.as_deref().filter(|name| !self.services.iter().any(|one| one.config.name == *name))
        {
            let why = self.unknown(name);
            return self.tell(client, &Said::Error(why));
        }
        if let Err(why) = self.has_slot(query.service.as_deref(), query.slot) {
            return self.tell(client, &Said::Error(why));
        }
        if let Some((stream, unwritten)) = self.control.as_mut().and_then(|control| control.give_away(client)) {
            self.tools.launcher.outputs.follow(stream, query, unwritten);
        }
    }

    /// Does something to one service, or to all.
    ///
    /// # Errors
    /// When there is no such service.
    pub(super) fn each(
        &mut self,
        only: Option<&str>,
        mut act: impl FnMut(&mut Service, &Tools) -> Result<(), String>,
    ) -> Result<Begun, String> {
        self.is_known(only)?;
        let several = self.services.len() > 1;
        let mut begun = Begun::default();
        let meant = self.services.iter_mut().filter(|service| only.is_none_or(|only| only == service.config.name));
        for service in meant {
            match act(service, &self.tools) {
                Ok(()) => begun.services.push(service.id),
                Err(why) if several => begun.refused.push(format!("{}: {why}", service.config.name)),
                Err(why) => begun.refused.push(why),
            }
        }
        Ok(begun)
    }

    fn is_known(&self, only: Option<&str>) -> Result<(), String> {
        match only.filter(|name| !self.in_config().any(|service| service.config.name == *name)) {
            Some(name) => Err(self.unknown(name)),
            None => Ok(()),
        }
    }

    /// Whether a service that is named has a slot.
    fn has_slot(&self, name: Option<&str>, slot: Option<u32>) -> Result<(), String> {
        let service = self.services.iter().find(|service| name == Some(service.config.name.as_str()));
        match (service, slot) {
            (Some(service), Some(slot)) if slot as usize >= service.slots.len() => {
                let last = service.slots.len().saturating_sub(1);
                Err(format!("{} has no slot {slot}; its last is {last}", service.config.name))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unknown(&self, name: &str) -> String {
        format!("there is no service {name:?}; here are {}", self.names())
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.in_config().map(|service| service.config.name.as_str()).collect();
        names.join(", ")
    }

    /// Passes on what became of what was asked for.
    pub(super) fn tell_waiting(&mut self) {
        let several = self.services.len() > 1;
        for at in 0..self.services.len() {
            let (id, name) = (self.services[at].id, self.services[at].config.name.clone());
            while let Some(progress) = self.services[at].said.pop_front() {
                let named = |text: String| if several { format!("{name}: {text}") } else { text };
                let (text, end) = match progress {
                    Progress::Step(text) => (named(text), None),
                    Progress::Done(text) => (named(text), Some(false)),
                    Progress::Failed(text) => (named(text), Some(true)),
                };
                let mut waiting = std::mem::take(&mut self.waiting);
                waiting.retain_mut(|waiting| !waiting.services.contains(&id) || self.pass_on(waiting, id, &text, end));
                self.waiting = waiting;
            }
        }
    }

    /// Before the daemon ends by itself: what became of what was asked for may have been settled by that.
    pub(super) fn say_last(&mut self, now: Instant) {
        for service in &mut self.services {
            service.step_last(&self.tools, now);
        }
        self.tell_waiting();
    }

    /// To one that waits. Whether it goes on waiting.
    fn pass_on(&mut self, waiting: &mut Waiting, id: ServiceId, text: &str, end: Option<bool>) -> bool {
        let Some(control) = &mut self.control else { return false };
        if let Some(failed) = end {
            waiting.services.retain(|&other| other != id);
            waiting.failed |= failed;
        }
        let over = waiting.services.is_empty();
        let said = match (over, waiting.failed, end) {
            (true, true, Some(true)) => Said::Error(text.to_owned()),
            (true, false, _) => Said::Done(text.to_owned()),
            _ => Said::Step(text.to_owned()),
        };
        let last = over && matches!(said, Said::Error(_) | Said::Done(_));
        let there = control.tell(waiting.client, &said, if last { Last::Yes } else { Last::No });
        if over && !last {
            // It went well, and another one before it did not.
            let said = Said::Error("not all of it succeeded".to_owned());
            control.tell(waiting.client, &said, Last::Yes);
        }
        there && !over
    }
}
