//! The library's end of the attach socket.

use core::ffi::c_char;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

use super::abi::attach::{
    ADDRESS_BYTES, OPTION_BYTES, REPLY_BYTES, REQUEST_BYTES, Reply, Request, STATUS, SocketOption, TOKEN_BYTES,
    VARIABLE, VERSION, ask,
};
use super::arch::{nr, pid, syscall6};
use super::identity::Identity;
use super::message::{self, Fds, RecvVia};
use super::naming::packed;
use super::raw::SOL_SOCKET;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The connection to the master and the process that opened it: one that was forked since needs its own.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static OWNER: AtomicU32 = AtomicU32::new(0);
static FILE: Identity = Identity::none();
/// The process one of whose threads is asking over it; 0: none.
static ASKING: AtomicU32 = AtomicU32::new(0);
/// The process that holds a lease.
static LEASED: AtomicU32 = AtomicU32::new(0);

/// Descriptors from here on are seldom looked at by servers that count theirs.
const HIGH: usize = 900;
const F_DUPFD_CLOEXEC: usize = 1030;

/// A decoded answer with the descriptors that came with it (-1: none).
pub struct Answer {
    pub reply: Reply,
    pub fds: Fds,
}

impl Answer {
    /// An errno, as if the master had said so.
    pub fn failed(errno: i32) -> Self {
        let reply = Reply { version: VERSION, kind: STATUS, number: errno as u32, address: [0; ADDRESS_BYTES] };
        Self { reply, fds: message::NO_FDS }
    }
}

/// Where the master is, from the environment.
struct Place {
    address: [u8; 110],
    address_len: usize,
    token: [u8; TOKEN_BYTES],
}

fn byte(text: *const c_char, at: usize) -> u8 {
    // SAFETY: callers walk a NUL-terminated string from its start and stop at the NUL.
    unsafe { *text.add(at) as u8 }
}

fn variable() -> Option<*const c_char> {
    // SAFETY: libc keeps `environ` a null-terminated list of NUL-terminated strings (or null).
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = *entry;
            let name = VARIABLE.as_bytes();
            if name.iter().enumerate().all(|(at, &wanted)| byte(text, at) == wanted) && byte(text, name.len()) == b'=' {
                return Some(text.add(name.len() + 1));
            }
            entry = entry.add(1);
        }
    }
    None
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn place() -> Option<Place> {
    let text = variable()?;
    // AF_UNIX, then a NUL byte: an abstract name.
    let mut place = Place { address: [0; 110], address_len: 3, token: [0; TOKEN_BYTES] };
    place.address[0] = 1;
    let mut at = 0;
    while byte(text, at) != b':' {
        if byte(text, at) == 0 {
            return None;
        }
        *place.address.get_mut(place.address_len)? = byte(text, at);
        place.address_len += 1;
        at += 1;
    }
    at += 1;
    for slot in &mut place.token {
        let high = digit(byte(text, at))?;
        let low = digit(byte(text, at + 1))?;
        *slot = high << 4 | low;
        at += 2;
    }
    Some(place)
}

/// A raw close, without any bookkeeping.
pub fn close(fd: i32) -> isize {
    // SAFETY: closing a descriptor number touches no memory.
    unsafe { syscall6(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) }
}

/// Moves a descriptor of ours out of the way; close-on-exec.
pub fn out_of_the_way(fd: i32) -> i32 {
    // SAFETY: duplicating a descriptor touches no memory.
    let high = unsafe { syscall6(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, HIGH, 0, 0, 0]) };
    if high < 0 {
        return fd;
    }
    close(fd);
    high as i32
}

fn connect(place: &Place) -> Option<i32> {
    const SEQPACKET_CLOEXEC: usize = 5 | 0o2_000_000;
    // SAFETY: the address outlives the call; everything else is an integer.
    unsafe {
        let fd = syscall6(nr::SOCKET, [1, SEQPACKET_CLOEXEC, 0, 0, 0, 0]);
        if fd < 0 {
            return None;
        }
        let socket = out_of_the_way(fd as i32);
        let address = place.address.as_ptr() as usize;
        if syscall6(nr::CONNECT, [socket as usize, address, place.address_len, 0, 0, 0]) < 0 {
            close(socket);
            return None;
        }
        Some(socket)
    }
}

