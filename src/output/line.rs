//! A server's line: whose it is, and how it is written.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::files::Files;
use super::time::utc;

/// `--output`: how the servers' lines are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// As they come
    Raw,
    /// With the service and the slot in front
    Prefix,
    /// One JSON object per line
    Json,
}

/// Which of a server's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    #[serde(rename = "stdout")]
    Out,
    /// Standard error.
    #[serde(rename = "stderr")]
    Err,
    /// No stream: a message of a worker in Node.
    #[serde(rename = "message")]
    Message,
    /// No stream: what the daemon logged of the service.
    #[serde(rename = "event")]
    Event,
}

/// Whose lines.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The service.
    pub service: Arc<str>,
    /// The slot; `None` for a server that all slots share.
    pub slot: Option<u32>,
    /// The server's process.
    pub pid: u32,
    /// Where they go, and with what.
    pub files: Arc<Files>,
}

/// One line for a program: what `--output json` writes and the control socket sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The service.
    pub service: String,
    /// The slot; none for a server that all slots share.
    pub slot: Option<u32>,
    /// The process.
    pub pid: u32,
    /// Which stream.
    pub stream: Stream,
    /// When it was read: RFC 3339, UTC.
    pub time: String,
    /// Without its end; what is not UTF-8 is replaced.
    pub line: String,
    /// The bytes, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
}

impl Line {
    /// Of bytes.
    pub fn new(service: &str, slot: Option<u32>, pid: u32, stream: Stream, at: SystemTime, bytes: &[u8]) -> Self {
        let line = String::from_utf8_lossy(bytes);
        let exact = matches!(line, std::borrow::Cow::Borrowed(_));
        let time = utc(at);
        let bytes = (!exact).then(|| bytes.to_vec());
        Self { service: service.to_owned(), slot, pid, stream, time, line: line.into_owned(), bytes }
    }

    /// What the server wrote.
    pub fn text(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.line.as_bytes())
    }

    /// `web/0`, or `web`.
    pub fn label(&self) -> String {
        label(&self.service, self.slot)
    }
}

fn label(service: &str, slot: Option<u32>) -> String {
    slot.map_or_else(|| service.to_owned(), |slot| format!("{service}/{slot}"))
}

/// Appends a line, with its end, in a format.
pub fn write(to: &mut Vec<u8>, format: Format, origin: &Origin, stream: Stream, at: SystemTime, line: &[u8]) {
    match format {
        Format::Json => {
            let line = Line { bytes: None, ..Line::new(&origin.service, origin.slot, origin.pid, stream, at, line) };
            // A Vec takes everything.
            let _ = serde_json::to_writer(&mut *to, &line);
        }
        Format::Prefix | Format::Raw => {
            if format == Format::Prefix {
                to.extend_from_slice(label(&origin.service, origin.slot).as_bytes());
                to.extend_from_slice(b" | ");
            }
            if origin.files.timestamps {
                to.extend_from_slice(utc(at).as_bytes());
                to.push(b' ');
            }
            to.extend_from_slice(line);
        }
    }
    to.push(b'\n');
}
