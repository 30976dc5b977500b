//! What waits to be written: bounded for each service, so that one that floods costs the others nothing. Beyond the
//! bound its oldest is dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What may wait of one service, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// One piece: whole lines, or bytes as they came.
#[derive(Debug)]
pub struct Chunk<T> {
    /// Whose.
    pub service: Arc<str>,
    /// Where to.
    pub to: T,
    /// What.
    pub bytes: Vec<u8>,
    /// Counts its lines if they are dropped, in place of a warning.
    pub lost: Option<Arc<AtomicU64>>,
}

/// The number of lines in these bytes, at least one.
pub(super) fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count().max(1) as u64
}

#[derive(Default)]
struct Share {
    bytes: usize,
    dropped: u64,
}

struct Waiting<T> {
    chunks: VecDeque<Chunk<T>>,
    shares: HashMap<Arc<str>, Share>,
    writing: bool,
}

/// The queue of one writer thread.
pub struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let waiting = Waiting { chunks: VecDeque::new(), shares: HashMap::new(), writing: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // The queue is consistent even if the other thread panicked while holding the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece; never waits.
    pub fn push(&self, chunk: Chunk<T>) {
        let mut waiting = self.lock();
        let Waiting { chunks, shares, .. } = &mut *waiting;
        let share = shares.entry(chunk.service.clone()).or_default();
        share.bytes += chunk.bytes.len();
        let service = chunk.service.clone();
        chunks.push_back(chunk);
        while share.bytes > MAX_BYTES {
            let Some(at) = chunks.iter().position(|chunk| chunk.service == service) else { break };
            let Some(oldest) = chunks.remove(at) else { break };
            share.bytes -= oldest.bytes.len();
            let lines = lines(&oldest.bytes);
            match oldest.lost {
                Some(lost) => drop(lost.fetch_add(lines, Relaxed)),
                None => share.dropped += lines,
            }
        }
        self.changed.notify_all();
    }

    /// Writes what comes, for ever, on the calling thread. A writer that could not write all says when it wants to be
    /// called again, then without a chunk.
    pub fn write_on(&self, mut write: impl FnMut(Option<Chunk<T>>) -> Option<Duration>) {
        let mut waiting = self.lock();
        let mut due = None;
        loop {
            let Some(chunk) = waiting.chunks.pop_front() else {
                let Some(pause) = due else {
                    waiting.writing = false;
                    self.changed.notify_all();
                    waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                let none = |waiting: &mut Waiting<T>| waiting.chunks.is_empty();
                let (guard, timeout) =
                    self.changed.wait_timeout_while(waiting, pause, none).unwrap_or_else(PoisonError::into_inner);
                drop(guard);
                if timeout.timed_out() {
                    due = write(None);
                }
                waiting = self.lock();
                continue;
            };
            waiting.writing = true;
            let mut lost = 0;
            if let Some(share) = waiting.shares.get_mut(&chunk.service) {
                share.bytes -= chunk.bytes.len();
                lost = std::mem::take(&mut share.dropped);
                if share.bytes == 0 {
                    waiting.shares.remove(&chunk.service);
                }
            }
            drop(waiting);
            if lost > 0 {
                tracing::warn!(
                    service = &*chunk.service,
                    lines = lost,
                    "output of servers dropped: its reader was too slow"
                );
            }
            due = write(Some(chunk));
            waiting = self.lock();
        }
    }

    /// Waits until all is written, at most for so long; whether it is.
    pub fn wait_until_empty(&self, limit: Duration) -> bool {
        let busy = |waiting: &mut Waiting<T>| waiting.writing || !waiting.chunks.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Drops what waits whose lines are counted then.
    pub fn give_up(&self) {
        let mut waiting = self.lock();
        let Waiting { chunks, shares, .. } = &mut *waiting;
        chunks.retain(|chunk| {
            let Some(lost) = &chunk.lost else { return true };
            lost.fetch_add(lines(&chunk.bytes), Relaxed);
            if let Some(share) = shares.get_mut(&chunk.service) {
                share.bytes -= chunk.bytes.len();
            }
            false
        });
    }
}
