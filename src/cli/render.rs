//! `ls` for a terminal or a pipe: one table of all services, or all that is known of one.

use anstyle::{AnsiColor, Color, Style};

use super::table::{Cell, Column, cut, printable, table, wrap};
use crate::control::status::{Daemon, IntakeState, LimitsState, ServerState, ServiceState, SlotState, UpstreamState};
use crate::control::waits::WaitState;

const BOLD: Style = Style::new().bold();
/// Where the values of `ls NAME` begin.
const INDENT: usize = 15;

const SLOTS: [Column; 13] = [
    Column::elastic("SERVICE", 0, 6),
    Column::number("SLOT", 0),
    Column::text("STATE", 0),
    Column::number("PID", 1),
    Column::number("CPU", 2),
    Column::number("MEM", 3),
    Column::number("UPTIME", 5),
    Column::number("RESTARTS", 6),
    Column::number("OPEN", 4),
    Column::number("PEND", 10),
    Column::number("CONNS", 7),
    Column::text("VIA", 9),
    Column::elastic("LISTEN", 8, 14),
];

/// All services as one table, and a line for each that has something to say.
pub fn overview(daemons: &[Daemon], width: Option<usize>) -> String {
    let services = || daemons.iter().flat_map(|daemon| &daemon.services);
    let rows: Vec<_> = services().flat_map(slot_rows).collect();
    let mut text = table(&SLOTS, &rows, width);
    for daemon in daemons.iter().filter(|daemon| daemon.stopping) {
        text.push_str(&format!("\ndaemon {} is stopping", daemon.pid));
    }
    for note in services().flat_map(notes) {
        text.push('\n');
        text.push_str(&width.map_or(note.clone(), |width| cut(&note, width)));
    }
    text
}

/// A row for each slot; what concerns the whole service is in the first.
fn slot_rows(service: &ServiceState) -> Vec<Vec<Cell>> {
    let listen = service.listen.iter().map(|listener| listener.addr.as_str()).collect::<Vec<_>>().join(", ");
    let row = |slot: &SlotState| {
        let once = |text: &str| if slot.slot == 0 { printable(text) } else { String::new() };
        vec![
            Cell { text: once(&service.name), style: BOLD },
            slot.slot.to_string().into(),
            state_cell(state(service, slot)),
            dash(slot.server_pid.filter(|_| slot.pid.is_none()).or(slot.pid)),
            alive(slot, format!("{:.1}%", slot.cpu)),
            alive(slot, megabytes(slot.rss_bytes)),
            alive(slot, uptime(slot.uptime_s)),
            slot.restarts.to_string().into(),
            open(slot).into(),
            slot.pending.to_string().into(),
            slot.connections.to_string().into(),
            once(if service.via == "none" { "-" } else { &service.via }).into(),
            once(if listen.is_empty() { "-" } else { &listen }).into(),
        ]
    };
    service.slots.iter().map(row).collect()
}

/// Reasons, clients that wait, upstreams that are down: a line for each. Slots with the same reason share one.
pub fn notes(service: &ServiceState) -> Vec<String> {
    let name = printable(&service.name);
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for slot in &service.slots {
        let Some(reason) = slot.reason.as_deref() else { continue };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, slots)) => slots.push(slot.slot.to_string()),
            None => reasons.push((reason, vec![slot.slot.to_string()])),
        }
    }
    let mut notes: Vec<String> = reasons
        .into_iter()
        .map(|(reason, slots)| match slots.as_slice() {
            [slot] => format!("{name} slot {slot}: {}", printable(reason)),
            [first, ..] => format!("{name} slot {first} and {} more: {}", slots.len() - 1, printable(reason)),
            [] => String::new(),
        })
        .collect();
    for slot in service.slots.iter().filter(|slot| slot.weight != 1) {
        notes.push(format!("{name} slot {}: weight {}", slot.slot, slot.weight));
    }
    if service.held + service.shed > 0 {
        let (longest, given_up) = waits(service);
        notes.push(format!("{name}: {} clients waiting{longest}, {given_up}", service.held));
    }
    if service.upstreams_up() < service.upstreams.len() {
        notes.push(format!("{name}: {}", upstreams_line(service, "upstreams up")));
    }
    notes
}

