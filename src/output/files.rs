//! Log files for what servers write: appended to, renamed when they grow too large, opened anew on request. One thread
//! writes them all; a disk that hangs holds up nobody else.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::{Chunk, Queue};

/// An error of one file is told so often, and a file that cannot be opened is tried again so often.
const AGAIN: Duration = Duration::from_secs(10);

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
}

impl Files {
    /// The file of a stream and a slot.
    pub fn of(&self, stream: super::line::Stream, service: &str, slot: Option<u32>) -> Option<PathBuf> {
        let path = match stream {
            super::line::Stream::Out => self.out.as_ref(),
            super::line::Stream::Err => self.error.as_ref(),
            super::line::Stream::Message => None,
        };
        let slot = slot.unwrap_or(0).to_string();
        path.map(|path| path.to_string_lossy().replace("{slot}", &slot).replace("{service}", service).into())
    }

    /// Whether the files of a service can be written to: makes their directories and opens them once.
    ///
    /// # Errors
    /// Which cannot, and why.
    pub fn try_open(&self, service: &str) -> Result<(), String> {
        for stream in [super::line::Stream::Out, super::line::Stream::Err] {
            if let Some(path) = self.of(stream, service, Some(0)) {
                open(&path).map_err(|error| format!("cannot write to {}: {error}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let append = || OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    match append() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
            append()
        }
        other => other,
    }
}

/// A piece for a file, or word that all are to be opened anew.
#[derive(Debug)]
pub enum To {
    /// This file, with these bounds.
    File {
        /// Its name.
        path: PathBuf,
        /// Its service's settings.
        files: Arc<Files>,
    },
    /// Open all anew.
    Reopen,
}

struct LogFile {
    file: Option<File>,
    size: u64,
    refused: Option<Instant>,
}

/// Writes what comes to the queue, for ever.
pub fn write_on(queue: &Queue<To>) {
    let mut open: HashMap<PathBuf, LogFile> = HashMap::new();
    queue.write_on(|chunk: Chunk<To>| match chunk.to {
        To::Reopen => open.iter_mut().for_each(|(path, log)| {
            log.file = None;
            log.write(path, &[], u64::MAX, 0);
        }),
        To::File { path, files } => {
            let log = open.entry(path.clone()).or_insert(LogFile { file: None, size: 0, refused: None });
            log.write(&path, &chunk.bytes, files.rotate_size, files.rotate_keep);
        }
    });
}

impl LogFile {
    fn write(&mut self, path: &Path, bytes: &[u8], limit: u64, keep: u32) {
        if self.refused.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        match self.try_write(path, bytes, limit, keep) {
            Ok(()) => self.refused = None,
            Err(error) => {
                tracing::warn!("cannot write to {}: {error}; lines are lost until it works again", path.display());
                self.refused = Some(Instant::now());
                self.file = None;
            }
        }
    }

    fn try_write(&mut self, path: &Path, bytes: &[u8], limit: u64, keep: u32) -> io::Result<()> {
        if self.file.is_none() {
            let file = open(path)?;
            let meta = file.metadata()?;
            // What is no file (/dev/stderr, a pipe) has no size and is never renamed.
            self.size = if meta.is_file() { meta.len() } else { 0 };
            self.file = Some(file);
        }
        let grown = self.size + bytes.len() as u64;
        if grown > limit && self.size > 0 && path.is_file() {
            self.file = None;
            rotate(path, keep)?;
            self.file = Some(open(path)?);
            self.size = 0;
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.size += bytes.len() as u64;
        }
        Ok(())
    }
}

/// `log` becomes `log.1`, `log.1` becomes `log.2`, the last one goes.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    if keep == 0 {
        return std::fs::remove_file(path);
    }
    for n in (1..keep).rev().filter(|&n| numbered(n).exists()) {
        std::fs::rename(numbered(n), numbered(n + 1))?;
    }
    std::fs::rename(path, numbered(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_renamed_before_it_grows_too_large_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it/log");
        let mut log = LogFile { file: None, size: 0, refused: None };
        for n in 0..7 {
            log.write(&path, format!("line {n}\n").as_bytes(), 14, 2);
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join("made/for/it").join(name)).unwrap();
        assert_eq!(
            (read("log"), read("log.1"), read("log.2")),
            ("line 6\n".to_owned(), "line 4\nline 5\n".to_owned(), "line 2\nline 3\n".to_owned())
        );
        assert!(!dir.path().join("made/for/it/log.3").exists());
        log.write(&path, b"line 7\nline 8\n", 14, 0);
        assert_eq!(read("log"), "line 7\nline 8\n");
    }
}
