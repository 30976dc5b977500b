//! Small plots of the selected line since the start: rate, wait, open, CPU, memory.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Color;
use ratatui::text::Line;
use ratatui::widgets::Sparkline;

use super::table::{rate, waited};
use super::{View, heading, put};
use crate::cli::place::Part;
use crate::cli::render::{megabytes, uptime};
use crate::cli::table::cut;
use crate::cli::top::rows::{Subject, label};
use crate::control::history::Point;

/// The narrowest plot.
const MIN_WIDTH: u16 = 12;

struct Plot {
    title: &'static str,
    value: fn(&Point) -> u64,
    shown: fn(&Point) -> String,
}

const PLOTS: [Plot; 5] = [
    Plot { title: "conn/s", value: |point| (point.rate * 10.0) as u64, shown: |point| rate(point.rate) },
    Plot { title: "wait p99", value: |point| point.p99.into(), shown: |point| waited(point.p99) },
    Plot { title: "open", value: |point| point.open.into(), shown: |point| point.open.to_string() },
    Plot {
        title: "cpu",
        value: |point| point.cpu.into(),
        shown: |point| format!("{:.0}%", f64::from(point.cpu) / 10.0),
    },
    Plot { title: "mem", value: |point| point.memory.into(), shown: |point| megabytes(u64::from(point.memory) * 1024) },
];

pub fn draw(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    let Some(row) = view.rows.get(view.screen.at) else { return };
    // Nothing is counted for upstreams: their service's.
    let slot = match row.subject {
        Subject::Slot(slot) => Some(slot.slot),
        Subject::Service | Subject::Upstream(_) => None,
    };
    let (first, points) = row.watched.points(&row.service.name, slot);
    let now = row.watched.point(row.service, slot);
    let part = slot.map_or(Part::Whole, |slot| Part::Slot(u32::try_from(slot).unwrap_or(u32::MAX)));
    let count = usize::from(area.width / MIN_WIDTH).clamp(1, PLOTS.len());
    let constraints = vec![Constraint::Fill(1); count];
    let columns = Layout::horizontal(constraints).spacing(1).split(area);
    let width = columns.iter().map(|column| column.width).min().unwrap_or(1).max(1);
    let (group, groups) = grouped(first, &points, width.into());
    let span = uptime(points.len() as u64);
    heading(frame, view, area, &format!("{}, last {span}", label(&row.service.name, &part)));
    for (plot, column) in PLOTS.iter().zip(columns.iter()) {
        let title = format!("{} {}", plot.title, (plot.shown)(&now));
        put(frame, *column, 1, Line::raw(cut(&title, column.width.into())));
        let values: Vec<u64> = groups.iter().map(|points| mean(points, group, plot.value)).collect();
        let bars = Rect { y: column.y + 2, height: column.height.saturating_sub(2), ..*column };
        let widget = Sparkline::default().data(&values).style(view.theme.fg(Color::Cyan));
        frame.render_widget(widget, bars);
    }
}

/// So many points to a bar that all of them fit, a power of two, and the bars. Bars begin at multiples of that: they stay
/// as they are while new ones are added.
fn grouped(first: u64, points: &[Point], width: usize) -> (u64, Vec<&[Point]>) {
    let mut group: u64 = 1;
    loop {
        let head = (group - first % group) % group;
        let (head, rest) = points.split_at(usize::try_from(head).unwrap_or(usize::MAX).min(points.len()));
        let bars = rest.chunks(usize::try_from(group).unwrap_or(usize::MAX));
        let count = bars.len() + usize::from(!head.is_empty());
        if count <= width.max(2) {
            let head = Some(head).filter(|head| !head.is_empty());
            return (group, head.into_iter().chain(bars).collect());
        }
        group *= 2;
    }
}

fn mean(points: &[Point], group: u64, value: fn(&Point) -> u64) -> u64 {
    let sum: u64 = points.iter().map(value).fold(0, u64::saturating_add);
    // Rounded up: what is little is not nothing.
    sum.div_ceil((points.len() as u64).clamp(1, group))
}
