//! The library's end of the attach socket.

use core::ffi::c_char;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

use super::abi::attach::{ADDRESS_BYTES, REPLY_BYTES, REQUEST_BYTES, Reply, Request, TOKEN_BYTES, VARIABLE, VERSION};
use super::arch::{nr, pid, syscall6};

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The connection to the master and the process that opened it: one that was forked since needs its own.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Descriptors from here on are seldom looked at by servers that count theirs.
const HIGH: usize = 900;
const F_DUPFD_CLOEXEC: usize = 1030;

/// A decoded answer with the descriptors that came with it (-1: none).
pub struct Answer {
    pub reply: Reply,
    pub fds: [i32; 2],
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

fn connect(place: &Place) -> Option<i32> {
    const SEQPACKET_CLOEXEC: usize = 5 | 0o2_000_000;
    // SAFETY: the address outlives the call; everything else is an integer.
    unsafe {
        let fd = syscall6(nr::SOCKET, [1, SEQPACKET_CLOEXEC, 0, 0, 0, 0]);
        if fd < 0 {
            return None;
        }
        let high = syscall6(nr::FCNTL, [fd as usize, F_DUPFD_CLOEXEC, HIGH, 0, 0, 0]);
        let socket = if high < 0 { fd } else { high } as i32;
        if high >= 0 {
            close(fd as i32);
        }
        let address = place.address.as_ptr() as usize;
        if syscall6(nr::CONNECT, [socket as usize, address, place.address_len, 0, 0, 0]) < 0 {
            close(socket);
            return None;
        }
        Some(socket)
    }
}

#[repr(C)]
struct Iovec {
    base: usize,
    len: usize,
}

/// The kernel's msghdr on 64-bit machines.
#[repr(C)]
pub struct Msghdr {
    pub name: usize,
    pub name_len: u32,
    pub iov: usize,
    pub iov_len: usize,
    pub control: usize,
    pub control_len: usize,
    pub flags: i32,
}

/// One control message with up to two descriptors.
#[repr(C, align(8))]
pub struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fds: [i32; 2],
}

impl Control {
    pub const fn empty() -> Self {
        Self { len: 0, level: 0, kind: 0, fds: [-1, -1] }
    }

    /// The descriptors that the kernel put here.
    pub fn received(&self, control_len: usize) -> [i32; 2] {
        let mut fds = [-1, -1];
        // SOL_SOCKET, SCM_RIGHTS.
        if control_len >= 16 && self.level == 1 && self.kind == 1 {
            let count = (self.len.saturating_sub(16) / 4).min(2);
            for (to, from) in fds.iter_mut().zip(&self.fds).take(count) {
                *to = *from;
            }
        }
        fds
    }
}

/// One recvmsg: (result, descriptors).
///
/// # Safety
/// `buffer` is writable for `len` bytes.
pub unsafe fn receive(socket: i32, buffer: *mut u8, len: usize, flags: usize) -> (isize, [i32; 2]) {
    let mut control = Control::empty();
    let mut iov = Iovec { base: buffer as usize, len };
    let mut message = Msghdr {
        name: 0,
        name_len: 0,
        iov: &raw mut iov as usize,
        iov_len: 1,
        control: &raw mut control as usize,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: all pointers in the header are to locals, or to `buffer` by the caller's word.
    let result = unsafe { syscall6(nr::RECVMSG, [socket as usize, &raw mut message as usize, flags, 0, 0, 0]) };
    let fds = if result >= 0 { control.received(message.control_len) } else { [-1, -1] };
    (result, fds)
}

fn send(socket: i32, request: &Request, fd: Option<i32>) -> isize {
    const NOSIGNAL: usize = 0x4000;
    let mut control = Control { len: 20, level: 1, kind: 1, fds: [fd.unwrap_or(-1), 0] };
    let mut iov = Iovec { base: &raw const *request as usize, len: REQUEST_BYTES };
    let message = Msghdr {
        name: 0,
        name_len: 0,
        iov: &raw mut iov as usize,
        iov_len: 1,
        control: if fd.is_some() { &raw mut control as usize } else { 0 },
        control_len: if fd.is_some() { size_of::<Control>() } else { 0 },
        flags: 0,
    };
    // SAFETY: all pointers in the header are to locals.
    unsafe { syscall6(nr::SENDMSG, [socket as usize, &raw const message as usize, NOSIGNAL, 0, 0, 0]) }
}

/// Asks the master; `None` when there is none (then all is as without this library).
pub fn ask(what: u16, number: u32, address: [u8; ADDRESS_BYTES], fd: Option<i32>) -> Option<Answer> {
    let place = place()?;
    let request = Request { version: VERSION, what, pid: pid(), token: place.token, number, address };
    // A connection that the server has closed (it closes what it does not know) is opened again.
    for _ in 0..2 {
        let known = if OWNER.load(Acquire) == request.pid { SOCKET.load(Acquire) } else { -1 };
        let socket = if known >= 0 { known } else { connect(&place)? };
        SOCKET.store(socket, Release);
        OWNER.store(request.pid, Release);
        if send(socket, &request, fd) >= 0 {
            return wait(socket);
        }
        SOCKET.store(-1, Release);
    }
    None
}

fn wait(socket: i32) -> Option<Answer> {
    let mut reply = Reply { version: 0, kind: 0, number: 0, address: [0; ADDRESS_BYTES] };
    const CLOEXEC: usize = 0x4000_0000;
    loop {
        // SAFETY: `reply` is plain data for which every value of its bytes is valid, and REPLY_BYTES long.
        let (n, fds) = unsafe { receive(socket, (&raw mut reply).cast(), REPLY_BYTES, CLOEXEC) };
        if n == -4 {
            continue;
        }
        if n != REPLY_BYTES as isize || reply.version != VERSION {
            return None;
        }
        return Some(Answer { reply, fds });
    }
}
