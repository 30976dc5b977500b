//! Passing the servers' output on to our own: a bounded queue and a thread for each of stdout and stderr.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::servers::{Origin, Stream};

/// What waits for a reader that is too slow, in bytes; beyond it the oldest is dropped.
const MOST: usize = 1 << 20;

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

impl Format {
    /// What is usual: prefixes for people, bytes as they are for programs.
    pub fn usual() -> Self {
        if io::stdout().is_terminal() { Self::Prefix } else { Self::Raw }
    }
}

#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    writing: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic of the other side leaves a queue, no more and no less.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, chunk: Vec<u8>) {
        let mut waiting = self.lock();
        waiting.bytes += chunk.len();
        waiting.chunks.push_back(chunk);
        while waiting.bytes > MOST {
            let Some(oldest) = waiting.chunks.pop_front() else { break };
            waiting.bytes -= oldest.len();
            waiting.dropped += oldest.iter().filter(|&&byte| byte == b'\n').count().max(1) as u64;
        }
        self.changed.notify_all();
    }

    fn write_on(&self, mut to: impl Write + std::os::fd::AsFd) {
        let mut waiting = self.lock();
        loop {
            let Some(chunk) = waiting.chunks.pop_front() else {
                waiting.writing = false;
                self.changed.notify_all();
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.bytes -= chunk.len();
            waiting.writing = true;
            let lost = std::mem::take(&mut waiting.dropped);
            drop(waiting);
            if lost > 0 {
                tracing::warn!(lines = lost, "output of servers dropped: its reader was too slow");
            }
            super::write_all(&mut to, &chunk);
            waiting = self.lock();
        }
    }

    fn wait_until_empty(&self, limit: Duration) {
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.chunks.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), limit, busy));
    }
}

/// The way out.
pub struct Passing {
    format: Format,
    out: Arc<Queue>,
    err: Arc<Queue>,
}

impl Passing {
    /// Starts the threads that write.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(format: Format) -> io::Result<Self> {
        let passing = Self { format, out: Arc::default(), err: Arc::default() };
        let (out, err) = (passing.out.clone(), passing.err.clone());
        thread::Builder::new().name("stdout".into()).spawn(move || out.write_on(io::stdout()))?;
        thread::Builder::new().name("stderr".into()).spawn(move || err.write_on(io::stderr()))?;
        Ok(passing)
    }

    fn queue(&self, stream: Stream) -> &Queue {
        match stream {
            Stream::Out => &self.out,
            Stream::Err => &self.err,
        }
    }

    /// Bytes as they came.
    pub fn raw(&self, stream: Stream, bytes: &[u8]) {
        if self.format == Format::Raw {
            self.queue(stream).push(bytes.to_vec());
        }
    }

    /// A whole line.
    pub fn line(&self, origin: &Origin, stream: Stream, line: &[u8]) {
        let text = match self.format {
            Format::Raw => return,
            Format::Prefix => {
                let mut text = match origin.slot {
                    Some(slot) => format!("{}/{slot} | ", origin.service),
                    None => format!("{} | ", origin.service),
                }
                .into_bytes();
                text.extend_from_slice(line);
                text
            }
            Format::Json => serde_json::to_vec(&serde_json::json!({
                "service": &*origin.service,
                "slot": origin.slot,
                "pid": origin.pid,
                "stream": if stream == Stream::Out { "stdout" } else { "stderr" },
                "line": String::from_utf8_lossy(line),
            }))
            .unwrap_or_default(),
        };
        let mut text = text;
        text.push(b'\n');
        self.queue(stream).push(text);
    }

    /// Waits a moment until all is written.
    pub fn finish(&self) {
        self.out.wait_until_empty(Duration::from_millis(200));
        self.err.wait_until_empty(Duration::from_millis(200));
    }
}
