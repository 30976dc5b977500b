//! Log files for what servers write: appended to, renamed when they grow too large, opened anew on request. One thread
//! writes them all; a disk that hangs holds up nobody else.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::log_path::{self, Opened};
use super::queue::{Chunk, Queue, lines};
use crate::sys::process::Credentials;
use crate::sys::reason;

/// An error of one file is logged this often, and a file that cannot be opened or rotated is tried again this often.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// A full FIFO is tried again this often.
const FULL: Duration = Duration::from_millis(50);
/// Bytes that wait for the reader of a FIFO; further lines are dropped.
const MAX_WAITING: usize = 1 << 20;

/// Where a service's lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `--out`.
    pub out: Option<PathBuf>,
    /// `--error`.
    pub error: Option<PathBuf>,
    /// `--rotate-size`, in bytes.
    pub rotate_size: u64,
    /// `--rotate-keep`.
    pub rotate_keep: u32,
    /// `--timestamps`.
    pub timestamps: bool,
    /// `--user`: who else may have put things where the files are.
    pub user: Option<Credentials>,
}

impl Files {
    /// The file of a stream and a slot.
    pub fn of(&self, stream: super::line::Stream, service: &str, slot: Option<u32>) -> Option<PathBuf> {
        let path = match stream {
            super::line::Stream::Out => self.out.as_ref(),
            super::line::Stream::Err => self.error.as_ref(),
            super::line::Stream::Message | super::line::Stream::Event => None,
        };
        path.map(|path| filled_in(path, service, slot))
    }

    /// Whether the files of a service can be written to: makes their directories and opens them once.
    ///
    /// # Errors
    /// Which cannot, and why.
    pub fn try_open(&self, service: &str) -> Result<(), String> {
        for stream in [super::line::Stream::Out, super::line::Stream::Err] {
            if let Some(path) = self.of(stream, service, Some(0)) {
                self.try_path(&path)?;
            }
        }
        Ok(())
    }

    /// The same for one file.
    ///
    /// # Errors
    /// Why it cannot be written to.
    pub fn try_path(&self, path: &Path) -> Result<(), String> {
        let opened = log_path::open(path, self.user.as_ref());
        opened.map(drop).map_err(|error| format!("cannot write to {}: {}", path.display(), reason(&error)))
    }
}

/// A path with `{slot}` and `{service}` filled in.
pub fn filled_in(path: &Path, service: &str, slot: Option<u32>) -> PathBuf {
    let slot = slot.unwrap_or(0).to_string();
    path.to_string_lossy().replace("{slot}", &slot).replace("{service}", service).into()
}

/// A piece for a file, or word that all are to be opened anew.
#[derive(Debug)]
pub enum LogTarget {
    /// This file, with these bounds.
    File {
        /// Its name.
        path: PathBuf,
        /// Its service's settings.
        files: Arc<Files>,
    },
    /// Open all anew.
    Reopen,
    /// What a FIFO has not taken is lost, where somebody counts that.
    GiveUp,
}

/// Writes what comes to the queue, for ever.
pub fn write_on(queue: &Queue<LogTarget>) {
    let mut logs: HashMap<PathBuf, LogFile> = HashMap::new();
    queue.write_on(|chunk: Option<Chunk<LogTarget>>| {
        match chunk {
            Some(Chunk { to: LogTarget::Reopen, .. }) => logs.iter_mut().for_each(|(path, log)| log.reopen(path)),
            Some(Chunk { to: LogTarget::GiveUp, .. }) => {
                for log in logs.values_mut().filter(|log| log.lost.is_some()) {
                    log.count_lost(&log.waiting);
                    log.waiting.clear();
                }
            }
            Some(Chunk { to: LogTarget::File { path, files }, bytes, lost, .. }) => {
                let log = logs.entry(path.clone()).or_insert_with(|| LogFile::new(&files));
                (log.files, log.lost) = (files, lost);
                log.write(&path, &bytes);
            }
            None => {}
        }
        let full = logs.iter_mut().filter(|(_, log)| !log.waiting.is_empty());
        full.fold(None, |due, (path, log)| if log.is_flushed(path) { due } else { Some(FULL) })
    });
}

struct LogFile {
    open: Option<Opened>,
    /// As it is on the disk.
    size: u64,
    /// What a FIFO or a pipe did not take yet, from the start of a line or from where the last write ended.
    waiting: Vec<u8>,
    /// Lines that were too many for it.
    dropped: u64,
    /// Counts these instead, where somebody wants to know.
    lost: Option<Arc<AtomicU64>>,
    /// When something last went wrong.
    failed: Option<Instant>,
    files: Arc<Files>,
}

