//! `ls` for people.

use comfy_table::{CellAlignment, Table, presets};

use super::snapshot::{Daemon, ServiceState, SlotState};

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

fn service(service: &ServiceState) -> String {
    let listen: Vec<_> = service.listen.iter().map(|listener| listener.addr.as_str()).collect();
    let mut text = format!("{}  {} via {}  on {}\n", service.name, service.policy, service.via, listen.join(", "));
    if let Some(command) = &service.command {
        text.push_str(&format!("  {command}\n"));
    }
    text.push_str(&format!("  {}: {}\n", service.via, service.via_reason));
    if service.held + service.shed > 0 {
        text.push_str(&format!("  {} clients waiting, {} given up\n", service.held, service.shed));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "SLOT", "STATE", "PID", "SERVER", "OPEN", "PEND", "CONNS", "RESCUED", "RESTARTS", "UPTIME", "MEM",
    ]);
    for slot in &service.slots {
        table.add_row(row(slot));
    }
    for column in table.column_iter_mut() {
        // One space between columns: long pids and counts still fit 80 of them.
        column.set_padding((0, 1));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text.push_str(&lines.join("\n"));
    for slot in &service.slots {
        if let Some(reason) = &slot.reason {
            text.push_str(&format!("\n  slot {}: {reason}", slot.slot));
        }
    }
    text
}

fn row(slot: &SlotState) -> [String; 11] {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    [
        slot.slot.to_string(),
        slot.state.clone(),
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
            slots: vec![slot],
        };
        for line in service(&service_state).lines() {
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        }
    }
}
