//! Servers that do not listen where they are expected: named.

use std::time::Instant;

use tracing::warn;

use super::futile;
use super::listeners::Listeners;
use crate::config::ServiceConfig;
use crate::proc_net;
use crate::slot::Slot;
use crate::slot::lifecycle::Phase;
use crate::worker::instead;
use crate::worker::ipc::Mode;
use crate::worker::listen_watch::{LATE, ListenWatch};

/// Names, once, a server that gets its connections directly and does not listen.
pub(super) fn watch_listening(
    slots: &mut [Slot],
    at: usize,
    config: &ServiceConfig,
    listeners: &Listeners,
    now: Instant,
) {
    let timeout = config.limits.listen_timeout;
    let slot = &mut slots[at];
    let Phase::Launching { since } = slot.lifecycle.phase else { return };
    let Some((server, direct)) = slot.direct_mut() else { return };
    let (pid, bound) = (server.pid, direct.pid.is_some());
    let text = match server.listen_watch.step(since, timeout, now) {
        Some(ListenWatch::Silence) => {
            futile::give_up_insisting(slots, at, config, listeners);
            silence(&mut slots[at], config, listeners, timeout.min(LATE).as_secs_f32())
        }
        Some(_) => {
            futile::give_up_insisting(slots, at, config, listeners);
            // Ports that it may bind by itself have been named, with what to type.
            if bound || slots[at].history.kill_reason.is_some() || passed_port(&slots[at]).is_some() {
                return;
            }
            let Some(by_itself) = instead::by_itself(pid, listeners.has_flags()) else { return };
            format!("server {by_itself}")
        }
        None => return,
    };
    warn!(service = %config.name, slot = at, pid, "{text}; still waiting");
    // Where it listens says more than that it does not.
    if let Some(server) = slots[at].server_mut().filter(|server| server.trouble.is_none()) {
        server.trouble = Some(text);
    }
}

/// The port, served by no `--listen`, on which a preloaded server listens.
fn passed_port(slot: &Slot) -> Option<u16> {
    let (server, direct) = (slot.server()?, slot.attachment()?);
    if direct.passed.is_empty() {
        return None;
    }
    proc_net::ports_of(server.pid).into_iter().find(|port| direct.passed.contains(port))
}

/// That a server does not listen, what it does instead, and what to do about it.
fn silence(slot: &mut Slot, config: &ServiceConfig, listeners: &Listeners, seconds: f32) -> String {
    let passed = passed_port(slot);
    let instead =
        passed.map(|port| format!("it listens on :{port} instead; {}", listeners.serve_instead(&config.backend, port)));
    let by_flag = listeners.flags().next().is_some();
    let Some((server, direct)) = slot.direct_mut() else { return String::new() };
    let missing = listeners.flags().filter(|(id, _)| !direct.listening.contains(id));
    let missing: Vec<_> = missing.map(|(_, listener)| listener.address.as_str()).collect();
    if !direct.listening.is_empty() && missing.is_empty() && !server.has_said_ready() {
        return format!("server listens, and has not said that it is ready after {seconds} s (--wait-ready)");
    }
    let silent = format!("server does not listen after {seconds} s");
    let (pid, bound) = (server.pid, direct.pid.is_some());
    let on = if missing.is_empty() { String::new() } else { format!(" on {}", missing.join(", ")) };
    let by_itself = || instead::by_itself(pid, by_flag).filter(|_| !bound).map(|text| format!("it {text}"));
    if let Some(instead) = instead.or_else(by_itself).or_else(|| instead::elsewhere(pid)) {
        return format!("{silent}{on}: {instead}");
    }
    if Mode::has_own_primary(config) {
        return format!(
            "{silent}{on}: cluster.isPrimary is false here, and so that branch of its script does not run; if it is the \
             primary that listens, use --node-ipc plain -i 1"
        );
    }
    match (bound, by_flag) {
        (false, false) => format!(
            "{silent}; if it serves no port, use --no-listen; if a script starts a statically linked program, --via \
             relay"
        ),
        (false, true) => format!("{silent}{on}; if a script starts a statically linked program, use --via relay"),
        (true, _) => format!("{silent}{on}"),
    }
}