impl LogFile {
    fn new(files: &Arc<Files>) -> Self {
        Self { open: None, size: 0, waiting: Vec::new(), dropped: 0, lost: None, failed: None, files: files.clone() }
    }

    fn may_try(&self) -> bool {
        self.failed.is_none_or(|at| at.elapsed() >= RETRY_AFTER)
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) {
        if self.open.is_none() {
            if !self.may_try() {
                return self.count_lost(bytes);
            }
            self.reopen(path);
        }
        // Twice, when somebody has put another large file there.
        for _ in 0..2 {
            if self.fits(bytes.len()) || !self.may_try() {
                break;
            }
            if let Err(error) = self.rotate(path) {
                tracing::warn!("cannot rotate {}: {}; it grows until that works again", path.display(), reason(&error));
                self.failed = Some(Instant::now());
            }
        }
        if self.open.is_none() {
            return self.count_lost(bytes);
        }
        if self.waiting.len() + bytes.len() > MAX_WAITING && !self.waiting.is_empty() {
            return match self.lost {
                Some(_) => self.count_lost(bytes),
                None => self.dropped += lines(bytes),
            };
        }
        self.waiting.extend_from_slice(bytes);
        self.is_flushed(path);
    }

    fn count_lost(&self, bytes: &[u8]) {
        if let Some(lost) = self.lost.as_ref().filter(|_| !bytes.is_empty()) {
            lost.fetch_add(lines(bytes), Relaxed);
        }
    }

    /// Opens the file, or opens it again. One that is open stays so until there is another.
    fn reopen(&mut self, path: &Path) {
        match log_path::open(path, self.files.user.as_ref()) {
            Ok(opened) => self.take(opened),
            Err(error) if self.open.is_some() => {
                tracing::warn!(
                    "cannot open {} again: {}; the file that is open stays in use",
                    path.display(),
                    reason(&error)
                );
            }
            Err(error) => self.lost(path, &error),
        }
    }

    fn take(&mut self, opened: Opened) {
        // Only a regular file has a size, and is renamed: not /dev/stderr, not a FIFO.
        self.size = opened.size.unwrap_or(0);
        (self.open, self.failed) = (Some(opened), None);
    }

    fn lost(&mut self, path: &Path, error: &io::Error) {
        tracing::warn!("cannot write to {}: {}; lines are lost until it works again", path.display(), reason(error));
        (self.open, self.failed) = (None, Some(Instant::now()));
        self.count_lost(&self.waiting);
        self.waiting.clear();
    }

    fn fits(&self, more: usize) -> bool {
        let is_regular = self.open.as_ref().is_some_and(|opened| opened.size.is_some());
        !is_regular || self.size == 0 || self.size + more as u64 <= self.files.rotate_size
    }

    fn rotate(&mut self, path: &Path) -> io::Result<()> {
        if let Some(opened) = self.open.as_ref().filter(|opened| opened.is_in_place()) {
            opened.rotate(self.files.rotate_keep)?;
        }
        log_path::open(path, self.files.user.as_ref()).map(|opened| self.take(opened))
    }

    /// Writes what waits; whether nothing is left.
    fn is_flushed(&mut self, path: &Path) -> bool {
        while let Some(opened) = self.open.as_mut().filter(|_| !self.waiting.is_empty()) {
            match opened.file.write(&self.waiting) {
                Ok(0) => self.lost(path, &io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.size += written as u64;
                    self.waiting.drain(..written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.lost(path, &error),
            }
        }
        if self.dropped > 0 {
            let lines = std::mem::take(&mut self.dropped);
            tracing::warn!(lines, "output of servers dropped: the reader of {} was too slow", path.display());
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_renamed_before_it_grows_too_large_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it/log");
        let files = |rotate_keep| {
            let (out, error) = (None, None);
            Arc::new(Files { out, error, rotate_size: 14, rotate_keep, timestamps: false, user: None })
        };
        let mut log = LogFile::new(&files(2));
        for n in 0..7 {
            log.write(&path, format!("line {n}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join("made/for/it").join(name)).unwrap();
        assert_eq!(
            (read("log"), read("log.1"), read("log.2")),
            ("line 6\n".to_owned(), "line 4\nline 5\n".to_owned(), "line 2\nline 3\n".to_owned())
        );
        assert!(!dir.path().join("made/for/it/log.3").exists());
        log.files = files(0);
        log.write(&path, b"line 7\nline 8\n");
        assert_eq!(read("log"), "line 7\nline 8\n");
    }
}
