//! Processes that outlive their terminal.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the child begin a session of its own, without a terminal and without descriptors of others but the first three: a
/// lock of a shell script would be held for as long as it lives.
pub fn begin_own(command: &mut Command) {
    let hook = || {
        nix::unistd::setsid()?;
        // Not closed here: one of them tells the parent of a failed exec. Kernels before 5.11 leave them open.
        // SAFETY: three numbers; a flag is set on descriptors of this child alone.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two async-signal-safe system calls; it neither allocates nor takes locks.
    unsafe { command.pre_exec(hook) };
}
