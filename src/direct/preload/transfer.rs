//! recv, send and their families: on a stand-in they fail as on a listening socket, which is not connected. What lies in
//! the queue is for accept alone. (Python's ssl module calls recv on every socket that it wraps, listeners included.)
//!
//! On a connection that is watched (`watched.rs`) they are followed. (What goes by other ways, such as io_uring, stdio or a
//! child, shows in the kernel's counts.)
//!
//! These are called for every byte that a server moves, so all other descriptors cost one load, one comparison and the
//! jump to libc's own function, which stays a cancellation point. Pointers are passed on unchanged.

use super::arch;
use super::bind::named;
use super::close::genuine;
use super::inherited::{self, MMSGHDR_BYTES};
use super::raw::{EAGAIN, EBADF, ENOTCONN, EPIPE, raise_sigpipe, receives_no_more};
use super::table::{self, Stands, is_looked_at, is_marked, is_stand_in};
use super::{fail, next, watched};

const MSG_NOSIGNAL: i32 = 0x4000;
pub const MSG_ERRQUEUE: i32 = 0x2000;
/// Where a `struct mmsghdr` has the message's length.
const MSG_LEN: usize = 56;

/// The kernel's iovec.
#[repr(C)]
pub struct Part {
    pub at: usize,
    pub len: usize,
}

/// Whether there is a queue at the descriptor. (Under none the listening socket itself is there: the kernel answers.)
fn is_queue(fd: i32) -> bool {
    match genuine(fd) {
        Some(stand_in) => stand_in.stands() == Stands::Queue,
        None if is_marked(fd) && named(fd).is_some() => true,
        None => {
            // Another file is at the number, since a close that nobody could see.
            if is_marked(fd) {
                table::forget(fd);
            }
            false
        }
    }
}

/// What receiving from a listening socket gives; `None` when there is none of ours.
fn no_receive(fd: i32, flags: i32) -> Option<i32> {
    if !is_queue(fd) {
        return None;
    }
    Some(match flags & MSG_ERRQUEUE {
        // One that does not listen keeps a shutdown(2).
        0 if is_idle(fd) && receives_no_more(fd) => 0,
        0 => fail(ENOTCONN),
        _ => fail(EAGAIN),
    })
}

/// Whether there is an idle socket: the stand-in does not listen.
fn is_idle(fd: i32) -> bool {
    match table::stand_in(fd) {
        Some(stand_in) => stand_in.is_shut(),
        None => named(fd).is_some_and(|(_, listens)| !listens),
    }
}

/// What sending to a listening socket gives; `None` when there is none of ours.
fn no_send(fd: i32, flags: i32) -> Option<i32> {
    if !is_queue(fd) {
        return None;
    }
    if flags & MSG_NOSIGNAL == 0 {
        raise_sigpipe();
    }
    Some(fail(EPIPE))
}

/// Whether these parts have no byte in all: then the kernel does not even ask the socket.
///
/// # Safety
/// As readv(2) and writev(2): `count` parts lie there, or `parts` is null.
unsafe fn is_empty(parts: *const Part, count: i32) -> bool {
    // SAFETY: by the caller's word.
    parts.is_null() || (0..count.max(0) as usize).all(|at| unsafe { (*parts.add(at)).len } == 0)
}

