//! The table of services, slots and upstreams.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::{View, put};
use crate::cli::render::{megabytes, open, size, state, upstream_state, uptime};
use crate::cli::table::{Column, columns_of, cut, fit, printable};
use crate::cli::top::rows::{Row, Sort, Subject};
use crate::control::history::bound;
use crate::control::status::ServiceState;

/// Spaces between columns.
const GAP: usize = 1;

const COLUMNS: [Column; 14] = [
    Column::elastic("NAME", 0, 8),
    Column::text("STATE", 0),
    Column::number("GEN", 7),
    Column::number("OPEN", 3),
    Column::number("PEND", 5),
    Column::number("WAIT", 8),
    Column::number("CONN/S", 1),
    Column::number("P50", 9),
    Column::number("P99", 2),
    Column::number("CPU", 2),
    Column::number("MEM", 4),
    Column::number("RST", 6),
    Column::number("UP", 10),
    Column::text("WHY", 11),
];
const STATE: usize = 1;
const WHY: usize = COLUMNS.len() - 1;
/// The least width that says something.
const MIN_WHY: usize = 12;

/// A line as text, a cell for each column.
fn cells(row: &Row<'_>) -> [String; COLUMNS.len()] {
    let point = row.point;
    let none = String::new;
    let alive = |is: bool, text: String| if is { text } else { "-".to_owned() };
    let (cpu, memory) = (percent(f64::from(point.cpu) / 10.0), megabytes(u64::from(point.memory) * 1024));
    match row.subject {
        Subject::Service => {
            let service = row.service;
            let pending = service.slots.iter().fold(0, |sum: u64, slot| sum.saturating_add(slot.pending));
            let waiting = service.held.saturating_add(service.waiting_for_upstream);
            let state = match service.stopped {
                true => "stopped".to_owned(),
                false => format!("{}/{}", service.online(), service.slots.len()),
            };
            let any = service.slots.iter().any(|slot| slot.pid.or(slot.server_pid).is_some());
            [
                printable(&service.name),
                state,
                none(),
                row.open().to_string(),
                pending.to_string(),
                waiting.to_string(),
                rate(point.rate),
                waited(point.p50),
                waited(point.p99),
                alive(any, cpu),
                alive(any, memory),
                row.restarts().to_string(),
                none(),
                printable(&served(service)),
            ]
        }
        Subject::Slot(slot) => {
            let is = slot.pid.or(slot.server_pid).is_some();
            [
                format!(" {}", printable(&row.label())),
                state(row.service, slot).to_owned(),
                slot.generation.to_string(),
                open(slot),
                slot.pending.to_string(),
                none(),
                rate(point.rate),
                waited(point.p50),
                waited(point.p99),
                alive(is, cpu),
                alive(is, memory),
                slot.restarts.to_string(),
                alive(is, uptime(slot.uptime_s)),
                printable(&why(row)),
            ]
        }
        Subject::Upstream(upstream) => [
            format!(" @{}", printable(&upstream.addr)),
            upstream_state(upstream).to_owned(),
            none(),
            upstream.open.to_string(),
            none(),
            none(),
            rate(point.rate),
            none(),
            none(),
            none(),
            none(),
            upstream.errors.to_string(),
            none(),
            printable(&why(row)),
        ],
    }
}

