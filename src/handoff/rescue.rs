//! The rescue thread: takes hand-offs back from the queues of workers that are still alive.
//!
//! It is a thread of its own because a receive on a live worker's queue was seen to block for seconds while that worker's
//! own receive was stuck in a page fault.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{QueueTx, TakenBack};

/// One queue to empty.
#[derive(Debug)]
pub struct Job<K> {
    /// Returned with the result.
    pub key: K,
    pub queue: Arc<QueueTx>,
    pub mark: Mark,
}

/// Whether a rescued queue keeps an empty message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The worker is stalled: pending stays at 1 until it receives again.
    Empty,
    /// The worker leaves.
    None,
}

/// Starts the thread; `deliver` is called on it with the sockets of each job. It ends when the sender is dropped.
pub fn spawn<K: Send + 'static>(
    deliver: impl Fn(K, Vec<TakenBack>) + Send + 'static,
) -> std::io::Result<Sender<Job<K>>> {
    let (tx, rx): (Sender<Job<K>>, Receiver<Job<K>>) = unbounded();
    thread::Builder::new().name("rescue".into()).spawn(move || {
        for job in rx {
            let sockets = job.queue.take_back();
            if job.mark == Mark::Empty {
                // This fails when a server has filled its queue again, which marks it as well.
                let _ = job.queue.send_empty();
            }
            // Before the result: a drained worker must see the end of its queue by then.
            drop(job.queue);
            deliver(job.key, sockets);
        }
    })?;
    Ok(tx)
}
