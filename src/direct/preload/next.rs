//! The next definition of each call behind ours: libc's, or that of another library in between (authbind, an APM agent,
//! a sanitizer). Looked up once, when the library is loaded; where it cannot be, the system call itself.

use core::ffi::c_char;
use core::mem::transmute;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::arch::{self, nr, syscall6};
use super::libc_result;

/// dlsym(3)'s handle for "behind this library", in glibc and musl.
const RTLD_NEXT: usize = usize::MAX;

type Lookup = unsafe extern "C" fn(usize, *const c_char) -> usize;

macro_rules! next {
    ($($name:ident = $symbol:literal, $number:expr, ($($argument:ident: $kind:ty),*);)*) => {
        mod place {
            $(#[allow(non_upper_case_globals)]
            pub static $name: super::AtomicUsize = super::AtomicUsize::new(0);)*
        }

        /// Looks all of them up.
        extern "C" fn look_up() {
            let dlsym = arch::dlsym();
            if dlsym == 0 {
                return;
            }
            // SAFETY: the symbol of that name is libc's dlsym, whose type this is; the names end with NUL.
            unsafe {
                let dlsym = transmute::<usize, Lookup>(dlsym);
                $(place::$name.store(dlsym(RTLD_NEXT, $symbol.as_ptr()), Relaxed);)*
            }
        }

        $(
            /// The call, without us.
            pub fn $name($($argument: $kind),*) -> i32 {
                let next = place::$name.load(Relaxed);
                if next != 0 {
                    // SAFETY: the definition behind ours has libc's type for this name, and gets what the server gave.
                    return unsafe { transmute::<usize, extern "C" fn($($kind),*) -> i32>(next)($($argument),*) };
                }
                let mut arguments = [0usize; 6];
                for (place, value) in arguments.iter_mut().zip([$($argument as usize),*]) {
                    *place = value;
                }
                // SAFETY: the arguments are those that the server gave.
                libc_result(unsafe { syscall6($number, arguments) })
            }
        )*
    };
}

next! {
    bind = c"bind", nr::BIND, (fd: i32, address: *const u8, len: u32);
    listen = c"listen", nr::LISTEN, (fd: i32, backlog: i32);
    accept4 = c"accept4", nr::ACCEPT4, (fd: i32, address: *mut u8, len: *mut u32, flags: i32);
    connect = c"connect", nr::CONNECT, (fd: i32, address: *const u8, len: u32);
    getsockname = c"getsockname", nr::GETSOCKNAME, (fd: i32, address: *mut u8, len: *mut u32);
    getpeername = c"getpeername", nr::GETPEERNAME, (fd: i32, address: *mut u8, len: *mut u32);
    getsockopt = c"getsockopt", nr::GETSOCKOPT, (fd: i32, level: i32, name: i32, value: *mut u8, len: *mut u32);
    setsockopt = c"setsockopt", nr::SETSOCKOPT, (fd: i32, level: i32, name: i32, value: *const u8, len: u32);
    shutdown = c"shutdown", nr::SHUTDOWN, (fd: i32, how: i32);
    close = c"close", nr::CLOSE, (fd: i32);
    dup3 = c"dup3", nr::DUP3, (from: i32, to: i32, flags: i32);
    close_range = c"close_range", nr::CLOSE_RANGE, (first: u32, last: u32, flags: i32);
    fcntl = c"fcntl", nr::FCNTL, (fd: i32, command: i32, argument: usize);
    clock_gettime = c"clock_gettime", nr::CLOCK_GETTIME, (clock: i32, time: *mut u64);
    ioctl = c"ioctl", nr::IOCTL, (fd: i32, request: usize, argument: usize);
}

/// Run by the loader before the program's own code.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = look_up;
