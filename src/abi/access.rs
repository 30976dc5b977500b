//! The access log's memory file: a ring of records of one size, one file per worker and generation, all words `u64`.
//!
//! Any number of threads and processes write, and may die at any point; one thread of the master reads. A writer takes the
//! next place (a *ticket*) and fills it; the record counts once its first word, a checksum of ticket and contents, fits.
//! So a record that was never finished, or that two writers mixed, is no record, and blocks nobody: the reader passes over
//! it. When the ring is full, writers drop their records and count them.

use core::sync::atomic::{AtomicU64, Ordering::*, fence};

use super::attach::ADDRESS_BYTES;

/// Records in the ring; a power of two.
pub const RECORDS: u64 = 4096;
/// Words of a record.
const RECORD_WORDS: usize = 16;
/// Words in front of the records.
const HEADER_WORDS: usize = 512;
/// Size of the file in bytes.
pub const FILE_BYTES: usize = (HEADER_WORDS + RECORDS as usize * RECORD_WORDS) * 8;
/// Words of a record's contents.
pub const WORDS: usize = 12;

/// Places of the header's words, a cache line each.
mod header {
    /// The next ticket. Written by writers.
    pub const HEAD: usize = 0;
    /// Everything before this ticket was read. Written by the master.
    pub const TAIL: usize = 8;
    /// Records that found no place. Written by writers.
    pub const LOST: usize = 16;
    /// Not 0 while the reader sleeps: whoever writes rings the bell. Written by both.
    pub const SLEEPS: usize = 24;
    /// Which share of the connections is logged: of 2^32. Written by the master.
    pub const SHARE: usize = 32;
}

/// All connections, as a share.
pub const ALL: u64 = 1 << 32;
/// No value, in fields of 32 bits.
pub const NONE: u32 = u32::MAX;
/// Numbers of connections are below this, and not 0.
pub const IDS: u32 = 1 << 30;

/// How a connection ended.
pub mod end {
    /// The client was the first to end its side.
    pub const CLIENT: u8 = 1;
    /// The server, or the relay worker, was.
    pub const SERVER: u8 = 2;
    /// The client reset it, or it timed out.
    pub const RESET: u8 = 3;
    /// It did not: it goes on with another worker.
    pub const MOVED: u8 = 4;
}

/// A socket address as the kernel lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Bytes in use; 0: none is known.
    pub len: u16,
    pub bytes: [u8; ADDRESS_BYTES],
}

impl Place {
    pub const UNKNOWN: Self = Self { len: 0, bytes: [0; ADDRESS_BYTES] };
}

/// A connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The process that has it, and its descriptor there.
    pub pid: u32,
    pub fd: u32,
    /// Its number: see [`id`].
    pub id: u32,
    /// The listener's number at the master.
    pub listener: u32,
    /// When the master accepted it: CLOCK_MONOTONIC in nanoseconds; 0: the worker accepted it itself.
    pub accepted: u64,
    /// When the worker received it, on the same clock.
    pub received: u64,
    pub client: Place,
}

/// A connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Its number.
    pub id: u32,
    /// One of [`end`].
    pub end: u8,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub closed: u64,
    /// Bytes from and to the client; `u64::MAX`: unknown.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Of the client's connection, in microseconds; [`NONE`]: unknown.
    pub rtt: u32,
    /// Segments that were sent again; [`NONE`]: unknown.
    pub retransmits: u32,
    /// Relay: time to connect to the upstream in microseconds, or [`NONE`].
    pub connect: u32,
    /// Relay: the upstream's place in the configuration, or [`NONE`].
    pub upstream: u32,
    /// Relay: its address, where that is an IP address.
    pub address: Place,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    Received(Received),
    Closed(Closed),
}

const RECEIVED: u64 = 1;
const CLOSED: u64 = 2;

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

const PLACE_WORDS: usize = ADDRESS_BYTES.div_ceil(8);

fn put_place(words: &mut [u64], place: &Place) {
    let mut bytes = [0; PLACE_WORDS * 8];
    bytes[..ADDRESS_BYTES].copy_from_slice(&place.bytes);
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
}

fn place(words: &[u64], len: u16) -> Place {
    let mut bytes = [0; PLACE_WORDS * 8];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    let mut place = Place { len, bytes: [0; ADDRESS_BYTES] };
    place.bytes.copy_from_slice(&bytes[..ADDRESS_BYTES]);
    place
}

impl Record {
    pub fn to_words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        let [kind, ids, first, second, third, fourth, fifth, sixth, address @ ..] = &mut words;
        match self {
            Self::Received(Received { pid, fd, id, listener, accepted, received, client }) => {
                *kind = RECEIVED | u64::from(client.len) << 16;
                *ids = pair(id, fd);
                *first = accepted;
                *second = received;
                *third = pair(listener, pid);
                put_place(address, &client);
            }
            Self::Closed(closed) => {
                *kind = CLOSED | u64::from(closed.end) << 8 | u64::from(closed.address.len) << 16;
                *ids = pair(closed.id, 0);
                *first = closed.closed;
                *second = closed.bytes_in;
                *third = closed.bytes_out;
                *fourth = pair(closed.rtt, closed.retransmits);
                *fifth = pair(closed.connect, closed.upstream);
                *sixth = 0;
                put_place(address, &closed.address);
            }
        }
        words
    }

    /// `None` where it is none of these.
    pub fn of_words(words: &[u64; WORDS]) -> Option<Self> {
        let [kind, ids, first, second, third, fourth, fifth, _, address @ ..] = words;
        let (id, fd) = halves(*ids);
        let place = place(address, (kind >> 16) as u16);
        match kind & 0xff {
            RECEIVED => {
                let (listener, pid) = halves(*third);
                let received = Received { pid, fd, id, listener, accepted: *first, received: *second, client: place };
                Some(Self::Received(received))
            }
            CLOSED => {
                let ((rtt, retransmits), (connect, upstream)) = (halves(*fourth), halves(*fifth));
                Some(Self::Closed(Closed {
                    id,
                    end: (kind >> 8) as u8,
                    closed: *first,
                    bytes_in: *second,
                    bytes_out: *third,
                    rtt,
                    retransmits,
                    connect,
                    upstream,
                    address: place,
                }))
            }
            _ => None,
        }
    }
}

