//! The access log's memory file, from both sides: a relay worker writes what happens to its connections, the master reads.
//! (Servers write by the preload library.)

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::bell::BellRope;
use crate::abi::access::{self as abi, FILE_BYTES, RECORDS, Record, Ring, id};
use crate::sys::mmap::SharedPage;

/// The most lost records that are believed at once: writers count them.
const MAX_LOST: u64 = 1 << 24;
/// Delay after which a record that is not finished is passed over, in turns of the reader.
const MAX_WAITS: u32 = 3;

/// A relay worker's side.
#[derive(Debug)]
pub struct AccessWriter {
    memory: SharedPage,
    bell: BellRope,
}

impl AccessWriter {
    /// # Errors
    /// As mmap(2).
    pub fn attach(file: BorrowedFd<'_>, bell: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { memory: SharedPage::map_sized(file, FILE_BYTES)?, bell: BellRope::attach(bell)? })
    }

    /// Records that a connection came, unless it is not drawn; its number, with which its end is recorded.
    pub fn received(&self, now: u64, record: impl FnOnce(u32) -> abi::Received) -> Option<u32> {
        let ring = Ring(self.memory.words());
        if !ring.draws(now) {
            return None;
        }
        self.write(ring, |ticket| Record::Received(record(id(ticket)))).map(id)
    }

    pub fn closed(&self, record: abi::Closed) {
        self.write(Ring(self.memory.words()), |_| Record::Closed(record));
    }

    fn write(&self, ring: Ring<'_>, record: impl FnOnce(u64) -> Record) -> Option<u64> {
        let ticket = ring.claim();
        if ticket.map_or_else(|| ring.wakes(), |ticket| ring.write(ticket, &record(ticket))) {
            self.bell.ring();
        }
        ticket
    }
}

/// The master's side. Nothing in the memory is trusted: each record is copied once and then judged.
#[derive(Debug)]
pub struct AccessReader {
    memory: SharedPage,
    /// The next record to be read.
    tail: u64,
    /// How often the next record was found unfinished.
    waits: u32,
    /// Of the writers' count of lost records, how much was reported.
    lost: u64,
}

/// What came of one look at a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub records: Vec<Record>,
    /// Records that found no place, were never finished, or are none.
    pub lost: u64,
    /// Something is being written.
    pub unfinished: bool,
}

impl AccessReader {
    /// A ring of which this share of all connections is logged (of [`abi::ALL`]), and the descriptor for its writers.
    ///
    /// # Errors
    /// As memfd_create(2) and mmap(2).
    pub fn create(share: u64) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) = SharedPage::create_sized(c"roundsman-access", FILE_BYTES)?;
        Ring(memory.words()).set_share(share);
        Ok((Self { memory, tail: 0, waits: 0, lost: 0 }, fd))
    }

    /// Goes on in a ring that another reader has left at this [`AccessReader::place`].
    ///
    /// # Errors
    /// As mmap(2).
    pub fn go_on(file: BorrowedFd<'_>, (tail, lost): (u64, u64)) -> io::Result<Self> {
        Ok(Self { memory: SharedPage::map_sized(file, FILE_BYTES)?, tail, waits: 0, lost })
    }

    /// The next record to be read, and how many lost ones were reported.
    pub fn place(&self) -> (u64, u64) {
        (self.tail, self.lost)
    }

    /// Takes what is there: at most one ring full.
    pub fn take(&mut self) -> Taken {
        let ring = Ring(self.memory.words());
        let mut taken = Taken::default();
        let head = ring.head();
        if head.wrapping_sub(self.tail) > RECORDS {
            // No writer of ours is so far ahead: somebody has written there. What is in the ring is not believed.
            self.tail = head;
            taken.lost = 1;
        }
        while self.tail != head {
            match ring.read(self.tail).map(|words| Record::of_words(&words)) {
                Some(Some(record)) => taken.records.push(record),
                Some(None) => taken.lost += 1,
                None if self.waits < MAX_WAITS => {
                    self.waits += 1;
                    taken.unfinished = true;
                    break;
                }
                None => taken.lost += 1,
            }
            self.waits = 0;
            self.tail = self.tail.wrapping_add(1);
        }
        ring.was_read(self.tail);
        let lost = ring.lost();

        taken.lost += lost.wrapping_sub(self.lost).min(MAX_LOST);
        self.lost = lost;
        taken
    }

    /// Whether all was read that was begun before the head stood there.
    pub fn is_past(&self, head: u64) -> bool {
        head.wrapping_sub(self.tail) as i64 <= 0
    }

    pub fn head(&self) -> u64 {
        Ring(self.memory.words()).head()
    }

    /// Has writers ring the bell from now on; whether something came before that.
    pub fn sleep(&self) -> bool {
        let ring = Ring(self.memory.words());
        ring.sleeps();
        ring.head() != self.tail
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
