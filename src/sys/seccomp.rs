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

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` (linux/audit.h): programs of another architecture keep their system calls.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Bits of a filter's instructions (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The place of an argument's lower half, on a little-endian machine.
const fn argument(at: u32) -> u32 {
    16 + 8 * at
}

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

/// Which calls a filter has notified.
#[derive(Debug, Clone, Copy)]
pub enum Notified {
    Always(i64),
    /// When its second argument is this.
    With(i64, u32),
    /// Unless its second argument is this.
    Without(i64, u32),
}

/// A filter that has some calls notified, and allows all others.
pub fn filter(calls: &[Notified]) -> Vec<sock_filter> {
    let step = |code, k: u32, jt: usize, jf: usize| sock_filter { code, jt: jt as u8, jf: jf as u8, k };
    let len = |call: &Notified| if matches!(call, Notified::Always(_)) { 1 } else { 3 };
    // Of all instructions; "allow" and "notify" are the last two.
    let end = 3 + calls.iter().map(len).sum::<usize>() + 2;
    let mut filter =
        vec![step(LOAD_WORD, ARCH, 0, 0), step(JUMP_IF_EQUAL, ARCHITECTURE, 0, end - 4), step(LOAD_WORD, NUMBER, 0, 0)];
    for call in calls {
        // The number of instructions to pass over, from the last of this call's.
        let notify = end - 1 - (filter.len() + len(call));
        let (number, jumps) = match *call {
            Notified::Always(number) => {
                filter.push(step(JUMP_IF_EQUAL, number as u32, notify, 0));
                continue;
            }
            Notified::With(number, value) => (number, (value, notify, notify - 1)),
            Notified::Without(number, value) => (number, (value, notify - 1, notify)),
        };
        filter.push(step(JUMP_IF_EQUAL, number as u32, 0, 2));
        filter.push(step(LOAD_WORD, argument(1), 0, 0));
        let (value, equal, other) = jumps;
        filter.push(step(JUMP_IF_EQUAL, value, equal, other));
    }
    filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    filter.push(step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0));
    filter
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter returns for a call.
    fn run(filter: &[sock_filter], arch: u32, number: i64, second: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = filter[at];
            at += 1;
            match step.code {
                LOAD_WORD if step.k == NUMBER => loaded = number as u32,
                LOAD_WORD if step.k == ARCH => loaded = arch,
                LOAD_WORD if step.k == argument(1) => loaded = second,
                JUMP_IF_EQUAL => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                RETURN => return step.k,
                code => panic!("{code} {}", step.k),
            }
        }
    }

    #[test]
    fn only_the_calls_named_are_notified() {
        use Notified::{Always, With, Without};
        let (set_flags, send) = (libc::F_SETFL as u32, libc::SHUT_WR as u32);
        let calls = [
            Always(libc::SYS_bind),
            With(libc::SYS_fcntl, set_flags),
            Always(libc::SYS_listen),
            Without(libc::SYS_shutdown, send),
            Always(libc::SYS_accept4),
        ];
        for count in 0..=calls.len() {
            let filter = filter(&calls[..count]);
            for (number, second) in (0..600).flat_map(|number| [0, set_flags, send].map(|second| (number, second))) {
                let notified = calls[..count].iter().any(|call| match *call {
                    Always(call) => call == number,
                    With(call, argument) => call == number && second == argument,
                    Without(call, argument) => call == number && second != argument,
                });
                let expected = if notified { libc::SECCOMP_RET_USER_NOTIF } else { libc::SECCOMP_RET_ALLOW };
                assert_eq!(run(&filter, ARCHITECTURE, number, second), expected, "{count} {number} {second}");
                assert_eq!(run(&filter, 0x4000_0003, number, second), libc::SECCOMP_RET_ALLOW, "i386 {number}");
            }
        }
        let filter = filter(&calls);
        // x32 calls have numbers of their own.
        assert_eq!(run(&filter, ARCHITECTURE, libc::SYS_bind | 0x4000_0000, 0), libc::SECCOMP_RET_ALLOW);
    }
}
