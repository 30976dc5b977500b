//! The access log: one line for each connection, written when it is over.
//!
//! Workers record what comes and what is closed in memory files of their own (`abi/access.rs`). One thread reads them all,
//! in batches: the first record after a pause rings a bell, and while records come the thread looks ten times a second. A
//! service without an access log has no memory file, and without any such service there is no thread.

mod book;
mod line;
pub mod record;
pub mod settings;
mod thread;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::bounded;

use self::book::{Book, Subject};
use self::settings::{AccessLog, Target};
use self::thread::{Order, Thread};
use crate::handoff::access::AccessReader;
use crate::output::files::{self, Files};
use crate::output::sinks::{Outlet, To};
use crate::sys::clock::monotonic_ns;

/// The log's thread, started with the first worker that has something to log.
#[derive(Debug)]
pub struct Access {
    outlet: Outlet,
    thread: OnceLock<Thread>,
    /// Lines that are missing, by the service's number.
    lost: Mutex<HashMap<usize, Arc<AtomicU64>>>,
    /// From the program before, until it is sure that we go on.
    adopted: Mutex<Vec<Adopted>>,
}

/// A book of the program before.
#[derive(Debug)]
struct Adopted {
    number: u64,
    book: Box<Book>,
    /// Lines lost of its service that the log has said.
    said: u64,
}

/// A worker whose connections are logged.
#[derive(Debug)]
pub struct Logged<'a> {
    pub log: &'a AccessLog,
    /// For rotation and ownership of the file.
    pub files: &'a Files,
    pub service: &'a str,
    pub service_id: usize,
    pub slot: u32,
    pub generation: u64,
    pub relays: bool,
}

/// A worker's memory file; dropped when the worker is gone.
#[derive(Debug)]
pub struct WorkerLog {
    number: u64,
    file: Arc<OwnedFd>,
    bell: OwnedFd,
    thread: Thread,
}

impl Access {
    pub fn new(outlet: Outlet) -> Self {
        Self { outlet, thread: OnceLock::new(), lost: Mutex::default(), adopted: Mutex::default() }
    }

    /// A memory file for a worker.
    ///
    /// # Errors
    /// When memory or a thread cannot be had.
    pub fn open(&self, worker: &Logged<'_>) -> io::Result<WorkerLog> {
        let thread = match self.thread.get() {
            Some(thread) => thread,
            None => {
                let started = Thread::start(self.outlet.clone(), None)?;
                self.thread.get_or_init(|| started)
            }
        };
        let (reader, file) = AccessReader::create(worker.log.sample.share())?;
        let file = Arc::new(file);
        let bell = thread.bell.as_fd().try_clone_to_owned()?;
        let to = match &worker.log.to {
            Target::Stdout => To::Stdout,
            Target::File(path) => {
                let files = Arc::new(worker.files.clone());
                To::File(files::filled_in(path, worker.service, Some(worker.slot)), files)
            }
        };
        let subject = Subject {
            service: worker.service.into(),
            share: Subject::share(worker.service),
            slot: worker.slot,
            generation: worker.generation,
            format: worker.log.format,
            to,
            relays: worker.relays,
            lost: self.counter(worker.service_id),
        };
        let number = thread.next_number();
        thread.send(Order::Open(number, Box::new(Book::new(subject, reader, file.clone(), monotonic_ns()))));
        Ok(WorkerLog { number, file, bell, thread: thread.clone() })
    }

    fn counter(&self, service: usize) -> Arc<AtomicU64> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).entry(service).or_default().clone()
    }

    /// Lines of a service that are missing: the ring was full, a record was never finished, the reader of the log too slow.
    pub fn lost(&self, service: usize) -> u64 {
        self.counter(service).load(Relaxed)
    }
}

impl Drop for Access {
    /// Writes what there is, at most for a moment.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            let (done, finished) = bounded(1);
            thread.send(Order::Finish(done));
            let _ = finished.recv_timeout(Duration::from_millis(500));
        }
    }
}

impl WorkerLog {
    /// For its writers: the memory file and the doorbell.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.file.as_fd(), self.bell.as_fd()]
    }

    /// Names a listener.
    pub fn name_listener(&self, id: usize, name: String) {
        self.thread.send(Order::Listener { book: self.number, id, name });
    }

    /// Names the upstreams, in the configuration's order.
    pub fn name_upstreams(&self, names: Vec<String>) {
        self.thread.send(Order::Upstreams { book: self.number, names });
    }
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        self.thread.send(Order::Gone(self.number));
    }
}
