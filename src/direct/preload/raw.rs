//! System calls that several parts need, without libc and without the library's own bookkeeping.

use super::address::AF_UNIX;
use super::arch::{nr, pid, syscall6};

pub const ESRCH: i32 = 3;
pub const EBADF: i32 = 9;
pub const EAGAIN: i32 = 11;
pub const EINVAL: i32 = 22;
pub const EMFILE: i32 = 24;
pub const EPIPE: i32 = 32;
pub const ENOPROTOOPT: i32 = 92;
pub const EADDRINUSE: i32 = 98;
pub const ECONNABORTED: i32 = 103;
pub const EISCONN: i32 = 106;
pub const ENOTCONN: i32 = 107;

pub const F_DUPFD: i32 = 0;
pub const F_GETFD: i32 = 1;
pub const F_GETFL: i32 = 3;
pub const F_SETFL: i32 = 4;
pub const F_SETOWN: i32 = 8;
pub const F_SETSIG: i32 = 10;
pub const F_DUPFD_CLOEXEC: i32 = 1030;
pub const O_RDWR: usize = 2;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_ASYNC: usize = 0o20_000;
pub const O_CLOEXEC: usize = 0o2_000_000;

pub const SOL_SOCKET: i32 = 1;
pub const SO_TYPE: i32 = 3;
pub const SO_DOMAIN: i32 = 39;
pub const SOCK_STREAM: i32 = 1;

pub const SHUT_RD: i32 = 0;
pub const SHUT_WR: i32 = 1;
pub const SHUT_RDWR: i32 = 2;

/// Descriptors from here on are seldom looked at by servers that count theirs.
const HIGH_FD: usize = 900;

