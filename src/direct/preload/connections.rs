//! Connections that the server received from the master.

use core::sync::atomic::Ordering::*;

use super::{MARKED, kind};
use crate::address::{AF_INET, AF_INET6};
use crate::{bell, counts, journal, raw, translations};

/// Not watched; watched: what the server reads from it and writes to it is looked at. Only the latter is a positive number, as
/// stand-ins are.
const PLAIN: u32 = 1 << 31;
const WATCHED: u32 = 1 << 30;
/// The family in which its addresses are shown, where that is another than their own.
const AS_V4: u32 = 1 << 29;
const AS_V6: u32 = 1 << 28;
const NUMBER: u32 = AS_V6 - 1;

pub fn is_connection(kind: u32) -> bool {
    kind >= WATCHED
}

/// Whether the descriptor is that of a connection that is watched.
#[inline]
pub fn is_watched(fd: i32) -> bool {
    kind(fd).is_some_and(|kind| kind.load(Relaxed) & (PLAIN | WATCHED) == WATCHED)
}

/// A connection was received at a descriptor. `shown`: the family that its addresses are to have, where it is another
/// than their own.
pub fn received(fd: i32, number: u32, shown: Option<u16>, watched: bool) {
    counts::received();
    let shown = match shown {
        Some(AF_INET) => AS_V4,
        Some(_) => AS_V6,
        None => 0,
    };
    let Some(slot) = kind(fd) else {
        // Its close will not be noticed.
        return counts::estimate();
    };
    let state = if watched { WATCHED } else { PLAIN };
    // Still marked: it was closed where we could not see it.
    if is_connection(slot.swap(state | shown | number & NUMBER, AcqRel)) && counts::closed() {
        bell::ROOM.ring();
    }
}

/// The family that a connection's addresses are to have, where it is another than their own.
pub fn shown_family(fd: i32) -> Option<u16> {
    let value = kind(fd)?.load(Acquire);
    match value & (AS_V4 | AS_V6) {
        _ if !is_connection(value) => None,
        AS_V4 => Some(AF_INET),
        AS_V6 => Some(AF_INET6),
        _ => None,
    }
}

/// A descriptor is about to be closed: if it is a connection, counts it, and waits (normally not at all) until the
/// master has closed its copy, since otherwise the client's FIN would come late. Whether the bell is to be rung afterwards.
pub fn closing(fd: i32) -> bool {
    let Some(slot) = kind(fd) else { return false };
    let value = slot.load(Acquire);
    if value == MARKED {
        slot.store(0, Release);
    }
    if !is_connection(value) {
        return false;
    }
    slot.store(0, Release);
    for _ in 0..1000 {
        // Numbers wrap at 28 bits: ahead by less than half is "released".
        if counts::released().wrapping_sub(value) & NUMBER < NUMBER / 2 {
            break;
        }
        raw::yield_now();
    }
    journal::closing(fd);
    translations::closing(fd);
    counts::closed()
}

/// A connection has gone back to the master, while its descriptor is still open. What [`gone`] is to be called with.
pub fn going(fd: i32) -> u32 {
    journal::moved(fd);
    translations::closing(fd);
    kind(fd).map_or(0, |slot| slot.load(Acquire))
}

/// Its descriptor is closed. Only now is it forgotten, so that no thread could use it to the last. Another connection may be
/// there by now, which has counted the end of this one. Whether the bell is to be rung.
pub fn gone(fd: i32, going: u32) -> bool {
    kind(fd).is_some_and(|slot| slot.compare_exchange(going, 0, AcqRel, Relaxed).is_ok()) && counts::closed()
}