/// Calls that fail on a stand-in, under which condition, and how, else are libc's; and what a watched connection is told of
/// them.
macro_rules! looked_at {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty, $how:ident($fd:ident, $flags:expr) if $moves:expr,
        $note:ident($($noted:expr),*);)*) => {$(
        #[allow(clippy::missing_safety_doc, reason = "as the call of this name in section 2 of the manual")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            // Of the same type, so that all arguments stay where they are: two jumps, and no frame for the fast one.
            #[cold]
            #[inline(never)]
            unsafe extern "C" fn marked($($argument: $kind),*) -> $result {
                // SAFETY: as the call of this name.
                unsafe {
                    match watched::enter($fd) {
                        Some(Ok(inside)) => {
                            let result = next::$name($($argument),*);
                            inside.$note(result as isize, $($noted),*);
                            return result;
                        }
                        Some(Err(())) => return fail(EBADF) as $result,
                        None => {}
                    }
                    if is_stand_in($fd)
                        && $moves
                        && let Some(failed) = $how($fd, $flags)
                    {
                        return failed as $result;
                    }
                    next::$name($($argument),*)
                }
            }
            // SAFETY: as the call of this name.
            unsafe { if is_looked_at($fd) { marked($($argument),*) } else { next::$name($($argument),*) } }
        }
    )*};
}

looked_at! {
    read(fd: i32, to: usize, len: usize) -> isize, no_receive(fd, 0) if len != 0, read(to, 0);
    readv(fd: i32, parts: *const Part, count: i32) -> isize, no_receive(fd, 0) if !is_empty(parts, count),
        read_parts(parts, count.max(0) as usize, 0);
    preadv2(fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize,
        no_receive(fd, 0) if at == -1 && !is_empty(parts, count), read_parts(parts, count.max(0) as usize, 0);
    pwritev2(fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize,
        no_send(fd, 0) if at == -1 && !is_empty(parts, count), written_parts(parts, count.max(0) as usize, 0);
    recv(fd: i32, to: usize, len: usize, flags: i32) -> isize, no_receive(fd, flags) if true, read(to, flags);
    recvfrom(fd: i32, to: usize, len: usize, flags: i32, from: usize, from_len: usize) -> isize,
        no_receive(fd, flags) if true, read(to, flags);
    write(fd: i32, from: usize, len: usize) -> isize, no_send(fd, 0) if true, written(from, 0);
    writev(fd: i32, parts: *const Part, count: i32) -> isize, no_send(fd, 0) if !is_empty(parts, count),
        written_parts(parts, count.max(0) as usize, 0);
    send(fd: i32, from: usize, len: usize, flags: i32) -> isize, no_send(fd, flags) if true, written(from, flags);
    sendto(fd: i32, from: usize, len: usize, flags: i32, to: usize, to_len: u32) -> isize, no_send(fd, flags) if true,
        written(from, flags);
    sendmmsg(fd: i32, messages: usize, count: u32, flags: i32) -> i32, no_send(fd, flags) if count != 0, unknown();
    sendfile(fd: i32, from: i32, offset: usize, len: usize) -> isize, no_send(fd, 0) if len != 0, written_unseen();
}

/// sendmsg(2): a connection may go with it.
///
/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: i32, message: usize, flags: i32) -> isize {
    // SAFETY: as sendmsg(2).
    unsafe {
        if watched::is_used() && message != 0 {
            inherited::lose_sent(message);
        }
        if !is_looked_at(fd) {
            return next::sendmsg(fd, message, flags);
        }
        match watched::enter(fd) {
            Some(Ok(inside)) => {
                let sent = next::sendmsg(fd, message, flags);
                inside.written_message(sent, message, flags);
                return sent;
            }
            Some(Err(())) => return fail(EBADF) as isize,
            None => {}
        }
        match no_send(fd, flags) {
            Some(failed) => failed as isize,
            None => next::sendmsg(fd, message, flags),
        }
    }
}

/// recvmsg(2): a stand-in may come with it.
///
/// # Safety
/// As recvmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: i32, message: usize, flags: i32) -> isize {
    if is_stand_in(fd)
        && let Some(failed) = no_receive(fd, flags)
    {
        return failed as isize;
    }
    let watched = watched::enter(fd);
    if matches!(watched, Some(Err(()))) {
        return fail(EBADF) as isize;
    }
    // SAFETY: as recvmsg(2), which has filled in the message where it succeeded.
    unsafe {
        let received = next::recvmsg(fd, message, flags);
        if let Some(Ok(inside)) = watched {
            inside.read_message(received, message, flags);
        }
        if received >= 0 {
            inherited::mark_received(message);
        }
        received
    }
}

