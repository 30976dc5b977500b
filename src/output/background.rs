//! The log of a daemon in the background: the file that its stdout and stderr are. It is renamed when it has grown too large, as
//! the files of `--out` are, and opened again on request.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::stat::fstat;
use nix::unistd::{dup2_stderr, dup2_stdout};
use tracing::warn;

use super::log_path::{self, Opened};
use crate::sys::reason;

/// Set once, where there is such a file.
static LOG: OnceLock<Background> = OnceLock::new();

struct Background {
    path: PathBuf,
    /// `--rotate-size`, in bytes.
    size: u64,
    /// `--rotate-keep`.
    keep: u32,
    /// Bytes in the file, as far as we wrote them.
    written: AtomicU64,
    turn: Mutex<()>,
}

/// From now on a log at this path is rotated, if stdout and stderr are that file.
pub fn watch(path: PathBuf, size: u64, keep: u32) {
    let Ok(file) = File::open(&path) else { return };
    if is_same(&file, io::stdout()) && is_same(&file, io::stderr()) {
        let written = AtomicU64::new(file.metadata().map_or(0, |meta| meta.len()));
        let _ = LOG.set(Background { path, size, keep, written, turn: Mutex::new(()) });
    }
}

/// Bytes were written to stdout or stderr.
pub(super) fn written(bytes: usize) {
    let Some(log) = LOG.get() else { return };
    if log.written.fetch_add(bytes as u64, Relaxed) + bytes as u64 >= log.size {
        log.renew();
    }
}

/// The file may have been renamed.
pub(super) fn reopen() {
    if let Some(log) = LOG.get() {
        log.renew();
    }
}

impl Background {
    fn renew(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be rotated now is tried again after as many bytes.
        let size = self.rotate().unwrap_or_else(|error| {
            warn!("cannot rotate {}: {}", self.path.display(), reason(&error));
            0
        });
        self.written.store(size, Relaxed);
    }

    /// The size of the file that is written to from now on.
    fn rotate(&self) -> io::Result<u64> {
        let mut opened = log_path::open(&self.path, None)?;
        if opened.size.unwrap_or(0) >= self.size {
            opened.rotate(self.keep)?;
            opened = log_path::open(&self.path, None)?;
        }
        let Opened { file, size, .. } = opened;
        if !is_same(&file, io::stdout()) {
            dup2_stdout(&file)?;
            dup2_stderr(&file)?;
        }
        Ok(size.unwrap_or(0))
    }
}

fn is_same(one: &File, other: impl AsFd) -> bool {
    let of = |fd: &dyn AsFd| fstat(fd.as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    of(one).is_some() && of(one) == of(&other)
}
