//! Where descriptors end and are copied, and how a stand-in's blocking mode is changed.

use core::sync::atomic::Ordering::Relaxed;

use super::abi::attach::op;
use super::bind::recognize;
use super::raw::{
    EBADF, EINVAL, ENOTCONN, F_DUPFD, F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, O_NONBLOCK, SHUT_RD, SHUT_RDWR, SHUT_WR,
    is_open,
};
use super::table::{StandIn, Stands};
use super::{accept, bell, client, counts, epolls, fail, idle, journal, moving, next, raw, table, watched};

fn unlisten(listener: Option<u32>) {
    if let Some(listener) = listener {
        client::tell(op::UNLISTEN, listener);
    }
}

/// The stand-in at a descriptor, after a look whether it still is there: the server may have closed it where we could not
/// see that (by a raw system call), and the number is another file's now.
pub fn genuine(fd: i32) -> Option<&'static StandIn> {
    let stand_in = table::stand_in(fd)?;
    if stand_in.is_at(fd) {
        return Some(stand_in);
    }
    if counts::ours() {
        unlisten(table::remove_stand_in(fd));
    }
    None
}

/// The same, where it may be one of another process that this one has not used yet.
pub fn genuine_or_marked(fd: i32) -> Option<&'static StandIn> {
    genuine(fd).or_else(|| if table::is_marked(fd) { recognize(fd) } else { None })
}

/// What is to be done once a descriptor is closed.
#[derive(Default)]
struct AfterClose {
    /// The listener that ended with it.
    unlisten: Option<u32>,
    /// Clients wait for its end.
    ring: bool,
}

impl AfterClose {
    fn act(self) {
        unlisten(self.unlisten);
        if self.ring {
            bell::ROOM.ring();
        }
    }
}

/// What has to be known before a descriptor is closed.
fn before_close(fd: i32) -> AfterClose {
    if table::stand_in(fd).is_none() {
        return AfterClose { unlisten: None, ring: table::closing(fd) };
    }
    if table::is_last(fd) {
        // The master has the same open file: the kernel would keep the registrations.
        epolls::take_out(fd);
    }
    AfterClose { unlisten: table::remove_stand_in(fd), ring: false }
}

/// close(2).
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: i32) -> i32 {
    if !table::knows(fd) || !counts::ours() {
        return next::close(fd);
    }
    if let Some(moved) = moving::at_close(fd) {
        let result = next::close(fd);
        AfterClose { unlisten: None, ring: moved.close_done() }.act();
        return result;
    }
    // Another thread may be about to put something else there.
    drop(watched::enter(fd));
    let after = before_close(fd);
    let result = next::close(fd);
    after.act();
    result
}

/// close(2) in the form of `syscall`.
pub extern "C" fn close_widened(fd: usize) -> isize {
    close(fd as i32) as isize
}

/// close_range(2).
#[unsafe(no_mangle)]
pub extern "C" fn close_range(first: u32, last: u32, flags: i32) -> i32 {
    const CLOSE_RANGE_CLOEXEC: i32 = 4;
    if flags & CLOSE_RANGE_CLOEXEC == 0 && first <= last && counts::ours() {
        let mut from = first;
        while let Some(fd) = table::first_known(from, last) {
            close(fd);
            from = fd as u32 + 1;
        }
    }
    next::close_range(first, last, flags)
}

/// close_range(2) in the form of `syscall`.
pub extern "C" fn close_range_widened(first: usize, last: usize, flags: usize) -> isize {
    close_range(first as u32, last as u32, flags as i32) as isize
}

/// closefrom(3) of glibc.
#[unsafe(no_mangle)]
pub extern "C" fn closefrom(first: i32) {
    close_range(first.max(0) as u32, u32::MAX, 0);
}

/// dup(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup(fd: i32) -> i32 {
    // SAFETY: F_DUPFD takes an integer.
    unsafe { fcntl(fd, F_DUPFD, 0) }
}

/// dup2(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup2(from: i32, to: i32) -> i32 {
    if from == to {
        return if is_open(from) { to } else { fail(EBADF) };
    }
    dup3(from, to, 0)
}

/// dup3(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup3(from: i32, to: i32, flags: i32) -> i32 {
    if !(table::knows(from) || table::knows(to)) || from == to || !counts::ours() {
        return next::dup3(from, to, flags);
    }
    // Only what is there to be duplicated ends what is at `to`.
    let after = if is_open(from) && table::knows(to) { before_close(to) } else { AfterClose::default() };
    let result = next::dup3(from, to, flags);
    if result >= 0 {
        table::copy(from, to);
    }
    after.act();
    result
}