/// recvmmsg(2): stand-ins may come with it.
///
/// # Safety
/// As recvmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(fd: i32, messages: usize, count: u32, flags: i32, limit: usize) -> i32 {
    if count != 0
        && is_stand_in(fd)
        && let Some(failed) = no_receive(fd, flags)
    {
        if failed < 0 {
            return failed;
        }
        for at in 0..count as usize {
            // SAFETY: as recvmmsg(2): as many `struct mmsghdr` lie there.
            unsafe { *((messages + at * MMSGHDR_BYTES + MSG_LEN) as *mut u32) = 0 };
        }
        return count as i32;
    }
    watched::lose(fd);
    // SAFETY: as recvmmsg(2), which has filled in as many messages as it says.
    unsafe {
        let received = next::recvmmsg(fd, messages, count, flags, limit);
        inherited::mark_all_received(messages, received);
        received
    }
}

/// preadv2(2) under its name for large files.
///
/// # Safety
/// As preadv2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn preadv64v2(fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize {
    // SAFETY: as preadv2(2).
    unsafe { preadv2(fd, parts, count, at, flags) }
}

/// pwritev2(2) under its name for large files.
///
/// # Safety
/// As pwritev2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64v2(fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize {
    // SAFETY: as pwritev2(2).
    unsafe { pwritev2(fd, parts, count, at, flags) }
}

/// sendfile(2) under its name for large files.
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(fd: i32, from: i32, offset: usize, len: usize) -> isize {
    // SAFETY: as sendfile(2).
    unsafe { sendfile(fd, from, offset, len) }
}

/// splice(2): either end may be a stand-in.
///
/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(from: i32, at: usize, to: i32, to_at: usize, len: usize, flags: u32) -> isize {
    let failed = match len {
        0 => None,
        _ if is_stand_in(from) => no_receive(from, 0),
        _ if is_stand_in(to) => no_send(to, 0),
        _ => None,
    };
    watched::lose(from);
    watched::lose(to);
    match failed {
        Some(failed) => failed as isize,
        // SAFETY: as splice(2).
        None => unsafe { next::splice(from, at, to, to_at, len, flags) },
    }
}

/// read(2) as programs call it that glibc's headers fortify: with the buffer's size.
///
/// # Safety
/// As read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(fd: i32, to: usize, len: usize, room: usize) -> isize {
    if len > room {
        arch::chk_fail();
    }
    // SAFETY: as read(2).
    unsafe { read(fd, to, len) }
}

/// recv(2), fortified.
///
/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recv_chk(fd: i32, to: usize, len: usize, room: usize, flags: i32) -> isize {
    if len > room {
        arch::chk_fail();
    }
    // SAFETY: as recv(2).
    unsafe { recv(fd, to, len, flags) }
}

/// recvfrom(2), fortified.
///
/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recvfrom_chk(
    fd: i32,
    to: usize,
    len: usize,
    room: usize,
    flags: i32,
    from: usize,
    from_len: usize,
) -> isize {
    if len > room {
        arch::chk_fail();
    }
    // SAFETY: as recvfrom(2).
    unsafe { recvfrom(fd, to, len, flags, from, from_len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_without_a_byte_are_empty() {
        let part = |len| Part { at: 0, len };
        let of = |parts: &[Part], count| {
            // SAFETY: callers pass no larger count than there are parts.
            unsafe { is_empty(parts.as_ptr(), count) }
        };
        let parts = [part(0), part(0), part(1)];
        assert!(of(&parts, 2) && of(&parts, 0) && of(&parts, -1));
        assert!(!of(&parts, 3));
        // SAFETY: null is allowed.
        assert!(unsafe { is_empty(core::ptr::null(), 3) });
    }
}