/// The number of the connection whose coming is recorded with this ticket.
pub fn id(ticket: u64) -> u32 {
    (ticket % u64::from(IDS - 1)) as u32 + 1
}

/// A ring in memory that processes share. Shorter memory is a ring that is always full.
#[derive(Clone, Copy)]
pub struct Ring<'a>(pub &'a [AtomicU64]);

impl<'a> Ring<'a> {
    fn word(self, at: usize) -> Option<&'a AtomicU64> {
        self.0.get(at)
    }

    fn load(self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(SeqCst))
    }

    /// Whether a connection is to be logged that came at this time (in nanoseconds).
    pub fn draws(self, now: u64) -> bool {
        let share = self.load(header::SHARE);
        share >= ALL || (mixed(now ^ self.load(header::HEAD).rotate_left(40)) >> 32) < share
    }

    /// The place for one record; `None`: the ring is full, and the record is lost.
    pub fn claim(self) -> Option<u64> {
        let (head, tail) = (self.word(header::HEAD)?, self.word(header::TAIL)?);
        let mut ticket = head.load(Relaxed);
        while ticket.wrapping_sub(tail.load(Acquire)) < RECORDS {
            match head.compare_exchange_weak(ticket, ticket.wrapping_add(1), AcqRel, Relaxed) {
                Ok(_) => return Some(ticket),
                Err(now) => ticket = now,
            }
        }
        self.lose();
        None
    }

    /// Counts a record that cannot be written.
    pub fn lose(self) {
        if let Some(lost) = self.word(header::LOST) {
            lost.fetch_add(1, Relaxed);
        }
    }

    fn record(self, ticket: u64) -> Option<&'a [AtomicU64]> {
        let at = HEADER_WORDS + (ticket % RECORDS) as usize * RECORD_WORDS;
        self.0.get(at..at + 1 + WORDS)
    }

    /// Writes a record into its place. Whether the bell is to be rung.
    #[must_use]
    pub fn write(self, ticket: u64, record: &Record) -> bool {
        let words = record.to_words();
        let Some([check, contents @ ..]) = self.record(ticket) else { return false };
        for (to, word) in contents.iter().zip(&words) {
            to.store(*word, Relaxed);
        }
        check.store(checksum(ticket, &words), Release);
        self.wakes() || ticket.wrapping_sub(self.load(header::TAIL)) == RECORDS / 2
    }

    /// Whether the bell is to be rung for what was written, or was lost, before. (A ring that is full while the reader sleeps has
    /// been spoilt by somebody.)
    #[must_use]
    pub fn wakes(self) -> bool {
        // The reader says that it sleeps and then looks for records: one of the two sees the other's.
        fence(SeqCst);
        let sleeps = self.word(header::SLEEPS);
        sleeps.is_some_and(|sleeps| sleeps.load(Relaxed) != 0 && sleeps.swap(0, SeqCst) != 0)
    }

    /// The contents of a record, if it is finished.
    pub fn read(self, ticket: u64) -> Option<[u64; WORDS]> {
        let [check, contents @ ..] = self.record(ticket)? else { return None };
        let expected = check.load(Acquire);
        let mut words = [0; WORDS];
        for (word, from) in words.iter_mut().zip(contents) {
            *word = from.load(Relaxed);
        }
        (checksum(ticket, &words) == expected).then_some(words)
    }

    /// Where the next record will be.
    pub fn head(self) -> u64 {
        self.load(header::HEAD)
    }

    /// Records that found no place so far.
    pub fn lost(self) -> u64 {
        self.load(header::LOST)
    }

    /// Everything before this ticket was read.
    pub fn was_read(self, tail: u64) {
        if let Some(word) = self.word(header::TAIL) {
            word.store(tail, Release);
        }
    }

    /// Asks writers to ring the bell. What they have written is to be looked for after this.
    pub fn sleeps(self) {
        if let Some(word) = self.word(header::SLEEPS) {
            word.store(1, SeqCst);
        }
        fence(SeqCst);
    }

    /// Sets which share of the connections is logged.
    pub fn set_share(self, share: u64) {
        if let Some(word) = self.word(header::SHARE) {
            word.store(share, SeqCst);
        }
    }
}

/// A step of splitmix64: every bit of the result depends on every bit of the number.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Never 0, which is what new memory has.
fn checksum(ticket: u64, words: &[u64; WORDS]) -> u64 {
    let of = |sum: u64, word: &u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    words.iter().fold(ticket, of) | 1
}
