//! Policy none: a worker that makes room for another one, or that is not needed any more, accepts no more, while the socket goes
//! on listening for the others. In its place the process gets a queue in which nothing ever comes: it is never ready, so
//! nobody spins, and whoever waits in accept(2) waits there for a signal.

use core::sync::atomic::Ordering::*;

use super::{StandIn, Stands};
use crate::abi::attach::ADDRESS_BYTES;
use crate::abi::payload::{Direct, EMPTY, VERSION};
use crate::{idle, message, raw};

const MSG_DONTWAIT: usize = 0x40;
/// More messages than the smallest send buffer has room for.
const MAX_FILL: u32 = 256;
/// How long to wait for another thread that is at it, in milliseconds.
const MAX_WAIT_MS: u32 = 1000;

impl StandIn {
    /// Whether a queue is in the listener's place, or is about to be.
    pub fn leaves(&self) -> bool {
        self.leaving.load(Acquire) != 0
    }
}

/// Puts such a queue in the listener's place; `false` where that cannot be done (no descriptor is free).
pub fn leave(stand_in: &'static StandIn) -> bool {
    if stand_in.leaving.swap(1, AcqRel) == 0 {
        let Some([queue, keep]) = raw::unix_seqpacket_pair() else {
            stand_in.leaving.store(0, Release);
            return false;
        };
        fill(queue);
        idle::replace(stand_in, queue);
        stand_in.kept.remember(keep);
        stand_in.keep.store(keep, Relaxed);
        // Last: whoever sees that it is a queue finds one.
        stand_in.shared.store(0, Release);
        return true;
    }
    for _ in 0..MAX_WAIT_MS {
        if stand_in.stands() == Stands::Queue {
            return true;
        }
        raw::sleep_ms(1);
    }
    false
}

/// A listening socket is never writable.
fn fill(queue: i32) {
    let nothing =
        Direct { version: VERSION, tag: EMPTY, address_len: 0, address: [0; ADDRESS_BYTES], number: 0, accepted: 0 };
    raw::shrink_send_buffer(queue);
    for _ in 0..MAX_FILL {
        if message::send(queue, &nothing, None, MSG_DONTWAIT) < 0 {
            return;
        }
    }
}
