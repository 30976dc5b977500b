//! The next definition of each call behind ours: libc's, or that of another library in between (authbind, an APM agent,
//! a sanitizer). Looked up once, when the library is loaded; where it cannot be, the system call itself.

use core::ffi::c_char;
use core::mem::transmute;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use super::arch::{self, nr, syscall6};
use super::transfer::Part;
use super::{inherited, libc_result};

/// dlsym(3)'s handle for "behind this library", in glibc and musl.
const RTLD_NEXT: usize = usize::MAX;

type Lookup = unsafe extern "C" fn(usize, *const c_char) -> *mut ();

macro_rules! next {
    ($([$($unsafe:tt)?] $name:ident = $symbol:literal, $number:expr, ($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        mod place {
            use super::{AtomicPtr, by_the_kernel};
            $(#[allow(non_upper_case_globals)]
            pub static $name: AtomicPtr<()> = AtomicPtr::new(by_the_kernel::$name as *const () as *mut ());)*
        }

        /// The system calls themselves: until the look-up, and where it finds nothing.
        mod by_the_kernel {
            #[allow(unused_imports)]
            use super::{Part, nr, system_call};
            $(pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
                // SAFETY: as the call demands, by the caller's word.
                unsafe { system_call($number, &[$($argument as usize),*]) as $result }
            })*
        }

        extern "C" fn look_up() {
            inherited::mark_all();
            let dlsym = arch::dlsym();
            if dlsym == 0 {
                return;
            }
            // SAFETY: the symbol of that name is libc's dlsym, whose type this is; the names end with NUL.
            unsafe {
                let dlsym = transmute::<usize, Lookup>(dlsym);
                $(
                    let found = dlsym(RTLD_NEXT, $symbol.as_ptr());
                    if !found.is_null() {
                        place::$name.store(found, Relaxed);
                    }
                )*
            }
        }

        $(
            /// The call, without us.
            #[allow(clippy::missing_safety_doc, reason = "as the call of this name in section 2 of the manual")]
            #[inline]
            pub $($unsafe)? fn $name($($argument: $kind),*) -> $result {
                let next = place::$name.load(Relaxed);
                // SAFETY: the definition behind ours has libc's type for this name, as the one here has; where it can
                // touch memory, this function is unsafe as well.
                unsafe { transmute::<*mut (), unsafe extern "C" fn($($kind),*) -> $result>(next)($($argument),*) }
            }
        )*
    };
}

/// A system call as libc's wrappers do it. None that is listed below gives more than an i32 holds: the kernel moves less
/// than 2 GiB at a time.
///
/// # Safety
/// As the system call demands.
unsafe fn system_call(number: usize, given: &[usize]) -> i32 {
    let mut arguments = [0usize; 6];
    for (place, value) in arguments.iter_mut().zip(given) {
        *place = *value;
    }
    if matches!(number, nr::PREADV2 | nr::PWRITEV2) {
        // The kernel has the offset in two halves, of which the first is all on 64-bit machines.
        arguments.swap(4, 5);
    }
    // SAFETY: by the caller's word.
    libc_result(unsafe { syscall6(number, arguments) })
}

// `unsafe`: it reads or writes memory, or its arguments say whether it does.
next! {
    [unsafe] bind = c"bind", nr::BIND, (fd: i32, address: *const u8, len: u32) -> i32;
    [] listen = c"listen", nr::LISTEN, (fd: i32, backlog: i32) -> i32;
    [unsafe] accept4 = c"accept4", nr::ACCEPT4, (fd: i32, address: *mut u8, len: *mut u32, flags: i32) -> i32;
    [unsafe] connect = c"connect", nr::CONNECT, (fd: i32, address: *const u8, len: u32) -> i32;
    [unsafe] getsockname = c"getsockname", nr::GETSOCKNAME, (fd: i32, address: *mut u8, len: *mut u32) -> i32;
    [unsafe] getpeername = c"getpeername", nr::GETPEERNAME, (fd: i32, address: *mut u8, len: *mut u32) -> i32;
    [unsafe] getsockopt = c"getsockopt", nr::GETSOCKOPT, (fd: i32, level: i32, name: i32, value: *mut u8, len: *mut u32) -> i32;
    [unsafe] setsockopt = c"setsockopt", nr::SETSOCKOPT, (fd: i32, level: i32, name: i32, value: *const u8, len: u32) -> i32;
    [] shutdown = c"shutdown", nr::SHUTDOWN, (fd: i32, how: i32) -> i32;
    [] close = c"close", nr::CLOSE, (fd: i32) -> i32;
    [] dup3 = c"dup3", nr::DUP3, (from: i32, to: i32, flags: i32) -> i32;
    [] close_range = c"close_range", nr::CLOSE_RANGE, (first: u32, last: u32, flags: i32) -> i32;
    [unsafe] fcntl = c"fcntl", nr::FCNTL, (fd: i32, command: i32, argument: usize) -> i32;
    [unsafe] clock_gettime = c"clock_gettime", nr::CLOCK_GETTIME, (clock: i32, time: *mut u64) -> i32;
    [] epoll_create1 = c"epoll_create1", nr::EPOLL_CREATE1, (flags: i32) -> i32;
    [unsafe] ioctl = c"ioctl", nr::IOCTL, (fd: i32, request: usize, argument: usize) -> i32;
    [unsafe] read = c"read", nr::READ, (fd: i32, to: usize, len: usize) -> isize;
    [unsafe] readv = c"readv", nr::READV, (fd: i32, parts: *const Part, count: i32) -> isize;
    [unsafe] preadv2 = c"preadv2", nr::PREADV2, (fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize;
    [unsafe] pwritev2 = c"pwritev2", nr::PWRITEV2, (fd: i32, parts: *const Part, count: i32, at: i64, flags: i32) -> isize;
    [unsafe] recv = c"recv", nr::RECVFROM, (fd: i32, to: usize, len: usize, flags: i32) -> isize;
    [unsafe] recvfrom = c"recvfrom", nr::RECVFROM, (fd: i32, to: usize, len: usize, flags: i32, from: usize, from_len: usize) -> isize;
    [unsafe] recvmsg = c"recvmsg", nr::RECVMSG, (fd: i32, message: usize, flags: i32) -> isize;
    [unsafe] recvmmsg = c"recvmmsg", nr::RECVMMSG, (fd: i32, messages: usize, count: u32, flags: i32, limit: usize) -> i32;
    [unsafe] write = c"write", nr::WRITE, (fd: i32, from: usize, len: usize) -> isize;
    [unsafe] writev = c"writev", nr::WRITEV, (fd: i32, parts: *const Part, count: i32) -> isize;
    [unsafe] send = c"send", nr::SENDTO, (fd: i32, from: usize, len: usize, flags: i32) -> isize;
    [unsafe] sendto = c"sendto", nr::SENDTO, (fd: i32, from: usize, len: usize, flags: i32, to: usize, to_len: u32) -> isize;
    [unsafe] sendmsg = c"sendmsg", nr::SENDMSG, (fd: i32, message: usize, flags: i32) -> isize;
    [unsafe] sendmmsg = c"sendmmsg", nr::SENDMMSG, (fd: i32, messages: usize, count: u32, flags: i32) -> i32;
    [unsafe] sendfile = c"sendfile", nr::SENDFILE, (fd: i32, from: i32, offset: usize, len: usize) -> isize;
    [unsafe] splice = c"splice", nr::SPLICE, (from: i32, at: usize, to: i32, to_at: usize, len: usize, flags: u32) -> isize;
}

/// Run by the loader before the program's own code.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = look_up;
