//! A few raw calls that several parts need.

use super::abi::attach::ADDRESS_BYTES;
use super::arch::{nr, syscall6};
use super::table::{AF_INET, AF_INET6, Address};

pub const EINVAL: i32 = 22;
pub const EAGAIN: i32 = 11;
pub const EMFILE: i32 = 24;
pub const ECONNABORTED: i32 = 103;
pub const EADDRINUSE: i32 = 98;
pub const ENOPROTOOPT: i32 = 92;
pub const EBADF: i32 = 9;
pub const EPIPE: i32 = 32;
pub const EISCONN: i32 = 106;
pub const ENOTCONN: i32 = 107;

pub const F_DUPFD: i32 = 0;
pub const F_GETFD: i32 = 1;
pub const F_GETFL: i32 = 3;
pub const F_SETFL: i32 = 4;
pub const F_DUPFD_CLOEXEC: i32 = 1030;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_CLOEXEC: usize = 0o2_000_000;
pub const O_RDWR: usize = 2;

pub const SOL_SOCKET: i32 = 1;
pub const AF_UNIX: u16 = 1;

/// A system call.
pub fn call(nr: usize, arguments: [usize; 6]) -> isize {
    // SAFETY: callers pass what the server gave to the wrapper of the same call, or pointers to locals.
    unsafe { syscall6(nr, arguments) }
}

/// fcntl(2) with an integer.
pub fn fcntl(fd: i32, command: i32, argument: usize) -> isize {
    call(nr::FCNTL, [fd as usize, command as usize, argument, 0, 0, 0])
}

/// A whole-number option of level SOL_SOCKET, as the kernel has it; -1 for none.
pub fn option(fd: i32, name: usize) -> i32 {
    let (mut value, mut len) = (-1i32, 4u32);
    let place = (&raw mut value as usize, &raw mut len as usize);
    if call(nr::GETSOCKOPT, [fd as usize, SOL_SOCKET as usize, name, place.0, place.1, 0]) == 0 { value } else { -1 }
}

/// SO_TYPE is SOCK_STREAM.
pub fn is_stream(fd: i32) -> bool {
    option(fd, 3) == 1
}

/// Copies an address to where a server wants it, cut to its room, as the kernel does.
///
/// # Safety
/// As accept(2): `to` is writable for `*len` bytes, or null.
pub unsafe fn give_address(address: &Address, to: *mut u8, len: *mut u32) {
    if to.is_null() || len.is_null() {
        return;
    }
    let have = (address.len as usize).min(ADDRESS_BYTES);
    // SAFETY: by the caller's word; at most `*len` and at most ADDRESS_BYTES bytes are copied.
    unsafe {
        core::ptr::copy_nonoverlapping(address.bytes.as_ptr(), to, have.min(*len as usize));
        *len = have as u32;
    }
}

/// An address in another family: IPv4 as v4-mapped IPv6, and the reverse. An IPv6 client has no IPv4 address: a server
/// that only knows IPv4 sees 0.0.0.0 and the client's port.
pub fn shown_as(address: &Address, family: u16) -> Address {
    let mut shown = Address { bytes: [0; ADDRESS_BYTES], len: 0 };
    let (from, to) = (&address.bytes, &mut shown.bytes);
    to[..2].copy_from_slice(&family.to_ne_bytes());
    to[2..4].copy_from_slice(&from[2..4]);
    match (address.family(), family) {
        (AF_INET6, AF_INET) => {
            const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            if from[8..20] == MAPPED {
                to[4..8].copy_from_slice(&from[20..24]);
            }
            shown.len = 16;
        }
        (AF_INET, AF_INET6) => {
            to[18] = 0xff;
            to[19] = 0xff;
            to[20..24].copy_from_slice(&from[4..8]);
            shown.len = ADDRESS_BYTES as u32;
        }
        _ => return *address,
    }
    shown
}
