//! The epoll instances of this process, looked for once: a connection that goes back to the master has to leave them, since its
//! open file lives on. (To look for its registrations would take milliseconds where there are many.)

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

use super::{DEL, Event, control, each_descriptor, is_epoll};
use crate::raw::EINVAL;
use crate::{counts, fail, next};

/// More are not kept; then nothing leaves them.
const MOST: usize = 64;

static KNOWN: [AtomicI32; MOST] = [const { AtomicI32::new(-1) }; MOST];
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The process whose they are, and how many calls had made one before it looked.
static OWNER: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);
static MADE: AtomicU32 = AtomicU32::new(0);
/// 1 while a thread looks.
static LOOKING: AtomicU32 = AtomicU32::new(0);

/// Whether all of them are known.
pub fn are_known() -> bool {
    is_known() && COUNT.load(Relaxed) as usize <= MOST
}

/// Looks, unless that was done. Fails while another thread does, and where not all descriptors can be seen.
fn is_known() -> bool {
    let own = counts::own_pid();
    if OWNER.load(Acquire) == own && SEEN.load(Acquire) == MADE.load(Acquire) {
        return true;
    }
    // A mark that came by fork is nobody's.
    if LOOKING.swap(own, AcqRel) == own {
        return false;
    }
    let made = MADE.load(Acquire);
    let mut count = 0;
    let complete = each_descriptor(|directory, fd| {
        if is_epoll(directory, fd) {
            if let Some(place) = KNOWN.get(count as usize) {
                place.store(fd, Relaxed);
            }
            count += 1;
        }
    });
    if complete {
        COUNT.store(count, Relaxed);
        SEEN.store(made, Release);
        OWNER.store(own, Release);
    }
    LOOKING.store(0, Release);
    complete
}

/// Calls `each` with all of them.
pub fn each_known(mut each: impl FnMut(i32)) {
    KNOWN.iter().take(COUNT.load(Relaxed) as usize).for_each(|epoll| each(epoll.load(Relaxed)));
}

/// Takes a descriptor out of all of them.
pub fn leave_all(fd: i32) {
    let nothing = Event { events: 0, data: 0 };
    each_known(|epoll| control(epoll, DEL, fd, &nothing));
}

/// epoll_create1(2).
#[unsafe(no_mangle)]
pub extern "C" fn epoll_create1(flags: i32) -> i32 {
    let epoll = next::epoll_create1(flags);
    MADE.fetch_add(1, AcqRel);
    epoll
}

/// epoll_create(2), whose size means nothing.
#[unsafe(no_mangle)]
pub extern "C" fn epoll_create(size: i32) -> i32 {
    if size <= 0 { fail(EINVAL) } else { epoll_create1(0) }
}
