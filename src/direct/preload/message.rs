//! sendmsg(2) and recvmsg(2) with descriptors.

use super::abi::attach::{MAX_FDS, Reply, Request};
use super::abi::payload::{Direct, DirectTranslated};
use super::arch::{nr, syscall6};
use super::{errno, next};

/// Descriptors that came with a message; -1 where there are fewer.
pub type Fds = [i32; MAX_FDS];
pub const NO_FDS: Fds = [-1; MAX_FDS];

/// What may be sent and received as its bytes.
///
/// # Safety
/// Every value of its bytes is valid, and it has no padding.
pub unsafe trait Plain {}
// SAFETY: `repr(C)`, integers and arrays of them only, and sizes that leave no gap (`sizes_leave_no_gap` below).
unsafe impl Plain for Request {}
// SAFETY: as above.
unsafe impl Plain for Reply {}
// SAFETY: as above.
unsafe impl Plain for Direct {}
// SAFETY: as above.
unsafe impl Plain for DirectTranslated {}

#[repr(C)]
struct Iovec {
    base: usize,
    len: usize,
}

/// The kernel's msghdr on 64-bit machines, and the one of both libcs.
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

#[repr(C, align(8))]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    fds: Fds,
}

/// The length of a control message's head (`cmsghdr`).
const HEAD: usize = 16;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

impl Control {
    fn received(&self, control_len: usize) -> Fds {
        let mut fds = NO_FDS;
        if control_len >= HEAD && self.level == SOL_SOCKET && self.kind == SCM_RIGHTS {
            let count = (self.len.saturating_sub(HEAD) / 4).min(MAX_FDS);
            for (to, from) in fds.iter_mut().zip(&self.fds).take(count) {
                *to = *from;
            }
        }
        fds
    }
}

/// Who waits for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RecvVia {
    /// The system call itself.
    Kernel,
    /// libc's own recvmsg, in which a thread can be cancelled.
    Libc,
}

/// One recvmsg: (result or negative errno, descriptors).
pub fn receive<T: Plain>(socket: i32, to: &mut T, flags: usize, by: RecvVia) -> (isize, Fds) {
    let mut control = Control { len: 0, level: 0, kind: 0, fds: NO_FDS };
    let mut iov = Iovec { base: &raw mut *to as usize, len: size_of::<T>() };
    let mut message = Msghdr {
        name: 0,
        name_len: 0,
        iov: &raw mut iov as usize,
        iov_len: 1,
        control: &raw mut control as usize,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: the header points to locals and to `to`, for which every value of its bytes is valid.
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
pub fn send<T: Plain>(socket: i32, from: &T, fd: Option<i32>, flags: usize) -> isize {
    const NOSIGNAL: usize = 0x4000;
    let mut fds = NO_FDS;
    fds[0] = fd.unwrap_or(-1);
    let mut control = Control { len: HEAD + 4, level: SOL_SOCKET, kind: SCM_RIGHTS, fds };
    let mut iov = Iovec { base: &raw const *from as usize, len: size_of::<T>() };
    let message = Msghdr {
        name: 0,
        name_len: 0,
        iov: &raw mut iov as usize,
        iov_len: 1,
        control: if fd.is_some() { &raw mut control as usize } else { 0 },
        control_len: if fd.is_some() { HEAD + 8 } else { 0 },
        flags: 0,
    };
    // SAFETY: the header points to locals and to `from`, which has no padding that could be uninitialised.
    unsafe { syscall6(nr::SENDMSG, [socket as usize, &raw const message as usize, NOSIGNAL | flags, 0, 0, 0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_that_came_count() {
        let came = |len, level, kind| Control { len, level, kind, fds: [7, 8, 9, 10] }.received(HEAD + 20);
        assert_eq!(came(HEAD + 4, SOL_SOCKET, SCM_RIGHTS), [7, -1, -1, -1]);
        assert_eq!(came(HEAD + 12, SOL_SOCKET, SCM_RIGHTS), [7, 8, 9, -1]);
        assert_eq!(came(usize::MAX, SOL_SOCKET, SCM_RIGHTS), [7, 8, 9, 10]);
        // A shorter head than a head, credentials, another level.
        assert_eq!(came(0, SOL_SOCKET, SCM_RIGHTS), NO_FDS);
        assert_eq!(came(HEAD + 12, SOL_SOCKET, 2), NO_FDS);
        assert_eq!(came(HEAD + 12, 41, SCM_RIGHTS), NO_FDS);
        assert_eq!(Control { len: HEAD + 4, level: 1, kind: 1, fds: [7, 8, 9, 10] }.received(0), NO_FDS);
    }

    #[test]
    fn sizes_leave_no_gap() {
        assert_eq!(size_of::<Request>(), 2 + 2 + 4 + 16 + 4 + 28);
        assert_eq!(size_of::<Reply>(), 2 + 2 + 4 + 28);
        assert_eq!(size_of::<DirectTranslated>(), size_of::<Direct>() + 2 + 28 + 2);
    }
}
