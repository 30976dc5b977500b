//! Sinks the servers' output on: to our own stdout and stderr, or to files. A bounded queue and a thread for each.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::files::{self, Files, LogTarget};
pub use super::line::Format;
use super::line::{self, Origin, Stream};
use super::queue::{Chunk, Queue};
use super::repeats::{PAUSE, Repeats};

/// What is usual: prefixes for people, bytes as they are for programs.
fn usual() -> Format {
    if io::stdout().is_terminal() { Format::Prefix } else { Format::Raw }
}

fn write(to: &mut (impl io::Write + std::os::fd::AsFd), chunk: Option<Chunk<()>>) -> Option<Duration> {
    chunk.iter().for_each(|chunk| super::write_all(to, &chunk.bytes));
    None
}

/// Where lines go that are not the servers'.
#[derive(Debug, Clone)]
pub enum To {
    Stdout,
    /// This file, with its service's settings.
    File(PathBuf, Arc<Files>),
}

/// The way out for lines that are not the servers'.
#[derive(Clone)]
pub struct Outlet {
    out: Arc<Queue<()>>,
    files: Arc<Queue<LogTarget>>,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outlet")
    }
}

impl Outlet {
    /// Writes whole lines; never waits. `lost` counts those that are dropped because nobody takes them. `whose` has a share
    /// of what may wait, apart from the servers'.
    pub fn write(&self, whose: &Arc<str>, to: &To, bytes: Vec<u8>, lost: &Arc<AtomicU64>) {
        let (service, lost) = (whose.clone(), Some(lost.clone()));
        match to {
            To::Stdout => self.out.push(Chunk { service, to: (), bytes, lost }),
            To::File(path, files) => {
                let to = LogTarget::File { path: path.clone(), files: files.clone() };
                self.files.push(Chunk { service, to, bytes, lost });
            }
        }
    }
}

/// The way out.
pub struct Sinks {
    /// To our own streams.
    ours: Format,
    /// To files.
    files: Format,
    out: Arc<Queue<()>>,
    err: Arc<Queue<()>>,
    to_files: Arc<Queue<LogTarget>>,
    /// On a terminal.
    repeats: Option<Repeats>,
}

impl Sinks {
    /// Starts the threads that write.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(format: Option<Format>) -> io::Result<Self> {
        let ours = format.unwrap_or_else(usual);
        let folds = ours == Format::Prefix && io::stderr().is_terminal();
        let sinks = Self {
            ours,
            files: format.unwrap_or(Format::Raw),
            out: Arc::default(),
            err: Arc::default(),
            to_files: Arc::default(),
            repeats: folds.then(Repeats::default),
        };
        let (out, err, to_files) = (sinks.out.clone(), sinks.err.clone(), sinks.to_files.clone());
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.into()).spawn(run);
        start("stdout", Box::new(move || out.write_on(|chunk| write(&mut io::stdout(), chunk))))?;
        start("stderr", Box::new(move || err.write_on(|chunk| write(&mut io::stderr(), chunk))))?;
        start("files", Box::new(move || files::write_on(&to_files)))?;
        Ok(sinks)
    }

    pub fn outlet(&self) -> Outlet {
        Outlet { out: self.out.clone(), files: self.to_files.clone() }
    }

    /// Bytes as they came; whether that is all that is to be done with them.
    pub fn raw(&self, origin: &Origin, stream: Stream, bytes: &[u8]) -> bool {
        let file = match stream {
            Stream::Out => &origin.files.out,
            Stream::Err | Stream::Message | Stream::Event => &origin.files.error,
        };
        let raw = self.ours == Format::Raw && !origin.files.timestamps && file.is_none();
        if raw && !bytes.is_empty() {
            self.push(origin, stream, bytes.to_vec());
        }
        raw
    }

    /// Whole lines, each without its end.
    pub fn lines<'a>(
        &mut self,
        origin: &Origin,
        stream: Stream,
        at: SystemTime,
        lines: impl Iterator<Item = &'a [u8]>,
    ) {
        match &mut self.repeats {
            Some(repeats) if stream == Stream::Err && origin.files.error.is_none() => {
                let now = Instant::now();
                let shown: Vec<_> = lines.flat_map(|line| repeats.line(origin, line, now)).collect();
                self.write(origin, stream, at, shown.iter().map(Vec::as_slice));
            }
            _ => self.write(origin, stream, at, lines),
        }
    }

    /// A server's stream has ended.
    pub fn end(&mut self, origin: &Origin, stream: Stream) {
        let rest = self.repeats.as_mut().filter(|_| stream == Stream::Err).and_then(|repeats| repeats.end(origin.pid));
        if let Some((origin, lines)) = rest {
            self.write(&origin, stream, SystemTime::now(), lines.iter().map(Vec::as_slice));
        }
    }

    /// When [`Sinks::overdue`] has something to write.
    pub fn due(&self) -> Option<Instant> {
        self.repeats.as_ref()?.due()
    }

    pub fn overdue(&mut self, now: Instant) {
        for (origin, lines) in self.repeats.as_mut().map(|repeats| repeats.overdue(now)).unwrap_or_default() {
            self.write(&origin, Stream::Err, SystemTime::now(), lines.iter().map(Vec::as_slice));
        }
    }

    /// A service is no more.
    pub fn forget(&mut self, service: &str) {
        if let Some(repeats) = &mut self.repeats {
            repeats.forget(service);
        }
    }

    fn write<'a>(&self, origin: &Origin, stream: Stream, at: SystemTime, lines: impl Iterator<Item = &'a [u8]>) {
        let file = origin.files.of(stream, &origin.service, origin.slot);
        let format = if file.is_some() { self.files } else { self.ours };
        let mut bytes = Vec::new();
        lines.for_each(|line| line::write(&mut bytes, format, origin, stream, at, line));
        match file {
            _ if bytes.is_empty() => {}
            Some(path) => {
                let to = LogTarget::File { path, files: origin.files.clone() };
                self.to_files.push(Chunk { service: origin.service.clone(), to, bytes, lost: None });
            }
            None => self.push(origin, stream, bytes),
        }
    }

    fn push(&self, origin: &Origin, stream: Stream, bytes: Vec<u8>) {
        let queue = match stream {
            Stream::Out => &self.out,
            Stream::Err | Stream::Message | Stream::Event => &self.err,
        };
        queue.push(Chunk { service: origin.service.clone(), to: (), bytes, lost: None });
    }

    /// Opens all files anew.
    pub fn reopen(&self) {
        super::background::reopen();
        self.to_files.push(Chunk { service: "".into(), to: LogTarget::Reopen, bytes: Vec::new(), lost: None });
    }

    /// The same before another program takes our place: what nobody takes is lost and counted, where somebody wants to know.
    pub fn finish_or_give_up(&mut self) {
        self.finish();
        if !self.out.wait_until_empty(Duration::ZERO) {
            self.out.give_up();
        }
        if !self.to_files.wait_until_empty(Duration::ZERO) {
            self.to_files.push(Chunk { service: "".into(), to: LogTarget::GiveUp, bytes: Vec::new(), lost: None });
            self.to_files.wait_until_empty(Duration::from_secs(1));
        }
    }

    /// Waits a moment until all is written.
    pub fn finish(&mut self) {
        self.overdue(Instant::now() + PAUSE);
        self.out.wait_until_empty(Duration::from_millis(200));
        self.err.wait_until_empty(Duration::from_millis(200));
        self.to_files.wait_until_empty(Duration::from_millis(200));
    }
}
