//! The access log in a daemon's record: how far each worker's records were read, and which connections are open.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};

pub use super::book::record::BookRecord;
use super::thread::{Order, Thread};
use super::{Access, Adopted, Book, WorkerLog};
use crate::output::files::Files;
use crate::record::{Fd, Found, Kept};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct AccessRecord {
    bell: Option<Fd>,
    books: Vec<BookRecord>,
    /// Lines that are missing, of each service.
    lost: Vec<u64>,
}

impl Access {
    /// Makes lines of what is over, tells what is open, and stands still until told to go on; `None`: it is too busy.
    pub fn stand_still(&self, go_on: Receiver<()>, limit: Duration) -> Option<Vec<BookRecord>> {
        let Some(thread) = self.thread.get() else { return Some(Vec::new()) };
        let (told, telling) = bounded(1);
        thread.send(Order::StandStill(told, go_on));
        telling.recv_timeout(limit).ok()
    }

    /// `services`: their numbers.
    pub fn record(
        &self,
        books: Vec<BookRecord>,
        services: impl Iterator<Item = usize>,
        kept: &mut Kept,
    ) -> AccessRecord {
        kept.add(books.iter().map(|book| book.file));
        let bell = self.thread.get().filter(|_| !books.is_empty()).map(|thread| kept.keep(&*thread.bell));
        AccessRecord { bell, books, lost: services.map(|id| self.lost(id)).collect() }
    }

    /// Takes over what the program before had; nothing is read before [`Access::go_on`]. `services`: their numbers, names and files.
    ///
    /// # Errors
    /// When a descriptor is not there, and when a thread cannot be had.
    pub fn adopt<'a>(
        &self,
        AccessRecord { bell, books, lost }: AccessRecord,
        services: impl Iterator<Item = (usize, &'a str, &'a Files)>,
        found: &mut Found,
    ) -> io::Result<()> {
        let services: Vec<_> = services.map(|(id, name, files)| (id, name, Arc::new(files.clone()))).collect();
        for ((id, ..), lost) in services.iter().zip(lost) {
            self.counter(*id).store(lost, Relaxed);
        }
        let Some(bell) = bell else { return Ok(()) };
        let thread = Thread::start(self.outlet.clone(), Some(found.take(bell)?))?;
        let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        for record in books {
            let number = record.number;
            thread.next_after(number);
            let Some((id, _, files)) = services.iter().find(|(_, name, _)| *name == record.service) else {
                // It was removed, and a process without a worker had these.
                tracing::warn!(
                    service = record.service,
                    "access log: connections of a service that is gone are forgotten"
                );
                continue;
            };
            let (book, said) = Book::adopt(record, files.clone(), self.counter(*id), found)?;
            adopted.push(Adopted { number, book: Box::new(book), said });
        }
        drop(adopted);
        let _ = self.thread.set(thread);
        Ok(())
    }

    /// A worker's memory file that was taken over.
    ///
    /// # Errors
    /// When it was not.
    pub fn worker_log(&self, number: u64) -> io::Result<WorkerLog> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let thread = self.thread.get().ok_or_else(missing)?;
        let adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        let adopted = adopted.iter().find(|adopted| adopted.number == number).ok_or_else(missing)?;
        let bell = thread.bell.as_fd().try_clone_to_owned()?;
        Ok(WorkerLog { number, file: adopted.book.file(), bell, thread: thread.clone() })
    }

    /// Reads on.
    pub fn go_on(&self) {
        let adopted = std::mem::take(&mut *self.adopted.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(thread) = self.thread.get() {
            adopted.into_iter().for_each(|book| thread.send(Order::GoOn(book)));
        }
    }
}

impl WorkerLog {
    /// Its number in the record.
    pub fn number(&self) -> u64 {
        self.number
    }
}
