//! `ls` for people.

use anstyle::{AnsiColor, Color, Style};
use comfy_table::{CellAlignment, Table, presets};

use super::status::{Daemon, ServiceState, SlotState, UpstreamState};

/// A daemon as text: a line per service and a table of its slots.
pub fn table(daemon: &Daemon) -> String {
    let services: Vec<String> = daemon.services.iter().map(service).collect();
    format!(
        "roundsman {} (pid {}, up {})\n{}",
        daemon.version,
        daemon.pid,
        uptime(daemon.uptime_s),
        services.join("\n")
    )
}

/// Longer commands are cut in the overview.
const WIDTH: usize = 78;

fn service(service: &ServiceState) -> String {
    let mut text = heading(service);
    if let Some(command) = &service.command {
        let mut line = format!("  {command}");
        if line.chars().count() > WIDTH {
            line = line.chars().take(WIDTH - 1).chain(['…']).collect();
        }
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(&format!("  {}: {}\n", service.via, service.via_reason));
    if service.held + service.shed > 0 {
        text.push_str(&format!("  {} clients waiting, {} given up\n", service.held, service.shed));
    }
    if !service.upstreams.is_empty() {
        text.push_str(&format!("  {}\n", upstreams_line(service)));
    }
    text.push_str(&slots(service));
    for slot in &service.slots {
        if let Some(reason) = &slot.reason {
            text.push_str(&format!("\n  slot {}: {reason}", slot.slot));
        }
    }
    text
}

fn heading(service: &ServiceState) -> String {
    let listen: Vec<_> = service.listen.iter().map(|listener| listener.addr.as_str()).collect();
    let on = if listen.is_empty() { String::new() } else { format!("  on {}", listen.join(", ")) };
    // One that serves no port has neither.
    let how = match service.via.as_str() {
        "none" => "no port".to_owned(),
        via => format!("{} via {via}", service.policy),
    };
    format!("{BOLD}{}{BOLD:#}  {how}{on}\n", service.name)
}

/// All that is known of one service.
pub fn detail(daemon: &Daemon, service: &ServiceState) -> String {
    let mut text = heading(service);
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<12} {value}\n"));
    line("daemon", &format!("pid {}, up {}, version {}", daemon.pid, uptime(daemon.uptime_s), daemon.version));
    if let Some(command) = &service.command {
        line("command", command);
    }
    line("delivery", &format!("{}: {}", service.via, service.via_reason));
    for listener in &service.listen {
        let from = if listener.from == "server" { ", chosen by the server" } else { "" };
        let workers = if listener.workers == 1 { "worker" } else { "workers" };
        line("listens on", &format!("{} ({} {workers}{from})", listener.addr, listener.workers));
    }
    line("clients", &format!("{} waiting for a worker, {} given up", service.held, service.shed));
    if !service.upstreams.is_empty() {
        line("upstreams", &upstreams_line(service));
        text.push_str(&upstreams(service));
        text.push_str("\n\n");
    }
    text.push_str(&slots(service));
    for slot in &service.slots {
        let mut more = vec![format!("generation {}", slot.generation)];
        // Mostly the reason names it.
        let reason = slot.reason.as_deref().unwrap_or_default();
        let exit = slot.last_exit.as_deref().filter(|exit| !reason.contains(exit));
        more.extend(exit.map(|exit| format!("last exit: {exit}")));
        more.extend(slot.reason.clone());
        text.push_str(&format!("\n  slot {}: {}", slot.slot, more.join("; ")));
    }
    text
}

const BOLD: Style = Style::new().bold();

fn colour(state: &str) -> Style {
    let colour = match state {
        "online" | "up" => AnsiColor::Green,
        "errored" | "down" => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    Style::new().fg_color(Some(Color::Ansi(colour)))
}

fn slots(service: &ServiceState) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "SLOT", "STATE", "PID", "SERVER", "OPEN", "PEND", "CONNS", "RESCUED", "RESTARTS", "UPTIME", "MEM",
    ]);
    for slot in &service.slots {
        table.add_row(row(service, slot));
    }
    let numbers = table.column_count();
    lay_out(table, 2..numbers, service.slots.iter().map(|slot| state(service, slot)))
}

fn upstreams_line(service: &ServiceState) -> String {
    let line = format!("{} of {} upstreams up", service.upstreams_up(), service.upstreams.len());
    match service.waiting_for_upstream {
        0 => line,
        waiting => format!("{line}, {waiting} clients waiting for one"),
    }
}

