//! Our own log: formatted by tracing where things happen, written to stderr by one thread.
//!
//! A reader that does not read blocks that thread and nothing else: lines beyond a bounded channel are dropped,
//! counted, and the count is written once the reader is back.

pub mod background;
mod complaints;
mod events;
pub mod files;
pub mod follow;
pub mod line;
mod log_path;
mod queue;
pub mod recent;
mod repeats;
mod ring;
pub mod servers;
pub mod sinks;
pub mod time;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use events::Events;
use servers::Servers;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// Lines that wait for the reader; more are dropped.
const LINES: usize = 1024;

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One readable line per event
    Text,
    /// One JSON object per line
    Json,
}

enum Item {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

/// The log's sending end: flush it before the process ends.
#[derive(Debug, Clone)]
pub struct Log {
    lines: Sender<Item>,
    dropped: Arc<AtomicU64>,
    events: Events,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl Log {
    /// From now on what is logged of a service can be seen by `roundsman logs`, too.
    pub fn keep_in(&self, servers: &Servers) {
        self.events.keep_in(servers);
    }

    /// The latest events of services.
    pub fn recent(&self) -> recent::Recent {
        self.events.recent()
    }

    /// Waits until what was logged is written, at most a moment: a blocked reader does not hold up the end.
    pub fn flush(&self) {
        let (done, flushed) = bounded(1);
        if self.lines.try_send(Item::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(Duration::from_millis(500));
        }
    }
}

/// Starts the output thread and makes it the destination of all tracing events.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(format: LogFormat, level: &str) -> io::Result<Log> {
    let (lines, receiver) = bounded(LINES);
    let dropped = Arc::new(AtomicU64::new(0));
    let log = Log { lines, dropped: dropped.clone(), events: Events::default() };
    thread::Builder::new().name("output".into()).spawn(move || write_lines(&receiver, &dropped, format))?;
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = fmt::layer().with_writer(log.clone()).with_target(false).with_ansi(colour);
    let layer = match format {
        LogFormat::Text if terminal => layer.with_timer(time::Short).boxed(),
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // What `logs` shows does not depend on --log-level.
    let events = log.events.clone().with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(layer.with_filter(filter)).with(events).init();
    Ok(log)
}

fn write_lines(lines: &Receiver<Item>, dropped: &AtomicU64, format: LogFormat) {
    let mut stderr = io::stderr();
    for item in lines {
        match item {
            Item::Line(line) => write_all(&mut stderr, &line),
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        // Word of what is missing comes when there is room again, not into the same jam.
        if lines.is_empty() {
            let lost = dropped.swap(0, Relaxed);
            if lost > 0 {
                let line = match format {
                    LogFormat::Text => format!("WARN {lost} log lines dropped: the reader of stderr was too slow\n"),
                    LogFormat::Json => {
                        format!("{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"dropped\":{lost}}}\n")
                    }
                };
                write_all(&mut stderr, line.as_bytes());
            }
        }
    }
}

/// Writes to a stdout or stderr that may be non-blocking (inherited so) or gone.
fn write_all(stderr: &mut (impl Write + std::os::fd::AsFd), mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stderr.write(bytes) {
            Ok(0) => return,
            Ok(n) => {
                bytes = &bytes[n..];
                background::written(n);
                // stdout keeps the last part of a line for itself.
                let _ = stderr.flush();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [nix::poll::PollFd::new(stderr.as_fd(), nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE);
            }
            // Nobody reads: the log ends, the daemon does not.
            Err(_) => return,
        }
    }
}

/// Collects one event's text and sends it when the event is complete.
#[derive(Debug)]
pub struct LineWriter<'a> {
    log: &'a Log,
    line: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Err(TrySendError::Full(_)) = self.log.lines.try_send(Item::Line(line)) {
            self.log.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { log: self, line: Vec::new() }
    }
}
