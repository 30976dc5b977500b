//! The rescue thread: takes hand-offs back from the queues of workers that are still alive.
//!
//! It is a thread of its own because a receive on a live worker's queue was seen to block for seconds while
//! that worker's own receive was stuck in a page fault; the accept thread must not wait for that.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::QueueTx;

/// One queue to empty.
#[derive(Debug)]
pub struct Job<K> {
    /// Whom the result is for.
    pub key: K,
    /// The queue.
    pub queue: Arc<QueueTx>,
    /// Whether the worker shall stay marked by an empty message (it stalls), or not (it drains).
    pub mark: Mark,
}

/// What stays in the queue after a rescue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// One empty message: pending stays at 1 until the worker wakes up.
    Empty,
    /// Nothing.
    None,
}

/// Starts the thread; `deliver` is called on it with what each job brought. It ends when the sender is dropped.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn<K: Send + 'static>(deliver: impl Fn(K, Vec<OwnedFd>) + Send + 'static) -> std::io::Result<Sender<Job<K>>> {
    let (tx, rx): (Sender<Job<K>>, Receiver<Job<K>>) = unbounded();
    thread::Builder::new().name("rescue".into()).spawn(move || {
        for job in rx {
            let sockets = job.queue.take_back();
            if job.mark == Mark::Empty {
                // A full queue needs no mark: it is not empty.
                let _ = job.queue.send_empty();
            }
            // The queue goes before the word of it: a drained worker sees its end of file.
            drop(job.queue);
            deliver(job.key, sockets);
        }
    })?;
    Ok(tx)
}