/// The table of upstreams.
fn upstreams(service: &ServiceState) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["UPSTREAM", "STATE", "OPEN", "CONNS", "IN", "OUT", "ERRORS", "LAST ERROR"]);
    for upstream in &service.upstreams {
        table.add_row(upstream_row(upstream));
    }
    lay_out(table, 2..7, service.upstreams.iter().map(|upstream| upstream.state.as_str()))
}

fn upstream_row(upstream: &UpstreamState) -> [String; 8] {
    let ago = upstream.last_error_s.map(|seconds| format!(", {} ago", uptime(seconds))).unwrap_or_default();
    [
        upstream.addr.clone(),
        upstream.state.clone(),
        upstream.open.to_string(),
        upstream.connections.to_string(),
        size(upstream.bytes_in),
        size(upstream.bytes_out),
        upstream.errors.to_string(),
        upstream.last_error.as_ref().map_or_else(|| "-".to_owned(), |error| format!("{error}{ago}")),
    ]
}

/// A table as text, numbers to the right; in each row the first word that is its state gets a colour.
fn lay_out<'a>(mut table: Table, numbers: std::ops::Range<usize>, states: impl Iterator<Item = &'a str>) -> String {
    for column in table.column_iter_mut() {
        // One space between columns: long pids and counts still fit 80 of them.
        column.set_padding((0, 1));
    }
    for column in table.column_iter_mut().skip(numbers.start).take(numbers.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    // Backend the layout, which would count the colours' bytes as columns.
    for (line, state) in lines.iter_mut().skip(1).zip(states) {
        let style = colour(state);
        let cell = format!(" {state}");
        *line = line.replacen(&cell, &format!(" {style}{state}{style:#}"), 1);
    }
    lines.join("\n")
}

/// The state of a slot in the words of the verbs.
fn state<'a>(service: &ServiceState, slot: &'a SlotState) -> &'a str {
    match slot.state.as_str() {
        "gone" if slot.finished => "finished",
        "gone" if service.stopped => "stopped",
        state => state,
    }
}

fn row(service: &ServiceState, slot: &SlotState) -> [String; 11] {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    [
        slot.slot.to_string(),
        state(service, slot).to_owned(),
        pid(slot.pid),
        pid(slot.server_pid),
        if slot.open_is_estimate { format!("~{}", slot.open) } else { slot.open.to_string() },
        slot.pending.to_string(),
        slot.connections.to_string(),
        slot.rescued.to_string(),
        slot.restarts.to_string(),
        uptime(slot.uptime_s),
        megabytes(slot.rss_bytes),
    ]
}

fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / (1024.0 * 1024.0);
    if megabytes < 10.0 { format!("{megabytes:.1}M") } else { format!("{megabytes:.0}M") }
}

/// In the largest unit that gives at least 1.
fn size(bytes: u64) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => format!("{:.1}{unit}", bytes as f64 / f64::from(1u32 << shift)),
        None => format!("{bytes}B"),
    }
}

/// The two largest units.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        (_, _, _) => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1_536, 5 << 20, 3 << 30, 2_000 << 30].map(size);
        assert_eq!(sizes, ["0B", "1023B", "1.0K", "1.5K", "5.0M", "3.0G", "2000.0G"]);
    }

    #[test]
    fn large_numbers_fit_eighty_columns() {
        let slot = SlotState {
            slot: 1023,
            state: "launching".to_owned(),
            pid: Some(4_194_303),
            server_pid: Some(4_194_304),
            generation: 1,
            restarts: 123,
            uptime_s: 86_400 * 200 + 7 * 3600,
            open: 9_999,
            open_is_estimate: false,
            pending: 64,
            connections: 1_234_567_890,
            rescued: 12_345,
            counts: crate::handoff::page::Counts::default(),
            finished: false,
            rss_bytes: 987 << 20,
            reason: None,
            last_exit: None,
        };
        let service_state = ServiceState {
            name: "x".to_owned(),
            command: None,
            policy: "rr".to_owned(),
            via: "relay".to_owned(),
            via_reason: String::new(),
            listen: Vec::new(),
            held: 0,
            shed: 0,
            reloads: 0,
            waiting_for_upstream: 0,
            upstreams: Vec::new(),
            stopped: false,
            slots: vec![slot],
        };
        for line in anstream::adapter::strip_str(&service(&service_state)).to_string().lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
    }
}
