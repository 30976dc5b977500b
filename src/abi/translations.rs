//! The addresses that PROXY headers named for a worker's connections, in a memory file that all of its processes share, one file per
//! worker and generation; all words are `u64`.
//!
//! A connection is known by its socket's cookie (SO_COOKIE), which is the same in every process that has it, and never used
//! again for another. Whoever receives a connection writes its record, and marks it once it closes its own copy: children may
//! go on with theirs, so a record goes only when its place is needed. A cookie has two possible sets of eight places, and a
//! new record goes to the emptier one; so nearly all places can be in use before one cookie finds none.
//!
//! Processes may die at any point. A place that was being written then stays lost.

use core::sync::atomic::{AtomicU64, Ordering::*, fence};

use super::payload::Endpoint;

/// The most connections that are known at a time; a power of two.
pub const PLACES: usize = 65_536;
/// Places of a set: their cookies share a cache line.
const WAYS: usize = 8;
/// Words in front of the cookies.
const HEADER_WORDS: usize = 512;
/// Words of a record's contents: owner and stamp, two addresses of 4 words.
const WORDS: usize = 9;
/// Size of the file in bytes.
pub const FILE_BYTES: usize = (HEADER_WORDS + PLACES * (1 + WORDS)) * 8;

/// Places of the header's words.
mod header {
    /// Counts what happens to records: the smallest stamp is the oldest.
    pub const CLOCK: usize = 0;
}

/// In place of a cookie: the record is being written.
const BUSY: u64 = u64::MAX;
/// In a record's first word, above the owner's pid: the owner has closed the connection; below it is the stamp.
const CLOSED: u64 = 1 << 63;
const STAMP: u64 = (1 << 31) - 1;

/// What a PROXY header named, in the family of the server's socket.
#[derive(Clone, Copy)]
pub struct Translation {
    pub client: Endpoint,
    /// Where the client connected to.
    pub destination: Endpoint,
}

fn pack(endpoint: &Endpoint) -> [u64; 4] {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&endpoint.len.to_ne_bytes());
    bytes[4..].copy_from_slice(&endpoint.address);
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    words
}

fn unpack(words: [u64; 4]) -> Endpoint {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut endpoint = Endpoint { len: u16::from_ne_bytes([bytes[0], bytes[1]]), ..Endpoint::NONE };
    endpoint.address.copy_from_slice(&bytes[4..]);
    endpoint
}

/// The record, in memory that processes share. In shorter memory nothing is found and everything is lost.
#[derive(Clone, Copy)]
pub struct Translations<'a>(pub &'a [AtomicU64]);