/// Asks the master; `None` when there is none (then all is as without this library).
pub fn ask(what: u16, number: u32, address: [u8; ADDRESS_BYTES], fd: Option<i32>) -> Option<Answer> {
    let place = place()?;
    let own = pid();
    let request = Request { version: VERSION, what, pid: own, token: place.token, number, address };
    // One at a time over the connection that stays. Whoever finds it taken (another thread, the code that this signal
    // handler interrupted) opens another; a mark that came by fork is nobody's.
    let taken = ASKING.compare_exchange(0, own, AcqRel, Acquire);
    if taken.is_err_and(|by| by == own || ASKING.compare_exchange(by, own, AcqRel, Acquire).is_err()) {
        let socket = connect(&place)?;
        let answer = if send(socket, &request, fd) >= 0 { wait(socket) } else { None };
        close(socket);
        return answer;
    }
    let answer = over_the_one_that_stays(&place, &request, fd);
    ASKING.store(0, Release);
    answer
}

fn over_the_one_that_stays(place: &Place, request: &Request, fd: Option<i32>) -> Option<Answer> {
    // A connection that the server has closed (it closes what it does not know) is opened again; its number may be that
    // of one of the server's own by now, which gets and loses no byte by us.
    for _ in 0..2 {
        let known = if OWNER.load(Acquire) == request.pid { SOCKET.load(Acquire) } else { -1 };
        let socket = if known >= 0 && FILE.is_at(known) {
            known
        } else {
            let new = connect(place)?;
            FILE.remember(new);
            SOCKET.store(new, Release);
            OWNER.store(request.pid, Release);
            new
        };
        if send(socket, request, fd) >= 0 {
            return wait(socket);
        }
        SOCKET.store(-1, Release);
    }
    None
}

fn send(socket: i32, request: &Request, fd: Option<i32>) -> isize {
    // SAFETY: a request is REQUEST_BYTES of plain data.
    unsafe { message::send(socket, (&raw const *request).cast(), REQUEST_BYTES, fd, 0) }
}

fn wait(socket: i32) -> Option<Answer> {
    let mut reply = Reply { version: 0, kind: 0, number: 0, address: [0; ADDRESS_BYTES] };
    const CLOEXEC: usize = 0x4000_0000;
    loop {
        // SAFETY: `reply` is plain data for which every value of its bytes is valid, and REPLY_BYTES long.
        let (n, fds) =
            unsafe { message::receive(socket, (&raw mut reply).cast(), REPLY_BYTES, CLOEXEC, RecvVia::Kernel) };
        if n == -4 {
            continue;
        }
        if n != REPLY_BYTES as isize || reply.version != VERSION {
            return None;
        }
        return Some(Answer { reply, fds });
    }
}

/// Takes a lease, once per process: when the master is gone, however it went, the kernel sends this process its stop
/// signal (fcntl(2): F_SETOWN, F_SETSIG, O_ASYNC). A connection of its own, since every message on it would do that.
pub fn take_lease() {
    const F_SETFL: usize = 4;
    const F_SETOWN: usize = 8;
    const F_SETSIG: usize = 10;
    const O_RDWR_ASYNC: usize = 2 | 0o20_000;
    let own = pid();
    if LEASED.swap(own, AcqRel) == own {
        return;
    }
    let Some(place) = place() else { return };
    let Some(socket) = connect(&place) else { return };
    let token = place.token;
    let request =
        Request { version: VERSION, what: ask::LEASE, pid: own, token, number: 0, address: [0; ADDRESS_BYTES] };
    let answer = if send(socket, &request, None) >= 0 { wait(socket) } else { None };
    let Some(answer) = answer else {
        close(socket);
        return;
    };
    wait_for_the_wake_up_to_end();
    let control = |command: usize, argument: usize| {
        // SAFETY: these commands take integers.
        unsafe { syscall6(nr::FCNTL, [socket as usize, command, argument, 0, 0, 0]) };
    };
    control(F_SETSIG, answer.reply.number as usize);
    control(F_SETOWN, own as usize);
    control(F_SETFL, O_RDWR_ASYNC);
    // It stays open as long as the process.
}

/// The kernel first queues a message and then wakes its reader. A reader that was there already can be so quick that the
/// lease is armed in between: the wake-up would then be the stop signal, for a server that has just started (one in a
/// thousand under load). The master answers one request after the other, so when it answers this one, which asks for
/// an option of a listener that does not exist, its last call has ended.
fn wait_for_the_wake_up_to_end() {
    const SO_TYPE: i32 = 3;
    let nothing = SocketOption { level: SOL_SOCKET, name: SO_TYPE, len: OPTION_BYTES as u32, value: [0; OPTION_BYTES] };
    let _ = ask(ask::GET_OPTION, u32::MAX, packed(&nothing), None);
}
