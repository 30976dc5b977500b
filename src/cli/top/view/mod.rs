//! The frame: what was seen and the size of the terminal in, cells out.

mod overlays;
mod plots;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::time::SystemTime;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::rows::{Row, Sort, Subject, name_of};
use super::screen::{Mode, Screen};
use super::seen::Seen;
use crate::cli::render::notes;
use crate::cli::table::{columns_of, cut, printable};
use crate::output::time;

/// Heights from which parts are shown.
const WITH_PLOTS: u16 = 14;
const WITH_TALL_PLOTS: u16 = 40;
const WITH_DETAIL: u16 = 8;
const WITH_EVENTS: u16 = 20;
/// Lines of the table that notes leave it at least.
const MIN_TABLE: u16 = 8;
const MAX_NOTES: u16 = 8;

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub seen: &'a Seen,
    pub rows: &'a [Row<'a>],
    pub screen: &'a Screen,
    pub theme: Theme,
    /// The time of day.
    pub clock: &'a str,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    pub colours: bool,
}

impl Theme {
    pub fn fg(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    pub fn bad(self) -> Style {
        self.fg(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Where the parts are.
#[derive(Debug, Clone, Copy)]
pub struct Areas {
    title: Rect,
    plots: Rect,
    /// With its header.
    table: Rect,
    detail: Rect,
    notes: Rect,
    events: Rect,
    keys: Rect,
}

impl Areas {
    /// Lines of the table.
    pub fn page(&self) -> usize {
        usize::from(self.table.height.saturating_sub(1))
    }

    pub fn of(area: Rect, seen: &Seen) -> Self {
        let plots = match area.height {
            ..WITH_PLOTS => 0,
            WITH_PLOTS..WITH_TALL_PLOTS => 4,
            _ => 7,
        };
        let detail = u16::from(area.height >= WITH_DETAIL);
        let keys = u16::from(area.height > 2);
        let at_most = |count: usize, most: u16| u16::try_from(count).unwrap_or(u16::MAX).min(most);
        let left = area.height.saturating_sub(1 + plots + detail + keys + MIN_TABLE);
        let notes = at_most(troubles(seen).len(), left.min(MAX_NOTES));
        // With a heading.
        let events = match at_most(seen.events.len(), area.height / 6) {
            1.. if area.height >= WITH_EVENTS => (area.height / 6).min(left - notes),
            _ => 0,
        };
        let heights = [1, plots, u16::MAX, detail, notes, events, keys];
        let constraint = |height| if height == u16::MAX { Constraint::Min(0) } else { Constraint::Length(height) };
        let areas = Layout::vertical(heights.map(constraint)).areas(area);
        let [title, plots, table, detail, notes, events, keys] = areas;
        Self { title, plots, table, detail, notes, events, keys }
    }
}

/// What is wrong, worst first: daemons that are gone, then what `ls` notes.
pub fn troubles(seen: &Seen) -> Vec<String> {
    let mut lines: Vec<String> = seen.trouble.clone().into_iter().collect();
    for watched in &seen.daemons {
        let name = printable(&name_of(&watched.socket));
        match &watched.gone {
            Some((at, why)) => {
                let at = time_of_day(*at);
                let pid = watched.daemon.pid;
                lines.push(format!("daemon {name} (pid {pid}) does not answer since {at}: {why}; asked every second"));
            }
            None if watched.daemon.stopping => lines.push(format!("daemon {name} is stopping")),
            None => {}
        }
    }
    let live = seen.daemons.iter().filter(|watched| watched.gone.is_none());
    lines.extend(live.flat_map(|watched| watched.daemon.services.iter().flat_map(notes)));
    lines
}

pub fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    match &view.screen.mode {
        Mode::Help => return overlays::help(frame, view),
        Mode::Logs(logs) => return overlays::logs(frame, view, logs),
        Mode::Table | Mode::Filter | Mode::Confirm(_) => {}
    }
    let troubles = troubles(view.seen);
    let areas = Areas::of(area, view.seen);
    title(frame, view, areas.title);
    if areas.plots.height > 0 {
        plots::draw(frame, view, areas.plots);
    }
    table::draw(frame, view, areas.table);
    if areas.detail.height > 0 {
        let text = view.rows.get(view.screen.at).map(table::detail).unwrap_or_default();
        put(frame, areas.detail, 0, Line::styled(text, view.theme.dim()));
    }
    let hidden = troubles.len().saturating_sub(areas.notes.height.into());
    for (at, trouble) in troubles.iter().take(areas.notes.height.into()).enumerate() {
        let more = if hidden > 0 && at + 1 == usize::from(areas.notes.height) {
            format!(" (and {hidden} more)")
        } else {
            String::new()
        };
        let width = usize::from(areas.notes.width).saturating_sub(columns_of(&more));
        let text = format!("{}{more}", cut(&printable(trouble), width));
        put(frame, areas.notes, at, Line::styled(text, view.theme.fg(Color::Yellow)));
    }
    events(frame, view, areas.events);
    keys(frame, view, areas.keys);
}

/// The latest events.
fn events(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    let width = usize::from(area.width);
    heading(frame, view, area, "events");
    let shown = usize::from(area.height.saturating_sub(1));
    let events = &view.seen.events;
    for (at, event) in events.range(events.len().saturating_sub(shown)..).enumerate() {
        let text = format!("{} {} {}", time_of_day(event.at), event.place, event.text);
        let style = if event.bad { view.theme.fg(Color::Yellow) } else { Style::new() };
        put(frame, area, 1 + at, Line::styled(cut(&printable(&text), width), style));
    }
}

/// A line with a title above a part.
fn heading(frame: &mut Frame<'_>, view: &View<'_>, area: Rect, title: &str) {
    let width = usize::from(area.width);
    let title = cut(&format!("─ {} ", printable(title)), width);
    let rest = "─".repeat(width.saturating_sub(columns_of(&title)));
    put(frame, area, 0, Line::styled(title + &rest, view.theme.dim()));
}

/// `18:03:12`
pub fn time_of_day(at: SystemTime) -> String {
    let text = time::time(at);
    text.split('.').next().unwrap_or_default().to_owned()
}

/// One line of an area.
fn put(frame: &mut Frame<'_>, area: Rect, at: usize, line: Line<'_>) {
    let Ok(at) = u16::try_from(at) else { return };
    if at < area.height {
        frame.render_widget(line, Rect { y: area.y + at, height: 1, ..area });
    }
}

/// Sums over everything, and the time.
fn title(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    let services: Vec<_> = view.rows.iter().filter(|row| matches!(row.subject, Subject::Service)).collect();
    let slots: usize = services.iter().map(|row| row.service.slots.len()).sum();
    let online: usize = services.iter().map(|row| row.service.online()).sum();
    let live = view.seen.daemons.iter().filter(|watched| watched.gone.is_none()).count();
    let rate: f64 = services.iter().map(|row| f64::from(row.point.rate)).sum();
    let open: u64 = services.iter().map(|row| row.open()).fold(0, u64::saturating_add);
    let daemons = match live {
        0 => "no daemon answers".to_owned(),
        1 => String::new(),
        count => format!("{count} daemons, "),
    };
    let text = format!(
        " {daemons}{}, {online} of {} online, {}/s, {open} open",
        several(services.len(), "service"),
        several(slots, "slot"),
        table::rate(rate as f32)
    );
    let style = Style::new().add_modifier(Modifier::BOLD);
    let text = if live == 0 { Span::styled(text, view.theme.bad()) } else { Span::raw(text) };
    put(frame, area, 0, Line::from(vec![Span::styled("roundsman", style), text]));
    let clock = Line::from(view.clock).right_aligned();
    if usize::from(area.width) > 70 {
        put(frame, area, 0, clock);
    }
}

fn several(count: usize, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

/// A question, a result, the filter, or the keys.
fn keys(frame: &mut Frame<'_>, view: &View<'_>, area: Rect) {
    let theme = view.theme;
    let screen = view.screen;
    let width = usize::from(area.width);
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let line = match (&screen.mode, &screen.status) {
        (Mode::Confirm(order), _) => {
            let hurts = order.hurts.unwrap_or_default();
            let question = format!("{}? (y/n)", printable(&order.name));
            Line::styled(format!("{question} {hurts}"), theme.fg(Color::Yellow).patch(reversed))
        }
        (Mode::Filter, _) => Line::from(vec![
            Span::styled(format!("filter: {}", printable(&screen.filter)), reversed),
            Span::raw("_  Enter: keep, Esc: none"),
        ]),
        (_, Some(status)) => {
            let style = if status.failed { theme.bad() } else { Style::new() };
            Line::styled(cut(&printable(&status.text), width), style)
        }
        _ => {
            let filter = match screen.filter.as_str() {
                "" => String::new(),
                filter => format!("filter: {} (Esc)  ", printable(filter)),
            };
            let sort = if screen.sort == Sort::Name { "sort" } else { screen.sort.title() };
            let words = format!(
                "{filter}q quit  ? help  r reload  R restart  d drain  + - scale  x stop  l logs  s {sort}  / filter"
            );
            Line::styled(cut(&words, width), theme.dim())
        }
    };
    put(frame, area, 0, line);
}
