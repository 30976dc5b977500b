//! seccomp user notification: system calls of one process that another one answers (seccomp_unotify(2)).
#![allow(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::sock_filter;
use nix::sys::signal::{SigSet, Signal};

use super::{cvt, scm};

/// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (since Linux 6.6): not in libc for every target.
const SYNC_WAKE_UP: u64 = 1;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Of this notification; never used again.
    pub id: u64,
    /// The calling thread, in our pid namespace; 0 for one that is not in it.
    pub thread: u32,
    pub number: i64,
    pub arguments: [u64; 6],
}

/// Sets no_new_privs and installs a filter on the calling thread; the descriptor returned receives the notifications. Makes
/// system calls only, so it may be called between fork and exec.
///
/// # Errors
/// As prctl(2) and seccomp(2); `EBUSY` where a filter with such a descriptor is there already.
pub fn install(filter: &[sock_filter]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: prctl takes integers here; the kernel copies the filter, which `program` describes, and writes nothing; a
    // descriptor that it returns is new.
    unsafe {
        cvt!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let set = libc::SECCOMP_SET_MODE_FILTER;
        // It confines nothing, so it does not slow down what speculates, as filters do by default before Linux 5.16.
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        let fd = cvt!(libc::syscall(libc::SYS_seccomp, set, flags, &raw const program))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Has a child of [`Command`] install a filter before exec and send the receiving end of its notifications over `to`; it has no
/// signals blocked, and is killed when the calling thread ends.
pub fn prepare(command: &mut Command, filter: Vec<sock_filter>, to: OwnedFd) {
    let parent = std::process::id();
    let hook = move || {
        SigSet::empty().thread_set_mask()?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the signal was armed.
        if nix::unistd::getppid().as_raw() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let notifications = install(&filter)?;
        scm::send_fds(to.as_fd(), &[1], std::iter::once(notifications.as_fd()))
    };
    // SAFETY: the hook runs in the forked child of a process with one thread, and makes only async-signal-safe system calls; it
    // neither allocates nor takes locks.
    unsafe { command.pre_exec(hook) };
}

/// The receiving end of notifications. Errors of the answers: `ENOENT` when the call waits no more, since a signal has
/// interrupted it or its process has ended.
#[derive(Debug)]
pub struct Notifications(OwnedFd);

impl From<OwnedFd> for Notifications {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Notifications {
    /// Waits for the next call.
    ///
    /// # Errors
    /// `EINTR`; `ENOENT` when the call has ended meanwhile, or no process has the filter any more.
    pub fn receive(&self) -> io::Result<Call> {
        // SAFETY: the structure is plain data, to be given zeroed; the kernel fills it in.
        let raw = unsafe {
            let mut raw: libc::seccomp_notif = zeroed();
            cvt!(libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw))?;
            raw
        };
        Ok(Call { id: raw.id, thread: raw.pid, number: raw.data.nr.into(), arguments: raw.data.args })
    }

    /// Whether a call still waits: what was opened by its thread's number is that thread's.
    pub fn waits(&self, id: u64) -> bool {
        // SAFETY: the kernel reads one number.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
    }

    /// Has the kernel do what the call says.
    pub fn go_on(&self, id: u64) -> io::Result<()> {
        self.send(libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        })
    }

    /// The call returns this, or -1 with this errno.
    pub fn answer(&self, id: u64, result: Result<i64, i32>) -> io::Result<()> {
        let (val, error) = result.map_or_else(|errno| (0, -errno), |value| (value, 0));
        self.send(libc::seccomp_notif_resp { id, val, error, flags: 0 })
    }

    fn send(&self, mut answer: libc::seccomp_notif_resp) -> io::Result<()> {
        // SAFETY: the kernel reads the structure, which lives through the call.
        cvt!(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) })?;
        Ok(())
    }

    /// Puts a duplicate of `fd` over a descriptor of the calling process; the call goes on waiting.
    pub fn put_at(&self, id: u64, fd: BorrowedFd<'_>, at: i32, close_on_exec: bool) -> io::Result<()> {
        self.add(id, fd, libc::SECCOMP_ADDFD_FLAG_SETFD, at as u32, close_on_exec).map(drop)
    }

    /// Gives the calling process a duplicate of `fd`; the call returns its number.
    ///
    /// # Errors
    /// Also `EMFILE` when the process has no free descriptor; the call goes on waiting then.
    pub fn give(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<()> {
        self.add(id, fd, libc::SECCOMP_ADDFD_FLAG_SEND, 0, close_on_exec).map(drop)
    }

    fn add(&self, id: u64, fd: BorrowedFd<'_>, flags: libc::c_ulong, at: u32, close_on_exec: bool) -> io::Result<i32> {
        let newfd_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
        let srcfd = fd.as_raw_fd() as u32;
        let mut add = libc::seccomp_notif_addfd { id, flags: flags as u32, srcfd, newfd: at, newfd_flags };
        // SAFETY: the kernel reads the structure, which lives through the call.
        Ok(cvt!(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut add) })?)
    }

    /// Has the kernel switch to whoever receives or waits for an answer, on the same CPU. Returns whether it can.
    pub fn switch_at_once(&self) -> bool {
        // SAFETY: this request takes the number itself.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) == 0 }
    }
}

/// A handle on one thread.
///
/// # Errors
/// As pidfd_open(2); `EINVAL` before Linux 6.9.
pub fn thread_open(thread: u32) -> io::Result<OwnedFd> {
    // PIDFD_THREAD (linux/pidfd.h): not in libc for every target.
    let flags = libc::O_EXCL;
    // SAFETY: the call takes two integers; a descriptor that it returns is new.
    unsafe {
        let fd = cvt!(libc::syscall(libc::SYS_pidfd_open, thread as libc::pid_t, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A duplicate of another process's descriptor.
///
/// # Errors
/// As pidfd_getfd(2); `EPERM` without the right to trace it, or in a container whose profile forbids the call.
pub fn take_descriptor(process: &OwnedFd, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers; a descriptor that it returns is new.
    unsafe {
        let fd = cvt!(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}
