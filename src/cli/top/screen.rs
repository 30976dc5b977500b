//! What the screen shows at the moment besides what was seen: the selected line, order, filter, questions, results.

use std::collections::VecDeque;

use super::rows::{Key, Row, Sort};
use crate::control::Request;

/// Lines of logs that are kept.
const MAX_LOG: usize = 2000;
/// The longest filter, in characters.
pub const MAX_FILTER: usize = 64;

/// What the keys are for.
#[derive(Debug, Default)]
pub enum Mode {
    #[default]
    Table,
    Help,
    /// The filter is typed.
    Filter,
    /// Whether something shall be done.
    Confirm(Order),
    Logs(Logs),
}

/// A request, and its name: "restart web/1".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub key: Key,
    pub name: String,
    pub request: Request,
    /// What it does to clients, if that hurts.
    pub hurts: Option<&'static str>,
}

/// The lines of a service or slot.
#[derive(Debug)]
pub struct Logs {
    /// Which follower's lines are meant.
    pub number: u64,
    pub name: String,
    pub lines: VecDeque<LogLine>,
    /// How many lines are below the last one that is shown; 0 follows.
    pub back: usize,
    /// Why there are no more lines.
    pub end: Option<String>,
}

#[derive(Debug, Clone)]
pub struct LogLine {
    /// `web/1`
    pub origin: String,
    pub kind: LineKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    Out,
    Err,
    Event,
}

impl Logs {
    pub fn new(number: u64, name: String) -> Self {
        Self { number, name, lines: VecDeque::new(), back: 0, end: None }
    }

    pub fn push(&mut self, line: LogLine) {
        if self.lines.len() == MAX_LOG {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
        // What is being read stays where it is.
        if self.back > 0 {
            self.back = (self.back + 1).min(self.lines.len());
        }
    }

    /// Moves so many lines up, or down if negative.
    pub fn scroll(&mut self, lines: isize) {
        self.back = self.back.saturating_add_signed(lines).min(self.lines.len().saturating_sub(1));
    }
}

/// The last result, or how far an operation is.
#[derive(Debug, Clone)]
pub struct Status {
    pub text: String,
    pub failed: bool,
}

#[derive(Debug, Default)]
pub struct Screen {
    pub mode: Mode,
    pub sort: Sort,
    pub filter: String,
    pub selected: Option<Key>,
    /// The line of the selected one, for when that goes away.
    pub at: usize,
    /// Lines of the table above the first one on the screen.
    pub offset: usize,
    pub status: Option<Status>,
}

impl Screen {
    /// Finds the selected line again, or its neighbour, and brings it into sight.
    pub fn settle(&mut self, rows: &[Row<'_>], height: usize) {
        let found = self.selected.as_ref().and_then(|key| rows.iter().position(|row| row.is(key)));
        self.at = found.unwrap_or(self.at).min(rows.len().saturating_sub(1));
        self.selected = rows.get(self.at).map(Row::key);
        self.offset = self.offset.min(rows.len().saturating_sub(height));
        self.offset = self.offset.clamp((self.at + 1).saturating_sub(height.max(1)), self.at);
    }

    /// Selects a line so many below, or above if negative.
    pub fn step(&mut self, rows: &[Row<'_>], lines: isize) {
        self.at = self.at.saturating_add_signed(lines).min(rows.len().saturating_sub(1));
        self.selected = rows.get(self.at).map(Row::key);
    }

    pub fn say(&mut self, text: impl Into<String>, failed: bool) {
        self.status = Some(Status { text: text.into(), failed });
    }
}
