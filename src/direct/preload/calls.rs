//! The calls that stand in front of libc's.

use super::abi::attach::{ADDRESS_BYTES, FAILED, PASS, ask};
use super::abi::payload::{DIRECT_BYTES, Direct, EMPTY};
use super::arch::{nr, syscall6};
use super::{fail, lease, libc_result, table};

const ECONNABORTED: i32 = 103;
const EAGAIN: isize = 11;
const EMFILE: i32 = 24;
const MSG_DONTWAIT: usize = 0x40;
const EINVAL: i32 = 22;
const F_DUPFD: i32 = 0;
const F_DUPFD_CLOEXEC: i32 = 1030;
const F_GETFD: usize = 1;
const F_GETFL: usize = 3;
const F_SETFL: usize = 4;
const O_NONBLOCK: isize = 0o4000;
const O_CLOEXEC: usize = 0o2_000_000;
const O_RDWR: usize = 2;
const SOCK_NONBLOCK: i32 = 0o4000;
const SOCK_CLOEXEC: i32 = 0o2_000_000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const AF_UNIX: i32 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

fn call(nr: usize, arguments: [usize; 6]) -> isize {
    // SAFETY: the arguments are those that the server gave the wrapper of the same call.
    unsafe { syscall6(nr, arguments) }
}

fn fcntl_raw(fd: i32, command: usize, argument: usize) -> isize {
    call(nr::FCNTL, [fd as usize, command, argument, 0, 0, 0])
}

/// The family and the port of an address, if it is one for TCP.
///
/// # Safety
/// `address` is readable for `len` bytes.
unsafe fn tcp_address(address: *const u8, len: u32) -> Option<([u8; ADDRESS_BYTES], u16)> {
    if address.is_null() || !(16..=ADDRESS_BYTES as u32).contains(&len) {
        return None;
    }
    let mut bytes = [0; ADDRESS_BYTES];
    // SAFETY: `len` bytes are readable by the caller's word, and fit.
    unsafe { core::ptr::copy_nonoverlapping(address, bytes.as_mut_ptr(), len as usize) };
    let family = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    matches!(family, AF_INET | AF_INET6).then_some((bytes, port))
}

/// A whole-number option of level SOL_SOCKET, as the kernel has it; -1 for none.
fn option(fd: i32, name: usize) -> i32 {
    let (mut value, mut len) = (-1i32, 4u32);
    let place = (&raw mut value as usize, &raw mut len as usize);
    if call(nr::GETSOCKOPT, [fd as usize, 1, name, place.0, place.1, 0]) == 0 { value } else { -1 }
}

fn is_stream(fd: i32) -> bool {
    const SO_TYPE: usize = 3;
    option(fd, SO_TYPE) == 1
}

fn domain(fd: i32) -> i32 {
    const SO_DOMAIN: usize = 39;
    option(fd, SO_DOMAIN)
}

/// bind(2).
///
/// # Safety
/// As bind(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: i32, address: *const u8, len: u32) -> i32 {
    let natively = || libc_result(call(nr::BIND, [fd as usize, address as usize, len as usize, 0, 0, 0]));
    if table::stand_in(fd).is_some() {
        if domain(fd) == AF_UNIX {
            return fail(EINVAL);
        }
        // Closed where we could not see it, and the number is another socket's now.
        table::forget(fd);
    }
    // SAFETY: as bind(2).
    let Some((bytes, port)) = (unsafe { tcp_address(address, len) }) else { return natively() };
    if port == 0 || !is_stream(fd) {
        return natively();
    }
    // Before the master has the socket: it makes it non-blocking, and the two share that.
    let nonblock = (fcntl_raw(fd, F_GETFL, 0) & O_NONBLOCK) as usize;
    let Some(answer) = lease::ask(ask::BIND, len, bytes, Some(fd)) else { return natively() };
    match answer.reply.kind {
        FAILED => fail(answer.reply.number as i32),
        PASS => natively(),
        _ => take_place(fd, &answer, nonblock),
    }
}