/// fcntl(2). Variadic in C; on the architectures we serve a third argument lies where a fixed one would.
///
/// # Safety
/// As fcntl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: i32, command: i32, argument: usize) -> i32 {
    // SAFETY: as fcntl(2).
    let natively = |argument| unsafe { next::fcntl(fd, command, argument) };
    if !table::knows(fd) {
        return natively(argument);
    }
    let shared = genuine(fd).filter(|stand_in| stand_in.stands() == Stands::Listener);
    match (command, shared) {
        (F_SETFL, Some(stand_in)) => {
            // All workers share the open file, and it has to stay non-blocking for each of them.
            stand_in.set_nonblock(argument & O_NONBLOCK != 0);
            natively(argument | O_NONBLOCK)
        }
        (F_GETFL, Some(stand_in)) if !stand_in.nonblock() => {
            let flags = natively(argument);
            if flags < 0 { flags } else { flags & !(O_NONBLOCK as i32) }
        }
        _ => {
            let result = natively(argument);
            if result >= 0 && matches!(command, F_DUPFD | F_DUPFD_CLOEXEC) && counts::ours() {
                table::copy(fd, result);
            }
            result
        }
    }
}

/// fcntl(2) under its name for large files.
///
/// # Safety
/// As fcntl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: i32, command: i32, argument: usize) -> i32 {
    // SAFETY: as fcntl(2).
    unsafe { fcntl(fd, command, argument) }
}

/// ioctl(2): FIONBIO on a socket that all workers share; how many bytes wait in a queue is nothing that a server knows.
///
/// # Safety
/// As ioctl(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: i32, request: usize, argument: usize) -> i32 {
    const FIONBIO: u32 = 0x5421;
    const FIONREAD: u32 = 0x541b;
    const TIOCOUTQ: u32 = 0x5411;
    // SAFETY: as ioctl(2).
    let natively = || unsafe { next::ioctl(fd, request, argument) };
    if !matches!(request as u32, FIONBIO | FIONREAD | TIOCOUTQ) || argument == 0 {
        return natively();
    }
    let number = argument as *mut i32;
    match genuine_or_marked(fd).map(|stand_in| (stand_in, stand_in.stands(), request as u32)) {
        Some((stand_in, Stands::Listener, FIONBIO)) => {
            // SAFETY: by the contract of FIONBIO the argument is a pointer to an int.
            stand_in.set_nonblock(unsafe { *number } != 0);
            0
        }
        Some((stand_in, Stands::Queue, FIONREAD | TIOCOUTQ)) if stand_in.is_shut() => {
            // SAFETY: by the contract of these two it is a pointer to an int.
            unsafe { *number = 0 };
            0
        }
        Some((_, Stands::Queue, FIONREAD | TIOCOUTQ)) => fail(EINVAL),
        _ => natively(),
    }
}

/// shutdown(2): on a stand-in it must not reach what the master and other workers share. As on a listening socket it wakes
/// whoever waits in accept, poll, select or epoll_wait, and what is there from then on is a socket that is only bound.
#[unsafe(no_mangle)]
pub extern "C" fn shutdown(fd: i32, how: i32) -> i32 {
    let Some(stand_in) = genuine_or_marked(fd) else {
        if how != SHUT_RD
            && let Some(moved) = moving::at_shutdown(fd)
        {
            AfterClose { unlisten: None, ring: moved.close_done() }.act();
            return 0;
        }
        // Another thread may be about to give it away.
        return match watched::enter(fd) {
            Some(Err(())) => fail(EBADF),
            _inside => {
                journal::shuts(fd, how);
                next::shutdown(fd, how)
            }
        };
    };
    if !(0..=SHUT_RDWR).contains(&how) {
        return fail(EINVAL);
    }
    if stand_in.is_shut() {
        if stand_in.stands() == Stands::Queue {
            // It polls as the kernel's would from now on.
            raw::shutdown(fd, how);
        }
        return fail(ENOTCONN);
    }
    if how != SHUT_WR && stand_in.shut() {
        let listener = stand_in.listener.load(Relaxed);
        client::tell(op::SHUT, listener);
        let old = match stand_in.stands() {
            Stands::Queue => raw::dup_high(fd),
            Stands::Listener => -1,
        };
        if let Ok(idle) = idle::socket(listener, &stand_in.address(), 0) {
            idle::replace(stand_in, idle);
        }
        stand_in.end();
        accept::wake_waiting(stand_in, old);
        raw::close(old);
    }
    0
}
