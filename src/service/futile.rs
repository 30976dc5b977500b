//! Slots that cannot be helped by another start: given up at once, with the reason.

use std::time::Instant;

use tracing::warn;

use super::listeners::Listeners;
use crate::config::ServiceConfig;
use crate::slot::Slot;
use crate::slot::exits::Scene;
use crate::slot::lifecycle::Phase;
use crate::sys::process;
use crate::worker::attachment::Attachment;
use crate::worker::exit::LastExit;
use crate::worker::listen_watch::SOON;

/// Among so many of its last lines a server is looked for the reason of its end.
const LOOKED_AT: usize = 40;

/// The port that a server which has just ended insisted on, where the worker of another slot has it: that one listens
/// there by itself, where no `--listen` leads, and every other one dies of EADDRINUSE.
pub fn insists_on(
    slots: &[Slot],
    scene: &Scene,
    pid: u32,
    attachment: Option<&Attachment>,
    exit: &LastExit,
) -> Option<u16> {
    if exit.code == 0 || !matches!(slots[scene.at].lifecycle.phase, Phase::Launching { .. }) {
        return None;
    }
    let mut others = launching_others(slots, scene.at);
    if let Some(direct) = attachment {
        return others.find_map(|other| direct.passed.intersection(&other.attachment()?.passed).next().copied());
    }
    // First of all: most deaths have another reason, and to look where all the others listen takes its time.
    let said = scene.context.launcher.outputs.last(&scene.config.name, pid, LOOKED_AT);
    let in_use =
        |line: &String| line.contains("EADDRINUSE") || line.to_ascii_lowercase().contains("address already in use");
    if said.iter().any(in_use) { others.find_map(listens_elsewhere) } else { None }
}

/// The port on which the worker of another slot listens, and not where it was told to.
pub fn sibling_elsewhere(slots: &[Slot], at: usize) -> Option<u16> {
    launching_others(slots, at).find_map(listens_elsewhere)
}

fn launching_others(slots: &[Slot], at: usize) -> impl Iterator<Item = &Slot> {
    let launching =
        move |(other, slot): &(usize, &Slot)| *other != at && matches!(slot.lifecycle.phase, Phase::Launching { .. });
    slots.iter().enumerate().filter(launching).map(|(_, slot)| slot)
}

/// A slot died of a port that its servers insist on: those that listen there by themselves serve nobody either, and are
/// given up when they have had the time to listen where they should.
pub fn give_up_insisting(slots: &mut [Slot], at: usize, config: &ServiceConfig, listeners: &Listeners) {
    let given_up = |slot: &&Slot| slot.lifecycle.phase == Phase::Errored;
    let Some(port) = slots.iter().filter(given_up).find_map(|slot| slot.history.insisted) else { return };
    let slot = &mut slots[at];
    let (Some(server), None) = (slot.server(), &slot.history.kill_reason) else { return };
    let served = slot.attachment().is_some_and(|direct| !direct.listening.is_empty());
    if served || !crate::proc_net::ports_of(server.pid).contains(&port) {
        return;
    }
    let pid = server.pid;
    let instead = listeners.serve_instead(&config.backend, port);
    let reason = format!("it listens on :{port}, which no -l serves; {instead}");
    warn!(name: "worker-killed", service = %config.name, slot = at, pid, "ending a server that serves nobody: {reason}");
    slot.history.insisted = Some(port);
    slot.history.kill_reason = Some(reason);
    process::kill_tree(pid);
}

/// The same for all that have had that time.
pub fn give_up_all_insisting(slots: &mut [Slot], config: &ServiceConfig, listeners: &Listeners, now: Instant) {
    for at in 0..slots.len() {
        if matches!(slots[at].lifecycle.phase, Phase::Launching { since } if now.duration_since(since) >= SOON) {
            give_up_insisting(slots, at, config, listeners);
        }
    }
}

/// By relay: a port on which a server listens that does not listen on the one it was given.
fn listens_elsewhere(slot: &Slot) -> Option<u16> {
    let server = slot.server()?;
    let own = server.address?.port();
    let ports = crate::proc_net::ports_of(server.pid);
    if ports.contains(&own) { None } else { ports.first().copied() }
}