impl<'a> Translations<'a> {
    fn cookie(self, place: usize) -> Option<&'a AtomicU64> {
        self.0.get(HEADER_WORDS + place % PLACES)
    }

    fn contents(self, place: usize) -> Option<&'a [AtomicU64]> {
        let at = HEADER_WORDS + PLACES + place % PLACES * WORDS;
        self.0.get(at..at + WORDS)
    }

    /// The places where a cookie may be: two sets.
    fn places(cookie: u64) -> impl Iterator<Item = usize> + Clone {
        const SETS: u64 = (PLACES / WAYS) as u64;
        // As in splitmix64: every bit of the result depends on every bit of the cookie.
        let mixed = (cookie ^ cookie >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let (first, second) = ((mixed % SETS) as usize, ((mixed >> 32) % SETS) as usize);
        let set = |set: usize| set * WAYS..(set + 1) * WAYS;
        set(first).chain(set(second))
    }

    fn find(self, cookie: u64) -> Option<usize> {
        let is_there = |place: &usize| self.cookie(*place).is_some_and(|word| word.load(Acquire) == cookie);
        // 0 is no cookie, and what unused places have.
        Self::places(cookie).find(is_there).filter(|_| cookie != 0 && cookie != BUSY)
    }

    fn tick(self) -> u64 {
        self.0.get(header::CLOCK).map_or(0, |clock| clock.fetch_add(1, Relaxed)) & STAMP
    }

    /// Records a connection that this process has received. Whether there is a place for it.
    pub fn insert(self, cookie: u64, owner: u32, translation: &Translation, is_gone: impl Fn(u32) -> bool) -> bool {
        if cookie == 0 || cookie == BUSY {
            return false;
        }
        // Another process may take the place in between.
        for _ in 0..4 {
            let Some((place, before)) = self.free(cookie, &is_gone) else { break };
            let (Some(word), Some([first, contents @ ..])) = (self.cookie(place), self.contents(place)) else { break };
            if word.compare_exchange(before, BUSY, AcqRel, Relaxed).is_err() {
                continue;
            }
            let words = pack(&translation.client).into_iter().chain(pack(&translation.destination));
            first.store(u64::from(owner) << 31 | self.tick(), Relaxed);
            contents.iter().zip(words).for_each(|(to, word)| to.store(word, Relaxed));
            word.store(cookie, Release);
            return true;
        }
        false
    }

    /// A place for a cookie, and the cookie that is there now: an unused one in the emptier set, else that of the connection
    /// that was closed first, else one whose owner is gone.
    fn free(self, cookie: u64, is_gone: impl Fn(u32) -> bool) -> Option<(usize, u64)> {
        let with_cookie = |place| Some((place, self.cookie(place)?.load(Acquire)));
        let places = Self::places(cookie).filter_map(with_cookie);
        let unused = |from: usize| {
            let set = places.clone().skip(from).take(WAYS).filter(|(_, cookie)| *cookie == 0);
            (set.clone().count(), set.map(|(place, _)| place).next())
        };
        let sets = [unused(0), unused(WAYS)];
        let [(first, place), (second, other)] = sets;
        if let Some(place) = if first >= second { place } else { other } {
            return Some((place, 0));
        }
        let now = self.0.get(header::CLOCK)?.load(Relaxed);
        let mut oldest: Option<(u64, usize, u64)> = None;
        let mut dead = None;
        for (place, cookie) in places.filter(|(_, cookie)| *cookie != BUSY) {
            let Some(word) = self.contents(place).and_then(|contents| contents.first()) else { continue };
            let word = word.load(Relaxed);
            let age = now.wrapping_sub(word) & STAMP;
            if word & CLOSED != 0 {
                if oldest.is_none_or(|(known, ..)| age > known) {
                    oldest = Some((age, place, cookie));
                }
            } else if dead.is_none() && is_gone((word >> 31) as u32) {
                dead = Some((place, cookie));
            }
        }
        oldest.map(|(_, place, cookie)| (place, cookie)).or(dead)
    }

    /// A process has closed a connection. Only its owner's close counts.
    pub fn closed(self, cookie: u64, process: u32) {
        let Some(first) = self.find(cookie).and_then(|place| self.contents(place)?.first()) else { return };
        let word = first.load(Relaxed);
        if (word >> 31) as u32 != process {
            return;
        }
        // Fails where the place has been taken for another one meanwhile.
        let _ = first.compare_exchange(word, word & !STAMP | CLOSED | self.tick(), Relaxed, Relaxed);
    }

    /// What is known of a connection.
    pub fn get(self, cookie: u64) -> Option<Translation> {
        let place = self.find(cookie)?;
        let [first, contents @ ..] = self.contents(place)? else { return None };
        let owner = first.load(Relaxed);
        let mut words = [0; WORDS - 1];
        words.iter_mut().zip(contents).for_each(|(word, from)| *word = from.load(Relaxed));
        fence(Acquire);
        if self.cookie(place)?.load(Relaxed) != cookie {
            return None;
        }
        if owner & CLOSED != 0 {
            // Somebody else still has it: it is not the next one to go.
            let _ = first.compare_exchange(owner, owner & !STAMP | self.tick(), Relaxed, Relaxed);
        }
        let [a, b, c, d, e, f, g, h] = words;
        Some(Translation { client: unpack([a, b, c, d]), destination: unpack([e, f, g, h]) })
    }
}
