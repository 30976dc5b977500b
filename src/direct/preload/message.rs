//! sendmsg(2) and recvmsg(2) with descriptors, by raw system calls.

use super::abi::attach::MAX_FDS;
use super::arch::{nr, syscall6};
use super::{errno, next};

/// Descriptors that came with a message; -1: none.
pub type Fds = [i32; MAX_FDS];
/// None.
pub const NO_FDS: Fds = [-1; MAX_FDS];

#[repr(C)]
struct Iovec {
    base: usize,
    len: usize,
}

/// The kernel's msghdr on 64-bit machines.
#[repr(C)]
struct Msghdr {
    name: usize,
    name_len: u32,
    iov: usize,
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: i32,
}

/// One control message.
#[repr(C, align(8))]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fds: Fds,
}

/// The length of a control message's head (`cmsghdr`).
const HEAD: usize = 16;

impl Control {
    /// The descriptors that the kernel put here.
    fn received(&self, control_len: usize) -> Fds {
        let mut fds = NO_FDS;
        // SOL_SOCKET, SCM_RIGHTS.
        if control_len >= HEAD && self.level == 1 && self.kind == 1 {
            let count = (self.len.saturating_sub(HEAD) / 4).min(MAX_FDS);
            for (to, from) in fds.iter_mut().zip(&self.fds).take(count) {
                *to = *from;
            }
        }
        fds
    }
}

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RecvVia {
    /// The system call itself.
    Kernel,
    /// libc's own recvmsg, in which a thread can be cancelled.
    Libc,
}

/// One recvmsg: (result or negative errno, descriptors).
///
/// # Safety
/// `buffer` is writable for `len` bytes.
pub unsafe fn receive(socket: i32, buffer: *mut u8, len: usize, flags: usize, by: RecvVia) -> (isize, Fds) {
    let mut control = Control { len: 0, level: 0, kind: 0, fds: NO_FDS };
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
    // SAFETY: all pointers in the header are to locals, or to `buffer` by the caller's word; libc's msghdr is laid out
    // as the kernel's on 64-bit machines.
    let result = unsafe {
        match by {
            RecvVia::Kernel => syscall6(nr::RECVMSG, [socket as usize, &raw mut message as usize, flags, 0, 0, 0]),
            RecvVia::Libc => match next::recvmsg(socket, &raw mut message as usize, flags as i32) {
                -1 => -(errno() as isize),
                n => n,
            },
        }
    };
    let fds = if result >= 0 { control.received(message.control_len) } else { NO_FDS };
    (result, fds)
}

/// One sendmsg with at most one descriptor; the result or negative errno.
///
/// # Safety
/// `bytes` is readable for `len` bytes.
pub unsafe fn send(socket: i32, bytes: *const u8, len: usize, fd: Option<i32>, flags: usize) -> isize {
    const NOSIGNAL: usize = 0x4000;
    let mut fds = NO_FDS;
    fds[0] = fd.unwrap_or(-1);
    let mut control = Control { len: HEAD + 4, level: 1, kind: 1, fds };
    let mut iov = Iovec { base: bytes as usize, len };
    let message = Msghdr {
        name: 0,
        name_len: 0,
        iov: &raw mut iov as usize,
        iov_len: 1,
        control: if fd.is_some() { &raw mut control as usize } else { 0 },
        control_len: if fd.is_some() { HEAD + 8 } else { 0 },
        flags: 0,
    };
    // SAFETY: all pointers in the header are to locals, or to `bytes` by the caller's word.
    unsafe { syscall6(nr::SENDMSG, [socket as usize, &raw const message as usize, NOSIGNAL | flags, 0, 0, 0]) }
}
