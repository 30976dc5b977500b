//! `ls` for people.

use std::time::Duration;

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
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    text.push_str(&lines.join("\n"));
    for slot in service.slots.iter().filter(|slot| slot.state != "online") {
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
        slot.open.to_string(),
        slot.pending.to_string(),
        slot.connections.to_string(),
        slot.rescued.to_string(),
        slot.restarts.to_string(),
        uptime(slot.uptime_s),
        format!("{:.1}M", slot.rss_bytes as f64 / (1024.0 * 1024.0)),
    ]
}

/// The two largest units.
fn uptime(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect()
}
