//! What a program says when it is tried.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

/// So much of the end is kept.
const KEPT: usize = 16 * 1024;
/// So much is read at a time: a process that the program left may go on writing.
const AT_A_TIME: u64 = 1024 * 1024;
/// Of its last line, for people.
const SHOWN: usize = 500;

/// A pipe that is read while the program runs, since a full one would hold it up.
#[derive(Debug)]
pub struct Said {
    /// Non-blocking.
    pipe: File,
    end: Vec<u8>,
}

impl From<OwnedFd> for Said {
    fn from(pipe: OwnedFd) -> Self {
        Self { pipe: pipe.into(), end: Vec::new() }
    }
}

impl Said {
    /// Reads what there is.
    pub fn read(&mut self) {
        // It ends by an error when there is no more; what came before is there.
        let _ = (&self.pipe).take(AT_A_TIME).read_to_end(&mut self.end);
        self.end.drain(..self.end.len().saturating_sub(KEPT));
    }

    /// Of what has come until now; a long one without its end.
    pub fn last_line(&mut self) -> String {
        self.read();
        let text = String::from_utf8_lossy(&self.end);
        text.lines().last().unwrap_or_default().chars().take(SHOWN).collect()
    }
}
