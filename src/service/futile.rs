//! Slots that cannot be helped by another start: given up at once, with the reason.

use std::os::fd::AsFd;
use std::time::Instant;

use tracing::{error, warn};

use super::attach::binding::find;
use super::lifecycle::Phase;
use super::slot::Slot;
use super::{Context, Service};
use crate::accept::orders::Order;
use crate::config::Backend;
use crate::listener::{Listener, Origin};
use crate::sys::{process, sock};
use crate::worker::attachment::Attachment;
use crate::worker::exit::LastExit;
use crate::worker::listen_watch::SOON;

/// Among so many of its last lines a server is looked for the reason of its end.
const LOOKED_AT: usize = 40;

impl Service {
    /// What to type for a port that servers insist on.
    pub(super) fn serve_instead(&self, port: u16) -> String {
        let served = self.listeners.iter().filter(|listener| listener.origin == Origin::Flag);
        let first = served.filter_map(Listener::served_port).next().unwrap_or(port);
        let outer = self.listeners.iter().find_map(|listener| listener.port).unwrap_or(first);
        match self.config.backend {
            Backend::Direct(_) => format!("let it listen on :{first} (its PORT), or use -l {outer}={port}"),
            _ => "let it read PORT, or put {port} into the command".to_owned(),
        }
    }

    /// A worker listens where no `--listen` leads.
    pub(super) fn passes(&mut self, at: usize, port: u16, how: &str) {
        let text = format!("listens on :{port}, which no -l serves; {how}{}", self.serve_instead(port));
        warn!(service = %self.config.name, slot = at, "worker {at} {text}");
        let slot = &mut self.slots[at];
        if let Some(server) = slot.server_mut() {
            server.trouble = Some(format!("it {text}"));
        }
        if let Some(direct) = slot.attachment_mut() {
            direct.passed.insert(port);
        }
    }

    /// The port that a server which has just ended insisted on, where the worker of another slot has it: that one listens
    /// there by itself, where no `--listen` leads, and every other one dies of EADDRINUSE.
    pub(super) fn insists_on(
        &self,
        at: usize,
        pid: u32,
        attachment: Option<&Attachment>,
        exit: &LastExit,
        context: &Context,
    ) -> Option<u16> {
        let slot = &self.slots[at];
        let by_flag = self.listeners.iter().any(|listener| listener.origin == Origin::Flag);
        if exit.code == 0 || !by_flag || !matches!(slot.lifecycle.phase, Phase::Launching { .. }) {
            return None;
        }
        let others = self.slots.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other);
        let mut others = others.filter(|other| matches!(other.lifecycle.phase, Phase::Launching { .. }));
        if let Some(direct) = attachment {
            let passed = |other: &Slot| {
                let other = other.attachment()?;
                direct.passed.intersection(&other.passed).next().copied()
            };
            return others.find_map(passed);
        }
        // First of all: most deaths have another reason, and to look where all the others listen takes its time.
        let said = context.launcher.outputs.last(&self.config.name, pid, LOOKED_AT);
        let in_use =
            |line: &String| line.contains("EADDRINUSE") || line.to_ascii_lowercase().contains("address already in use");
        if said.iter().any(in_use) { others.find_map(listens_elsewhere) } else { None }
    }

    /// The port on which the worker of another slot listens, and not where it was told to.
    pub(super) fn sibling_elsewhere(&self, at: usize) -> Option<u16> {
        let others = self.slots.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other);
        others.filter(|other| matches!(other.lifecycle.phase, Phase::Launching { .. })).find_map(listens_elsewhere)
    }

    /// A slot died of a port that its servers insist on: those that listen there by themselves serve nobody either, and
    /// are given up when they have had the time to listen where they should.
    pub(super) fn give_up_insisting(&mut self, at: usize) {
        let given_up = |slot: &Slot| slot.lifecycle.phase == Phase::Errored && slot.history.insisted.is_some();
        let Some(port) = self.slots.iter().find(|slot| given_up(slot)).and_then(|slot| slot.history.insisted) else {
            return;
        };
        let slot = &mut self.slots[at];
        let (Some(server), None) = (slot.server(), &slot.history.kill_reason) else { return };
        let served = slot.attachment().is_some_and(|direct| !direct.listening.is_empty());
        if served || !crate::proc_net::ports_of(server.pid).contains(&port) {
            return;
        }
        let pid = server.pid;
        let reason = format!("it listens on :{port}, which no -l serves; {}", self.serve_instead(port));
        warn!(service = %self.config.name, slot = at, pid, "ending a server that serves nobody: {reason}");
        let slot = &mut self.slots[at];
        slot.history.insisted = Some(port);
        slot.history.kill_reason = Some(reason);
        process::kill_tree(pid);
    }

    /// The same for all that have had that time.
    pub(super) fn give_up_all_insisting(&mut self, now: Instant) {
        for at in 0..self.slots.len() {
            if matches!(self.slots[at].lifecycle.phase, Phase::Launching { since } if now.duration_since(since) >= SOON)
            {
                self.give_up_insisting(at);
            }
        }
    }

    /// Every slot is given up and the daemon stays: clients are refused, as long as there is nobody to wait for.
    pub(super) fn refuse_when_given_up(&mut self, context: &Context) {
        let all = self.slots.iter().all(|slot| slot.lifecycle.phase == Phase::Errored && slot.retiring.is_empty());
        if !all || self.listening.is_empty() || self.stop.is_some() {
            return;
        }
        error!(service = %self.config.name, "given up: no slot is left; clients are refused");
        for id in std::mem::take(&mut self.listening) {
            context.orders.send(Order::StopAccepting { service: self.id, id });
            if let Some(listener) = find(&self.listeners, id) {
                sock::stop_listening(listener.socket.as_fd());
            }
        }
        context.orders.send(Order::Refuse(self.id));
    }
}

/// By relay: a port on which a server listens that does not listen on the one it was given.
fn listens_elsewhere(slot: &Slot) -> Option<u16> {
    let server = slot.server()?;
    let own = server.address?.port();
    let ports = crate::proc_net::ports_of(server.pid);
    if ports.contains(&own) { None } else { ports.first().copied() }
}
