//! System calls: the only module of the program with `unsafe`.
//!
//! Each function is one call, with some bookkeeping, and has owned or borrowed descriptors in its signature. Errors are the
//! kernel's `errno` as [`std::io::Error`].

pub mod clock;
pub mod closer;
pub mod connection;
pub mod cpu;
pub mod epoll;
pub mod exec;
#[cfg(test)]
pub mod fake;
pub mod futex;
pub mod image;
pub mod inspect;
pub mod interrupt;
pub mod mmap;
pub mod process;
pub mod random;
pub mod registrations;
pub mod remote;
pub mod rights;
pub mod scm;
pub mod seccomp;
pub mod seccomp_filter;
pub mod session;
pub mod sock;
pub mod sock_diag;
pub mod sock_open;
pub mod sockets;
pub mod splice;

/// Turns a C return value into a `Result`: `-1` becomes the thread's `errno`.
macro_rules! cvt {
    ($call:expr) => {{
        let value = $call;
        if value == -1 { Err(std::io::Error::last_os_error()) } else { Ok(value) }
    }};
}
pub(crate) use cvt;

/// An error in words, without its number.
pub fn reason(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| nix::errno::Errno::from_raw(errno).desc().to_owned())
}
