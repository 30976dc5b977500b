//! Help and logs, in place of the table.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::{View, put};
use crate::cli::table::{columns_of, cut, printable};
use crate::cli::top::keys::KEYS;
use crate::cli::top::screen::{LineKind, Logs};

/// The columns of the table that are not plain words.
pub const COLUMNS: [(&str, &str); 6] = [
    ("STATE", "of a service: slots online / slots"),
    ("OPEN PEND", "connections open; handed over and not yet received"),
    ("WAIT", "clients that wait for a worker or an upstream"),
    ("P50 P99", "half, 99 of 100 hand-offs waited less than this"),
    ("RST", "restarts after crashes; failed attempts of an upstream"),
    ("GEN UP", "workers so far; time since it came online"),
];

pub fn help(frame: &mut Frame<'_>, view: &View<'_>) {
    let area = frame.area();
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let entry = |(key, what): &(&'static str, &'static str)| {
        let padding = " ".repeat(12_usize.saturating_sub(columns_of(key)));
        Line::from(vec![Span::raw("  "), Span::styled(*key, bold), Span::raw(padding), Span::raw(*what)])
    };
    let keys: Vec<_> = KEYS.iter().map(entry).collect();
    let columns: Vec<_> = COLUMNS.iter().map(entry).collect();
    let last = usize::from(area.height.saturating_sub(1));
    put(frame, area, last, Line::styled("any key: back", view.theme.dim()));
    let area = Rect { height: area.height.saturating_sub(1), ..area };
    let lines = std::iter::once(Line::styled("roundsman top", bold)).chain(keys).chain(columns);
    lines.enumerate().for_each(|(at, line)| put(frame, area, at, line));
}

pub fn logs(frame: &mut Frame<'_>, view: &View<'_>, logs: &Logs) {
    let area = frame.area();
    let width = usize::from(area.width);
    let how = match (&logs.end, logs.back) {
        (Some(why), _) => format!("ended: {why}"),
        (None, 0) => "following".to_owned(),
        (None, back) => format!("{back} lines further down; End follows"),
    };
    let title = format!("logs of {} ({how})", printable(&logs.name));
    put(frame, area, 0, Line::styled(cut(&title, width), Style::new().add_modifier(Modifier::BOLD)));
    let height = usize::from(area.height.saturating_sub(2));
    let end = logs.lines.len().saturating_sub(logs.back);
    let begin = end.saturating_sub(height);
    for (at, line) in logs.lines.range(begin..end).enumerate() {
        let (mark, style) = match line.kind {
            LineKind::Out => ('|', Style::new()),
            LineKind::Err => ('!', view.theme.fg(Color::Red)),
            LineKind::Event => ('*', view.theme.fg(Color::Cyan)),
        };
        let before = format!("{} {mark} ", printable(&line.origin));
        let text = cut(&printable(&line.text), width.saturating_sub(columns_of(&before)));
        let body = Rect { y: area.y + 1, height: area.height.saturating_sub(2), ..area };
        put(frame, body, at, Line::from(vec![Span::styled(before, style), Span::raw(text)]));
    }
    if area.height > 1 {
        let keys = "q back  ↑ ↓ PgUp PgDn scroll  End follow";
        put(frame, area, usize::from(area.height - 1), Line::styled(cut(keys, width), view.theme.dim()));
    }
}