/// How long clients wait, and what became of others.
fn waits(service: &ServiceState) -> (String, String) {
    let seconds = service.longest_wait_ms as f64 / 1e3;
    let longest = if service.held > 0 { format!(" (the longest for {seconds:.1} s)") } else { String::new() };
    let given_up = match service.shed_by.get("client-left") {
        Some(left @ 1..) => format!("{} given up ({left} had left)", service.shed),
        _ => format!("{} given up", service.shed),
    };
    (longest, given_up)
}

/// How long clients had waited that then got a worker.
fn waited(waits: &WaitState) -> String {
    let below = |part| match waits.below(part) {
        bound if bound.is_infinite() => "more than a minute".to_owned(),
        bound if bound < 1.0 => format!("less than {:.0} ms", bound * 1e3),
        bound => format!("less than {bound:.1} s"),
    };
    format!("{} clients waited: half {}, 99 % {}", waits.count(), below(0.5), below(0.99))
}

/// All that is known of one service.
pub fn detail(daemon: &Daemon, service: &ServiceState, width: Option<usize>) -> String {
    let name = cut(&printable(&service.name), width.unwrap_or(usize::MAX));
    let mut text = format!("{BOLD}{name}{BOLD:#}");
    let mut line = |name: &str, value: &str| {
        text.push('\n');
        text.push_str(&wrap(&format!("  {name:<12} "), &printable(value), INDENT, width));
    };
    line("daemon", &format!("pid {}, up {}, version {}", daemon.pid, uptime(daemon.uptime_s), daemon.version));
    if let Some(command) = &service.command {
        line("command", command);
        line("directory", service.cwd.as_deref().unwrap_or("-"));
    }
    let by = if service.via_seccomp { " (seccomp)" } else { "" };
    line("delivery", &format!("{}{by}: {}", service.via, service.via_reason));
    let on = service.hash_on.as_ref().map(|on| format!(" on {on}")).unwrap_or_default();
    line("policy", &format!("{}{on}", service.policy));
    for listener in &service.listen {
        let from = if listener.from == "server" { ", chosen by the server" } else { "" };
        let workers = if listener.workers == 1 { "worker" } else { "workers" };
        line("listens on", &format!("{} ({} {workers}{from})", listener.addr, listener.workers));
    }
    let (longest, given_up) = waits(service);
    line("clients", &format!("{} waiting for a worker{longest}, {given_up}", service.held));
    if service.waits.count() > 0 {
        line("waits", &waited(&service.waits));
    }
    if let Some(intake) = &service.intake {
        if let Some(keys) = keys(intake) {
            line("keys", &keys);
        }
        line("intake", &self::intake(intake));
    }
    if let Some(server) = &service.server {
        line("server", &shared_server(server));
    }
    if service.command.is_some() {
        line("stdout", service.out.as_deref().unwrap_or("kept in memory and passed on: roundsman logs"));
        line("stderr", service.error.as_deref().unwrap_or("kept in memory and passed on: roundsman logs"));
    }
    if let Some(limits) = &service.limits {
        self::limits(limits).iter().for_each(|(name, value)| line(name, value));
        let message = service.stop_message.as_ref().map(|_| ", after the stop message").unwrap_or_default();
        let signal = service.stop_signal.as_deref().unwrap_or("SIGTERM");
        line("signals", &format!("{signal} stops a server{message}; SIGHUP to {} reloads", daemon.pid));
    }
    if !service.upstreams.is_empty() {
        line("upstreams", &upstreams_line(service, "up"));
        let rows: Vec<_> = service.upstreams.iter().map(upstream_row).collect();
        text.push_str(&format!("\n\n{}", table(&UPSTREAMS, &rows, width)));
    }
    let rows: Vec<_> = service.slots.iter().map(|slot| detail_row(service, slot)).collect();
    text.push_str(&format!("\n\n{}", table(&SLOTS_OF_ONE, &rows, width)));
    for slot in &service.slots {
        // Mostly the reason names it.
        let reason = slot.reason.as_deref().unwrap_or_default();
        let exit = slot.last_exit.as_deref().filter(|exit| !reason.contains(exit));
        let mut more: Vec<String> = exit.map(|exit| format!("last exit: {exit}")).into_iter().collect();
        more.extend(slot.reason.clone());
        if !more.is_empty() {
            text.push('\n');
            text.push_str(&wrap(&format!("slot {}: ", slot.slot), &printable(&more.join("; ")), 4, width));
        }
    }
    text
}