/// Why a slot or upstream is as it is.
fn why(row: &Row<'_>) -> String {
    match row.subject {
        Subject::Service => row.service.via_reason.clone(),
        Subject::Slot(slot) => {
            let reason = slot.reason.as_deref().unwrap_or_default();
            // Mostly the reason names it.
            let exit = slot.last_exit.as_deref().filter(|exit| !reason.contains(exit));
            let exit = exit.map(|exit| format!("last exit: {exit}"));
            let weight = (slot.weight != 1).then(|| format!("weight {}", slot.weight));
            let parts = [weight, slot.reason.clone(), exit];
            parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
        Subject::Upstream(upstream) => {
            let ago = upstream.last_error_s.map(|seconds| format!(" ({} ago)", uptime(seconds))).unwrap_or_default();
            let weight = (upstream.weight != 1).then(|| format!("weight {}", upstream.weight));
            let backup = upstream.backup.then(|| "backup".to_owned());
            let error = upstream.last_error.as_ref().map(|error| format!("{error}{ago}"));
            [weight, backup, error].into_iter().flatten().collect::<Vec<_>>().join("; ")
        }
    }
}

/// By which delivery and policy a service is served.
fn served(service: &ServiceState) -> String {
    if service.via == "none" { "no port".to_owned() } else { format!("{} {}", service.via, service.policy) }
}

/// The selected line in words.
pub fn detail(row: &Row<'_>) -> String {
    let why = why(row);
    let end = if why.is_empty() { String::new() } else { format!(": {why}") };
    let text = match row.subject {
        Subject::Service => {
            let service = row.service;
            let listen = service.listen.iter().map(|listener| listener.addr.as_str()).collect::<Vec<_>>().join(", ");
            let listen = if listen.is_empty() { String::new() } else { format!(" on {listen}") };
            let command = service.command.as_deref().map(|command| format!(", {command}")).unwrap_or_default();
            let (reloads, shed) = (service.reloads, service.shed);
            format!("{}{listen}, {}, {reloads} reloads, {shed} given up{command}", row.label(), served(service))
        }
        Subject::Slot(slot) => {
            let pid = slot.server_pid.or(slot.pid).map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let (state, connections) = (state(row.service, slot), slot.connections);
            let restarts = slot.restarts;
            let moved = if slot.moved > 0 { format!(", {} moved to others", slot.moved) } else { String::new() };
            format!("{} {state}{pid}, {connections} connections{moved}, {restarts} restarts{end}", row.label())
        }
        Subject::Upstream(upstream) => {
            let (bytes_in, bytes_out) = (size(upstream.bytes_in), size(upstream.bytes_out));
            let (connections, errors) = (upstream.connections, upstream.errors);
            format!("{} {connections} connections, {bytes_in} in, {bytes_out} out, {errors} errors{end}", row.label())
        }
    };
    printable(&text)
}

pub fn draw(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    if area.height == 0 {
        return;
    }
    let width = usize::from(area.width);
    let rows: Vec<_> = view.rows.iter().map(cells).collect();
    let widths = widths(&rows, width);
    let titles = COLUMNS.map(|column| column.title.to_owned());
    let sorted = |at: usize| view.screen.sort != Sort::Name && COLUMNS[at].title == view.screen.sort.title();
    let header = line(&titles, &widths, |at| {
        let style = Style::new().add_modifier(Modifier::UNDERLINED);
        if sorted(at) { style.add_modifier(Modifier::BOLD | Modifier::REVERSED) } else { style }
    });
    put(frame, area, 0, header);
    let height = usize::from(area.height - 1);
    for (at, (row, cells)) in view.rows.iter().zip(&rows).enumerate().skip(view.screen.offset).take(height) {
        let own = match row.subject {
            Subject::Service => Style::new().add_modifier(Modifier::BOLD),
            _ => Style::new(),
        };
        let own = if row.watched.gone.is_some() { own.patch(view.theme.dim()) } else { own };
        let mut line = line(cells, &widths, |at| if at == STATE { own.patch(state_style(view, row)) } else { own });
        if at == view.screen.at {
            let filled: usize = line.spans.iter().map(|span| columns_of(&span.content)).sum();
            line.push_span(Span::raw(" ".repeat(width.saturating_sub(filled))));
            line = line.patch_style(Style::new().add_modifier(Modifier::REVERSED));
        }
        put(frame, area, 1 + at - view.screen.offset, line);
    }
    if view.rows.is_empty() {
        let text = match (view.screen.filter.as_str(), view.seen.daemons.is_empty()) {
            (_, true) => "no daemon is running; asked every second",
            ("", _) => "no services",
            _ => "nothing matches the filter; Esc shows everything",
        };
        put(frame, area, 1, Line::raw(text));
    }
}

/// The width of each column. The last one gets what the others leave, if that is enough for a word or two.
fn widths(rows: &[[String; COLUMNS.len()]], width: usize) -> Vec<Option<usize>> {
    let natural = |at: usize, column: &Column| {
        rows.iter().map(|cells| columns_of(&cells[at])).chain([column.title.len()]).max().unwrap_or(0)
    };
    let natural: Vec<_> = COLUMNS.iter().enumerate().map(|(at, column)| natural(at, column)).collect();
    let mut widths = fit(&COLUMNS[..WHY], natural[..WHY].to_vec(), Some(width), GAP);
    let left = width.saturating_sub(widths.iter().flatten().map(|width| width + GAP).sum());
    widths.push(Some(left.min(natural[WHY])).filter(|&why| why == natural[WHY] || why >= MIN_WHY));
    widths
}

fn state_style(view: &View<'_>, row: &Row<'_>) -> Style {
    let word = match row.subject {
        Subject::Service if row.service.stopped => "stopped",
        Subject::Service if row.service.sick().is_some() => "errored",
        Subject::Service if row.service.online() == row.service.slots.len() => "online",
        Subject::Service => "",
        Subject::Slot(slot) => state(row.service, slot),
        Subject::Upstream(upstream) => upstream_state(upstream),
    };
    match word {
        "online" | "up" => view.theme.fg(Color::Green),
        "errored" | "down" | "waiting" => view.theme.bad(),
        _ => view.theme.fg(Color::Yellow),
    }
}

fn line(cells: &[String; COLUMNS.len()], widths: &[Option<usize>], style: impl Fn(usize) -> Style) -> Line<'static> {
    let mut spans = Vec::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let Some(width) = *width else { continue };
        if !spans.is_empty() {
            spans.push(Span::raw(" ".repeat(GAP)));
        }
        let text = cut(cell, width);
        let padding = " ".repeat(width.saturating_sub(columns_of(&text)));
        let text = if COLUMNS[at].number { padding + &text } else { text + &padding };
        spans.push(Span::styled(text, style(at)));
    }
    Line::from(spans)
}

/// Connections a second.
pub fn rate(rate: f32) -> String {
    if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn percent(percent: f64) -> String {
    if percent < 9.95 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

/// What hand-offs waited at most, by the bucket of a point.
pub fn waited(bucket: u8) -> String {
    match (bucket, bound(bucket)) {
        (0, _) => "-".to_owned(),
        (_, None) => ">0.5s".to_owned(),
        (_, Some(bound)) if bound.as_micros() < 1000 => format!("{}µs", bound.as_micros()),
        (_, Some(bound)) if bound.as_micros() < 10_000 => format!("{:.1}ms", bound.as_secs_f64() * 1e3),
        (_, Some(bound)) => format!("{:.0}ms", bound.as_secs_f64() * 1e3),
    }
}