/// Puts the queue in the place of the server's socket.
fn take_place(fd: i32, answer: &lease::Answer, nonblock: usize) -> i32 {
    let [queue, page_fd] = answer.fds;
    let page = if page_fd >= 0 { table::map(page_fd) } else { 0 };
    let cloexec = if fcntl_raw(fd, F_GETFD, 0) & 1 != 0 { O_CLOEXEC } else { 0 };
    // O_NONBLOCK belongs to the open file: the queue's becomes what the server's socket had.
    let placed = queue >= 0
        && page != 0
        && fcntl_raw(queue, F_SETFL, O_RDWR | nonblock) >= 0
        && call(nr::DUP3, [queue as usize, fd as usize, cloexec, 0, 0, 0]) >= 0;
    for leftover in [queue, page_fd] {
        if leftover >= 0 {
            lease::close(leftover);
        }
    }
    let known = placed && table::put_stand_in(fd, answer.reply.number, page, &answer.reply.address).is_some();
    if known { 0 } else { fail(EMFILE) }
}

/// listen(2).
#[unsafe(no_mangle)]
pub extern "C" fn listen(fd: i32, backlog: i32) -> i32 {
    let Some(stand_in) = table::stand_in(fd) else {
        return libc_result(call(nr::LISTEN, [fd as usize, backlog as usize, 0, 0, 0, 0]));
    };
    let listener = stand_in.listener.load(core::sync::atomic::Ordering::Relaxed);
    match lease::ask(ask::LISTEN, listener, [0; ADDRESS_BYTES], None) {
        Some(answer) if answer.reply.kind == FAILED && answer.reply.number != 0 => fail(answer.reply.number as i32),
        _ => 0,
    }
}

/// accept(2).
///
/// # Safety
/// As accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: i32, address: *mut u8, len: *mut u32) -> i32 {
    // SAFETY: as accept(2).
    unsafe { accept4(fd, address, len, 0) }
}

/// accept4(2).
///
/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(fd: i32, address: *mut u8, len: *mut u32, flags: i32) -> i32 {
    if table::stand_in(fd).is_none() {
        let arguments = [fd as usize, address as usize, len as usize, flags as usize, 0, 0];
        return libc_result(call(nr::ACCEPT4, arguments));
    }
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return fail(EINVAL);
    }
    let Some(stand_in) = table::stand_in(fd) else { return fail(EINVAL) };
    let cloexec = if flags & SOCK_CLOEXEC != 0 { MSG_CMSG_CLOEXEC } else { 0 };
    let mut saw_empty = false;
    loop {
        // A receiver without a free descriptor would get the message without its socket: the connection would be lost.
        let free = fcntl_raw(fd, F_DUPFD_CLOEXEC as usize, 0);
        if free < 0 {
            return fail(EMFILE);
        }
        lease::close(free as i32);
        let mut payload = Direct { version: 0, tag: EMPTY, address_len: 0, address: [0; ADDRESS_BYTES], number: 0 };
        let how = if stand_in.waits() { 0 } else { MSG_DONTWAIT };
        // SAFETY: the payload is plain data of DIRECT_BYTES bytes.
        let (n, [socket, _]) = unsafe { lease::receive(fd, (&raw mut payload).cast(), DIRECT_BYTES, cloexec | how) };
        if n == -EAGAIN && how != 0 && fcntl_raw(fd, F_GETFL, 0) & O_NONBLOCK == 0 {
            if saw_empty {
                // It polled, saw something, and must not be left waiting here.
                return fail(ECONNABORTED);
            }
            // It calls with nothing there: it is one that waits in accept, and does not mind empty messages.
            stand_in.waits_from_now();
            continue;
        }
        if n < 0 {
            return libc_result(n);
        }
        if socket < 0 {
            if n == 0 {
                // The master's end.
                return fail(ECONNABORTED);
            }
            saw_empty = true;
            continue;
        }
        if flags & SOCK_NONBLOCK == 0 {
            // The master accepts non-blocking; this server wants it blocking.
            fcntl_raw(socket, F_SETFL, O_RDWR);
        }
        // SAFETY: as accept4(2).
        unsafe { give_address(&payload, address, len) };
        table::received(socket, payload.number);
        return socket;
    }
}

/// # Safety
/// As accept(2): `address` is writable for `*len` bytes, or null.
unsafe fn give_address(payload: &Direct, address: *mut u8, len: *mut u32) {
    if address.is_null() || len.is_null() {
        return;
    }
    let have = usize::from(payload.address_len).min(ADDRESS_BYTES);
    // SAFETY: by the caller's word.
    unsafe {
        core::ptr::copy_nonoverlapping(payload.address.as_ptr(), address, have.min(*len as usize));
        *len = have as u32;
    }
}

