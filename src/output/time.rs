//! Times as people read them on a terminal: local, to the millisecond.

use std::fmt;
use std::time::SystemTime;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::sys::clock::local;

/// RFC 3339, UTC: for programs, files and the log that is not on a terminal.
pub fn utc(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// `2026-11-21 18:03:12.123`, or UTC where the local time is not known.
pub fn date_and_time(at: SystemTime) -> String {
    local(at).map_or_else(|| utc(at), |t| format!("{:04}-{:02}-{:02} {}", t.year, t.month, t.day, time(at)))
}

/// `18:03:12.123`.
pub fn time(at: SystemTime) -> String {
    local(at).map_or_else(|| utc(at), |t| format!("{:02}:{:02}:{:02}.{:03}", t.hour, t.minute, t.second, t.ms))
}

/// The log's time on a terminal.
#[derive(Debug)]
pub struct Short;

impl FormatTime for Short {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        to.write_str(&time(SystemTime::now()))
    }
}