/// Connections that were hashed on their first request, or were to be.
fn keys(intake: &IntakeState) -> Option<String> {
    let without: u64 = intake.no_key.values().sum();
    let reasons: Vec<_> =
        intake.no_key.iter().filter(|(_, count)| **count > 0).map(|(why, count)| format!("{count} {why}")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    (intake.keys + without > 0).then(|| format!("{} connections with a key, {without} without{reasons}", intake.keys))
}

/// Connections before a worker is chosen.
fn intake(intake: &IntakeState) -> String {
    let refused: Vec<_> =
        intake.refused.iter().filter(|(_, count)| **count > 0).map(|(why, count)| format!("{count} {why}")).collect();
    let refused =
        if refused.is_empty() { "none refused".to_owned() } else { format!("refused: {}", refused.join(", ")) };
    let lost = match intake.addresses_lost {
        0 => String::new(),
        lost => format!(", {lost} seen as the balancer"),
    };
    format!("{} PROXY headers, {} waiting for first bytes, {refused}{lost}", intake.proxy_headers, intake.waiting)
}

const SLOTS_OF_ONE: [Column; 13] = [
    Column::number("SLOT", 0),
    Column::text("STATE", 0),
    Column::number("PID", 1),
    Column::number("SERVER", 7),
    Column::number("GEN", 10),
    Column::number("CPU", 2),
    Column::number("MEM", 3),
    Column::number("UPTIME", 5),
    Column::number("RESTARTS", 6),
    Column::number("OPEN", 4),
    Column::number("PEND", 9),
    Column::number("CONNS", 8),
    Column::number("RESCUED", 11),
];

fn detail_row(service: &ServiceState, slot: &SlotState) -> Vec<Cell> {
    vec![
        slot.slot.to_string().into(),
        state_cell(state(service, slot)),
        dash(slot.pid),
        dash(slot.server_pid),
        slot.generation.to_string().into(),
        alive(slot, format!("{:.1}%", slot.cpu)),
        alive(slot, megabytes(slot.rss_bytes)),
        alive(slot, uptime(slot.uptime_s)),
        slot.restarts.to_string().into(),
        open(slot).into(),
        slot.pending.to_string().into(),
        slot.connections.to_string().into(),
        slot.rescued.to_string().into(),
    ]
}

const UPSTREAMS: [Column; 8] = [
    Column::elastic("UPSTREAM", 0, 12),
    Column::text("STATE", 0),
    Column::number("OPEN", 1),
    Column::number("CONNS", 2),
    Column::number("IN", 5),
    Column::number("OUT", 5),
    Column::number("ERRORS", 4),
    Column::elastic("LAST ERROR", 3, 16),
];

fn upstream_row(upstream: &UpstreamState) -> Vec<Cell> {
    let ago = upstream.last_error_s.map(|seconds| format!(", {} ago", uptime(seconds))).unwrap_or_default();
    let weight = if upstream.weight == 1 { String::new() } else { format!(" weight={}", upstream.weight) };
    let backup = if upstream.backup { " backup" } else { "" };
    vec![
        format!("{}{weight}{backup}", printable(&upstream.addr)).into(),
        state_cell(upstream_state(upstream)),
        upstream.open.to_string().into(),
        upstream.connections.to_string().into(),
        size(upstream.bytes_in).into(),
        size(upstream.bytes_out).into(),
        upstream.errors.to_string().into(),
        upstream.last_error.as_ref().map_or_else(|| "-".to_owned(), |error| format!("{error}{ago}")).into(),
    ]
}

/// The state of an upstream in the words of the verbs.
pub fn upstream_state(upstream: &UpstreamState) -> &str {
    match (upstream.is_up(), upstream.drain) {
        (true, true) if upstream.open > 0 => "draining",
        (true, true) => "drained",
        _ => &upstream.state,
    }
}

fn upstreams_line(service: &ServiceState, up: &str) -> String {
    let line = format!("{} of {} {up}", service.upstreams_up(), service.upstreams.len());
    match service.waiting_for_upstream {
        0 => line,
        waiting => format!("{line}, {waiting} clients waiting for one"),
    }
}

/// The server that all slots share.
fn shared_server(server: &ServerState) -> String {
    let pid = server.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let exit = server.last_exit.as_ref().map(|exit| format!(", last exit: {exit}")).unwrap_or_default();
    let (memory, restarts) = (megabytes(server.rss_bytes), server.restarts);
    format!(
        "shared by all slots: {}{pid}, up {}, {memory}, {:.1}% CPU, {restarts} restarts{exit}",
        server.state,
        uptime(server.uptime_s),
        server.cpu
    )
}

fn limits(limits: &LimitsState) -> [(&'static str, String); 3] {
    let time = |ms: u64| format!("{:?}", std::time::Duration::from_millis(ms));
    let memory = limits.max_memory_bytes.map(|most| format!("at most {} a worker", size(most)));
    let hang = limits.hang_timeout_ms.map_or_else(|| "none".to_owned(), time);
    [
        ("memory", memory.unwrap_or_else(|| "no limit".to_owned())),
        (
            "restarts",
            format!(
                "at most {} in a row, {} to {} apart; min-uptime {}",
                limits.max_restarts,
                time(limits.backoff_ms[0]),
                time(limits.backoff_ms[1]),
                time(limits.min_uptime_ms)
            ),
        ),
        (
            "timeouts",
            format!(
                "listen {}, drain {}, kill {}, stop {}, queue {}, hang {hang}",
                time(limits.listen_timeout_ms),
                time(limits.drain_timeout_ms),
                time(limits.kill_timeout_ms),
                time(limits.stop_timeout_ms),
                time(limits.queue_timeout_ms)
            ),
        ),
    ]
}

fn state_cell(state: &str) -> Cell {
    let colour = match state {
        "online" | "up" => AnsiColor::Green,
        "errored" | "down" => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    Cell { text: state.to_owned(), style: Style::new().fg_color(Some(Color::Ansi(colour))) }
}

/// The state of a slot in the words of the verbs.
pub fn state<'a>(service: &ServiceState, slot: &'a SlotState) -> &'a str {
    match slot.state.as_str() {
        "gone" if slot.finished => "finished",
        "gone" if service.stopped => "stopped",
        "online" if slot.drain && slot.open + slot.pending > 0 => "draining",
        "online" if slot.drain => "drained",
        state => state,
    }
}

fn dash(pid: Option<u32>) -> Cell {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()).into()
}

/// What only a slot with a process has.
fn alive(slot: &SlotState, text: String) -> Cell {
    if slot.pid.or(slot.server_pid).is_some() { text.into() } else { "-".into() }
}

pub fn open(slot: &SlotState) -> String {
    if slot.open_is_estimate { format!("~{}", slot.open) } else { slot.open.to_string() }
}

pub fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / (1024.0 * 1024.0);
    if megabytes < 10.0 { format!("{megabytes:.1}M") } else { format!("{megabytes:.0}M") }
}

/// In the largest unit that gives at least 1.
pub fn size(bytes: u64) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1}{unit}", bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{bytes}B"),
    }
}

/// The two largest units.
pub fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        (_, _, _) => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "render_tests.rs"]
mod tests;
