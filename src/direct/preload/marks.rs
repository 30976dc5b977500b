//! Descriptors that come from outside, by exec or over a Unix socket: marked until the master was asked for them, or copies
//! of what this process has.

use core::sync::atomic::Ordering::*;

use super::{KINDS, MARKED, PLACES, StandIn, Stands, kind};
use crate::raw;

/// Marks a descriptor as a stand-in that another process made.
pub fn mark(fd: i32) {
    if let Some(kind) = kind(fd) {
        kind.store(MARKED, Release);
    }
}

/// Makes a descriptor that came from outside one of the stand-in whose open file it is; whether there is one.
pub fn join(fd: i32) -> bool {
    let Some(file) = raw::device_and_inode(fd) else { return false };
    let same = |place: &StandIn| place.is_used() && (place.file.is(file) || place.other_file.is(file));
    let at = PLACES.iter().position(same);
    if let (Some(kind), Some(at)) = (kind(fd), at) {
        kind.store(at as u32 + 1, Release);
    }
    at.is_some()
}

/// Makes marked descriptors of the same open file ones of a stand-in's.
pub fn join_marked() {
    for (fd, _) in KINDS.iter().enumerate().filter(|(_, kind)| kind.load(Relaxed) == MARKED) {
        join(fd as i32);
    }
}

/// Whether there is a [`Stands::Listener`].
pub fn has_shared() -> bool {
    PLACES.iter().any(|place| place.is_used() && place.stands() == Stands::Listener)
}

pub fn is_marked(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Relaxed) == MARKED)
}