/// getsockname(2).
///
/// # Safety
/// As getsockname(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(fd: i32, address: *mut u8, len: *mut u32) -> i32 {
    let Some(stand_in) = table::stand_in(fd).filter(|_| !address.is_null() && !len.is_null()) else {
        return libc_result(call(nr::GETSOCKNAME, [fd as usize, address as usize, len as usize, 0, 0, 0]));
    };
    let bytes = stand_in.address();
    let have = if u16::from_ne_bytes([bytes[0], bytes[1]]) == AF_INET { 16 } else { ADDRESS_BYTES };
    // SAFETY: as getsockname(2).
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), address, have.min(*len as usize));
        *len = have as u32;
    }
    0
}

/// getsockopt(2): a stand-in answers what kind of socket it stands for.
///
/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(fd: i32, level: i32, name: i32, value: *mut i32, len: *mut u32) -> i32 {
    const SOL_SOCKET: i32 = 1;
    let answer = table::stand_in(fd).filter(|_| level == SOL_SOCKET).and_then(|stand_in| {
        let bytes = stand_in.address();
        match name {
            // SO_TYPE, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN
            3 | 30 => Some(1),
            38 => Some(6),
            39 => Some(i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]))),
            _ => None,
        }
    });
    // SAFETY: as getsockopt(2).
    unsafe {
        match answer {
            Some(answer) if !value.is_null() && !len.is_null() && *len >= 4 => {
                *value = answer;
                *len = 4;
                0
            }
            _ => {
                let arguments = [fd as usize, level as usize, name as usize, value as usize, len as usize, 0];
                libc_result(call(nr::GETSOCKOPT, arguments))
            }
        }
    }
}

/// shutdown(2): on a stand-in it must not reach the queue, which the master shares.
#[unsafe(no_mangle)]
pub extern "C" fn shutdown(fd: i32, how: i32) -> i32 {
    match table::stand_in(fd) {
        Some(_) => 0,
        None => libc_result(call(nr::SHUTDOWN, [fd as usize, how as usize, 0, 0, 0, 0])),
    }
}

fn unlisten(listener: Option<u32>) {
    if let Some(listener) = listener {
        let _ = lease::ask(ask::UNLISTEN, listener, [0; ADDRESS_BYTES], None);
    }
}

/// close(2).
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: i32) -> i32 {
    libc_result(close_widened(fd as usize))
}

/// close(2) with the raw result in the form of `syscall`.
pub extern "C" fn close_widened(fd: usize) -> isize {
    let fd = fd as i32;
    if !table::knows(fd) || !table::ours() {
        return lease::close(fd);
    }
    if table::stand_in(fd).is_some() {
        let last = table::remove_stand_in(fd);
        let result = lease::close(fd);
        unlisten(last);
        return result;
    }
    table::closing(fd);
    lease::close(fd)
}

/// dup(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup(fd: i32) -> i32 {
    fcntl(fd, F_DUPFD, 0)
}

/// dup2(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup2(from: i32, to: i32) -> i32 {
    if from == to {
        return if fcntl_raw(from, F_GETFD, 0) < 0 { fail(9) } else { to };
    }
    dup3(from, to, 0)
}

/// dup3(2).
#[unsafe(no_mangle)]
pub extern "C" fn dup3(from: i32, to: i32, flags: i32) -> i32 {
    let duplicate = || call(nr::DUP3, [from as usize, to as usize, flags as usize, 0, 0, 0]);
    if !(table::knows(from) || table::knows(to)) || !table::ours() {
        return libc_result(duplicate());
    }
    table::closing(to);
    let last = table::stand_in(to).and_then(|_| table::remove_stand_in(to));
    let result = duplicate();
    if result >= 0 {
        table::copy(from, to);
    }
    unlisten(last);
    libc_result(result)
}

/// fcntl(2). Variadic in C; on the architectures we serve a third argument lies where a fixed one would.
#[unsafe(no_mangle)]
pub extern "C" fn fcntl(fd: i32, command: i32, argument: usize) -> i32 {
    let result = fcntl_raw(fd, command as usize, argument);
    if result >= 0 && matches!(command, F_DUPFD | F_DUPFD_CLOEXEC) && table::knows(fd) && table::ours() {
        table::copy(fd, result as i32);
    }
    libc_result(result)
}

/// fcntl(2) under its name for large files.
#[unsafe(no_mangle)]
pub extern "C" fn fcntl64(fd: i32, command: i32, argument: usize) -> i32 {
    fcntl(fd, command, argument)
}
