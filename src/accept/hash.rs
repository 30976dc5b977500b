//! The worker that a key belongs to.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::policy::{Candidate, Turn};
use super::weighted;

/// What decides which worker a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Address(IpAddr),
    /// See [`crate::affinity::digest`].
    Digest(u64),
    /// Only the worker at this index can serve it.
    Worker(usize),
}

/// The worker that a key belongs to, whether or not it has room now. One that is stalled loses its keys, but not what only it has.
pub fn home(workers: &[Candidate], turn: &Turn, key: Key) -> Option<usize> {
    let stays = matches!(key, Key::Worker(_));
    hashed(workers, turn.uneven, key, |worker| worker.weight > 0 && (stays || !worker.stalled))
}

/// The worker that a key belongs to among those that may get a connection. Rendezvous hashing (Thaler and Ravishankar, 1996):
/// a slot that leaves moves only its own keys.
pub(super) fn hashed(workers: &[Candidate], uneven: bool, key: Key, may: impl Fn(&Candidate) -> bool) -> Option<usize> {
    if let Key::Worker(at) = key {
        return workers.get(at).is_some_and(may).then_some(at);
    }
    let candidates = (0..workers.len()).filter(|&at| may(&workers[at]));
    if !uneven {
        return candidates.max_by_key(|&at| hash(key, workers[at].slot));
    }
    let score = |at: usize| weighted::score(hash(key, workers[at].slot), workers[at].weight);
    candidates.min_by(|&a, &b| score(a).total_cmp(&score(b)))
}

fn hash(key: Key, slot: u32) -> u64 {
    let mut hasher = SipHasher13::new();
    match key {
        Key::Address(IpAddr::V4(v4)) => hasher.write(&v4.octets()),
        Key::Address(IpAddr::V6(v6)) => hasher.write(&v6.octets()),
        Key::Digest(digest) => hasher.write(&digest.to_le_bytes()),
        Key::Worker(at) => hasher.write_usize(at),
    }
    hasher.write_u32(slot);
    hasher.finish()
}