/// close(2), whatever the descriptor was.
pub fn close(fd: i32) {
    // SAFETY: closing a descriptor number touches no memory.
    unsafe { syscall6(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// One of the fcntl(2) commands of this file, all of which take an integer; the result or negative errno.
fn integer_fcntl(fd: i32, command: i32, argument: usize) -> isize {
    // SAFETY: no command that callers pass takes a pointer.
    unsafe { syscall6(nr::FCNTL, [fd as usize, command as usize, argument, 0, 0, 0]) }
}

pub fn is_open(fd: i32) -> bool {
    integer_fcntl(fd, F_GETFD, 0) >= 0
}

/// O_CLOEXEC where the descriptor has FD_CLOEXEC, else 0.
pub fn cloexec_of(fd: i32) -> usize {
    let flags = integer_fcntl(fd, F_GETFD, 0);
    if flags > 0 && flags & 1 != 0 { O_CLOEXEC } else { 0 }
}

/// The open file's status flags; 0 where there is no such file.
pub fn status_flags(fd: i32) -> usize {
    integer_fcntl(fd, F_GETFL, 0).max(0) as usize
}

pub fn set_status_flags(fd: i32, flags: usize) {
    integer_fcntl(fd, F_SETFL, flags);
}

pub fn is_nonblocking(fd: i32) -> bool {
    status_flags(fd) & O_NONBLOCK != 0
}

/// Whether this process may have one more descriptor.
pub fn has_free_fd(any_open: i32) -> bool {
    let free = integer_fcntl(any_open, F_DUPFD_CLOEXEC, 0);
    if free >= 0 {
        close(free as i32);
    }
    free >= 0
}

/// Moves a descriptor of the library to a number that servers seldom use, with close-on-exec set; the same number where
/// there is none.
pub fn move_to_high_fd(fd: i32) -> i32 {
    let high = integer_fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
    if high < 0 {
        return fd;
    }
    close(fd);
    high as i32
}

/// A duplicate at a number that servers seldom use, close-on-exec; -1 where there is none.
pub fn dup_high(fd: i32) -> i32 {
    integer_fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD).max(-1) as i32
}

/// Duplicates a descriptor to a number where there is none; whether that succeeded.
pub fn dup_at(fd: i32, number: i32) -> bool {
    let copy = integer_fcntl(fd, F_DUPFD_CLOEXEC, number.max(0) as usize);
    if copy >= 0 && copy != number as isize {
        close(copy as i32);
    }
    copy == number as isize
}

/// The kernel's pollfd.
#[repr(C)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

/// Whether shutdown(2) was called for a socket's receiving side.
pub fn receives_no_more(fd: i32) -> bool {
    const POLLRDHUP: i16 = 0x2000;
    let mut one = PollFd { fd, events: POLLRDHUP, revents: 0 };
    let at_once = [0u64; 2];
    // SAFETY: the kernel reads the entry and the time, and writes the entry.
    unsafe { syscall6(nr::PPOLL, [&raw mut one as usize, 1, at_once.as_ptr() as usize, 0, 0, 0]) };
    one.revents & POLLRDHUP != 0
}

/// Whether something can be received from a socket, or does so in less than a second. A signal ends the wait.
pub fn is_readable_within(fd: i32, ms: u32) -> bool {
    const POLLIN: i16 = 1;
    let mut one = PollFd { fd, events: POLLIN, revents: 0 };
    let mut time = [0, u64::from(ms) * 1_000_000];
    // SAFETY: the kernel reads and writes the entry and the time.
    unsafe { syscall6(nr::PPOLL, [&raw mut one as usize, 1, time.as_mut_ptr() as usize, 0, 0, 0]) > 0 }
}

/// Has the kernel send this process `signal` whenever something arrives at, or closes the other end of, a socket.
pub fn signal_on_input(socket: i32, signal: i32) {
    integer_fcntl(socket, F_SETSIG, signal as usize);
    integer_fcntl(socket, F_SETOWN, pid() as usize);
    integer_fcntl(socket, F_SETFL, O_RDWR | O_ASYNC);
}

/// dup3(2); whether it succeeded.
pub fn dup3(from: i32, to: i32, flags: usize) -> bool {
    // SAFETY: duplicating a descriptor touches no memory.
    unsafe { syscall6(nr::DUP3, [from as usize, to as usize, flags, 0, 0, 0]) >= 0 }
}

/// A new AF_UNIX SOCK_SEQPACKET socket, close-on-exec, at a number that servers seldom use.
pub fn unix_seqpacket() -> Option<i32> {
    const SEQPACKET_CLOEXEC: usize = 5 | O_CLOEXEC;
    new_socket(usize::from(AF_UNIX), SEQPACKET_CLOEXEC).map(move_to_high_fd)
}

/// The two ends of a new AF_UNIX SOCK_SEQPACKET pair, as [`unix_seqpacket`].
pub fn unix_seqpacket_pair() -> Option<[i32; 2]> {
    const SEQPACKET_CLOEXEC: usize = 5 | O_CLOEXEC;
    let mut ends = [-1i32; 2];
    let arguments = [usize::from(AF_UNIX), SEQPACKET_CLOEXEC, 0, ends.as_mut_ptr() as usize, 0, 0];
    // SAFETY: the kernel writes two numbers into the local.
    let result = unsafe { syscall6(nr::SOCKETPAIR, arguments) };
    (result == 0).then(|| ends.map(move_to_high_fd))
}

/// Makes the send buffer of a socket as small as the kernel has it.
pub fn shrink_send_buffer(fd: i32) {
    const SO_SNDBUF: i32 = 7;
    set_option(fd, SO_SNDBUF, 1);
}

/// A new TCP socket, close-on-exec, that may be bound where a listener was closed a moment ago.
pub fn tcp_socket(family: u16) -> Option<i32> {
    const SO_REUSEADDR: i32 = 2;
    let fd = new_socket(usize::from(family), SOCK_STREAM as usize | O_CLOEXEC)?;
    set_option(fd, SO_REUSEADDR, 1);
    Some(fd)
}

/// Sets a whole-number option of level SOL_SOCKET.
fn set_option(fd: i32, name: i32, value: i32) {
    let arguments = [fd as usize, SOL_SOCKET as usize, name as usize, &raw const value as usize, 4, 0];
    // SAFETY: the kernel reads four bytes of the local.
    unsafe { syscall6(nr::SETSOCKOPT, arguments) };
}

fn new_socket(family: usize, kind: usize) -> Option<i32> {
    // SAFETY: socket(2) takes integers.
    let fd = unsafe { syscall6(nr::SOCKET, [family, kind, 0, 0, 0, 0]) };
    (fd >= 0).then_some(fd as i32)
}

/// The longest abstract name that the library gives.
pub const NAME_BYTES: usize = 104;

/// bind(2) of a Unix socket to an abstract name of at most [`NAME_BYTES`].
pub fn bind_abstract(fd: i32, name: &[u8]) {
    let mut address = [0u8; 3 + NAME_BYTES];
    address[0] = AF_UNIX as u8;
    let len = name.len().min(NAME_BYTES);
    for (place, byte) in address.iter_mut().skip(3).zip(name) {
        *place = *byte;
    }
    // SAFETY: the kernel reads `3 + len` bytes of the local.
    unsafe { syscall6(nr::BIND, [fd as usize, address.as_ptr() as usize, 3 + len, 0, 0, 0]) };
}

/// shutdown(2); the result or negative errno.
pub fn shutdown(fd: i32, how: i32) -> isize {
    // SAFETY: shutdown(2) takes integers.
    unsafe { syscall6(nr::SHUTDOWN, [fd as usize, how as usize, 0, 0, 0, 0]) }
}

const SO_RCVTIMEO: i32 = 20;
const SO_SNDTIMEO: i32 = 21;

/// Limits how long sending, and connecting, waits.
pub fn set_send_timeout(fd: i32, ms: u32) {
    let time = [u64::from(ms / 1000), u64::from(ms % 1000) * 1000];
    let at = time.as_ptr() as usize;
    // SAFETY: the kernel reads the 16 bytes of the local.
    unsafe { syscall6(nr::SETSOCKOPT, [fd as usize, SOL_SOCKET as usize, SO_SNDTIMEO as usize, at, 16, 0]) };
}

/// Gives a socket the receive and send time-outs of another one.
pub fn copy_timeouts(from: i32, to: i32) {
    for name in [SO_RCVTIMEO, SO_SNDTIMEO] {
        let time = timeout(from, name);
        if time != [0; 2] {
            let at = time.as_ptr() as usize;
            // SAFETY: the kernel reads the 16 bytes of the local.
            unsafe { syscall6(nr::SETSOCKOPT, [to as usize, SOL_SOCKET as usize, name as usize, at, 16, 0]) };
        }
    }
}

/// How long receiving waits, in milliseconds rounded up; -1: without end.
pub fn receive_timeout(fd: i32) -> i32 {
    match timeout(fd, SO_RCVTIMEO) {
        [0, 0] => -1,
        [seconds, micros] => {
            i32::try_from(seconds.saturating_mul(1000).saturating_add(micros.div_ceil(1000))).unwrap_or(i32::MAX)
        }
    }
}

/// A time-out as a `struct timeval`; zero: none.
fn timeout(fd: i32, name: i32) -> [u64; 2] {
    let (mut time, mut len) = ([0u64; 2], 16u32);
    let (at, room) = (&raw mut time as usize, &raw mut len as usize);
    // SAFETY: the kernel writes at most the 16 bytes of the local, and the length.
    let result = unsafe { syscall6(nr::GETSOCKOPT, [fd as usize, SOL_SOCKET as usize, name as usize, at, room, 0]) };
    if result == 0 { time } else { [0; 2] }
}

/// How many bytes lie in a queue.
pub fn queued_bytes(fd: i32) -> i32 {
    const FIONREAD: usize = 0x541b;
    let mut bytes = 0i32;
    // SAFETY: the kernel writes an int to the local.
    unsafe { syscall6(nr::IOCTL, [fd as usize, FIONREAD, &raw mut bytes as usize, 0, 0, 0]) };
    bytes
}

/// getsockname(2) of any family, cut to the room in `name`; its length.
pub fn socket_name(fd: i32, name: &mut [u8]) -> Option<usize> {
    let mut len = name.len() as u32;
    let at = [fd as usize, name.as_mut_ptr() as usize, &raw mut len as usize, 0, 0, 0];
    // SAFETY: the kernel writes at most `len` bytes into `name`, and the length.
    let result = unsafe { syscall6(nr::GETSOCKNAME, at) };
    (result == 0).then_some((len as usize).min(name.len()))
}

/// Whether close(2) of a socket waits for its bytes, or drops them (SO_LINGER).
pub fn lingers(fd: i32) -> bool {
    const SO_LINGER: usize = 13;
    let (mut linger, mut len) = ([0i32; 2], 8u32);
    let (at, room) = (linger.as_mut_ptr() as usize, &raw mut len as usize);
    // SAFETY: the kernel writes at most eight bytes into the option, and the length.
    let result = unsafe { syscall6(nr::GETSOCKOPT, [fd as usize, SOL_SOCKET as usize, SO_LINGER, at, room, 0]) };
    result != 0 || linger[0] != 0
}

/// A connected stream whose other end is closed.
pub fn ended_stream(nonblocking: bool) -> Option<i32> {
    let flags = O_CLOEXEC | if nonblocking { O_NONBLOCK } else { 0 };
    let mut ends = [-1i32; 2];
    let arguments = [AF_UNIX as usize, SOCK_STREAM as usize | flags, 0, ends.as_mut_ptr() as usize, 0, 0];
    // SAFETY: the kernel writes two descriptors into the local.
    if unsafe { syscall6(nr::SOCKETPAIR, arguments) } < 0 {
        return None;
    }
    close(ends[1]);
    Some(ends[0])
}

/// The number by which the kernel knows a socket, the same in all processes that have it; 0 where there is none.
pub fn socket_cookie(fd: i32) -> u64 {
    const SO_COOKIE: usize = 57;
    let (mut cookie, mut len) = (0u64, 8u32);
    let (at, room) = (&raw mut cookie as usize, &raw mut len as usize);
    // SAFETY: the kernel writes at most eight bytes into the cookie, and the length.
    let result = unsafe { syscall6(nr::GETSOCKOPT, [fd as usize, SOL_SOCKET as usize, SO_COOKIE, at, room, 0]) };
    if result == 0 { cookie } else { 0 }
}

/// A whole-number option of level SOL_SOCKET, as the kernel has it; -1 where there is none.
pub fn socket_option(fd: i32, name: i32) -> i32 {
    let (mut value, mut len) = (-1i32, 4u32);
    let (at, room) = (&raw mut value as usize, &raw mut len as usize);
    // SAFETY: the kernel writes at most four bytes into the value, and the length.
    let result = unsafe { syscall6(nr::GETSOCKOPT, [fd as usize, SOL_SOCKET as usize, name as usize, at, room, 0]) };
    if result == 0 { value } else { -1 }
}

pub fn is_stream(fd: i32) -> bool {
    socket_option(fd, SO_TYPE) == SOCK_STREAM
}

/// Device and inode of the file at a descriptor.
pub fn device_and_inode(fd: i32) -> Option<(u64, u64)> {
    // The kernel's `struct stat` and some more; device and inode come first on every 64-bit architecture.
    let mut stat = [0u64; 32];
    // SAFETY: the kernel writes a `struct stat`, which is shorter than the local.
    let result = unsafe { syscall6(nr::FSTAT, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    (result == 0).then_some((stat[0], stat[1]))
}

/// nanosleep(2) for less than a second; a signal ends it early.
pub fn sleep_ms(ms: u64) {
    let pause: [u64; 2] = [0, ms * 1_000_000];
    // SAFETY: the kernel reads the local, and writes nothing to a null pointer.
    unsafe { syscall6(nr::NANOSLEEP, [pause.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

pub fn yield_now() {
    // SAFETY: sched_yield has no arguments.
    unsafe { syscall6(nr::SCHED_YIELD, [0; 6]) };
}

/// Whether there is no process of this number (any more).
pub fn is_gone(pid: u32) -> bool {
    // SAFETY: signal 0 only asks whether there is such a process.
    unsafe { syscall6(nr::KILL, [pid as usize, 0, 0, 0, 0, 0]) == -(ESRCH as isize) }
}

/// Sends the calling thread SIGPIPE.
pub fn raise_sigpipe() {
    const SIGPIPE: usize = 13;
    // SAFETY: both calls take integers; a handler runs as if the server's own call had failed.
    unsafe {
        let thread = syscall6(nr::GETTID, [0; 6]);
        syscall6(nr::TGKILL, [pid() as usize, thread as usize, SIGPIPE, 0, 0, 0]);
    }
}
