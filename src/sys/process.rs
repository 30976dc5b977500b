//! Processes: what a child does between fork and exec, signals by pidfd, limits, the tree below a process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};

use super::cvt;

/// Soft and hard RLIMIT_NOFILE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFile {
    /// In force.
    pub soft: u64,
    /// The most that an unprivileged process may raise it to.
    pub hard: u64,
}

/// A process's user and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: Uid,
    pub gid: Gid,
    pub groups: Vec<Gid>,
}

impl Credentials {
    /// Another user than our own, without supplementary groups; `None` for our own.
    pub fn of(uid: u32) -> Option<Self> {
        let other = uid != nix::unistd::geteuid().as_raw();
        other.then(|| Self { uid: Uid::from_raw(uid), gid: nix::unistd::getegid(), groups: Vec::new() })
    }

    /// A process's effective ones; `None` when it is gone.
    pub fn of_process(pid: u32) -> Option<Self> {
        let status = procfs::process::Process::new(pid as i32).and_then(|process| process.status()).ok()?;
        let groups = status.groups.iter().copied().map(Gid::from_raw).collect();
        Some(Self { uid: Uid::from_raw(status.euid), gid: Gid::from_raw(status.egid), groups })
    }
}

/// Changes that a child makes before exec, in addition to [`Command`]'s.
#[derive(Debug, Clone)]
pub struct ChildSetup {
    /// Sent to the child by the kernel when the spawning thread (the master's control thread) dies.
    pub death_signal: Signal,
    /// The file limit to set, usually the one that the master was started with.
    pub nofile: Option<NoFile>,
    pub user: Option<Credentials>,
    /// A descriptor to duplicate to [`CHANNEL`].
    pub channel: Option<RawFd>,
    /// A descriptor that the child keeps, at the same number.
    pub kept: Option<RawFd>,
}

/// The IPC channel's descriptor in a Node worker. Node makes descriptors up to 15 close-on-exec at its start, so a low number
/// keeps a worker's own children from holding the channel open.
pub const CHANNEL: RawFd = 3;

/// Occupies [`CHANNEL`] in this process, so that it is not used for something that a child would lose to dup2(2).
pub fn reserve_channel() -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, fcntl};
    let null = File::open("/dev/null")?;
    let fd = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(CHANNEL))?;
    // SAFETY: the descriptor is new and owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the child change to its own session and apply `setup`.
///
/// The parent-death signal is tied to the *thread* that spawns, so only the control thread may spawn such a child.
pub fn prepare(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    let hook = move || {
        nix::unistd::setsid()?;
        if let Some(user) = &setup.user {
            nix::unistd::setgroups(&user.groups)?;
            nix::unistd::setgid(user.gid)?;
            nix::unistd::setuid(user.uid)?;
        }
        // After the change of user, which disarms it.
        nix::sys::prctl::set_pdeathsig(setup.death_signal)?;
        // The parent may have died before the signal was armed.
        if nix::unistd::getppid().as_raw() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        super::closer::close_copies();
        if let Some(channel) = setup.channel {
            // The copy is not close-on-exec. The child needs nothing at that number: see reserve_channel.
            // SAFETY: two numbers; the descriptor at the second is this child's own and not used again.
            cvt!(unsafe { libc::dup2(channel, CHANNEL) })?;
        }
        if let Some(kept) = setup.kept {
            // SAFETY: clears close-on-exec of a number, in this child alone.
            cvt!(unsafe { libc::fcntl(kept, libc::F_SETFD, 0) })?;
        }
        if let Some(limit) = setup.nofile {
            setrlimit(Resource::RLIMIT_NOFILE, limit.soft, limit.hard)?;
        }
        Ok(())
    };
    // SAFETY: the hook runs in the forked child of a threaded process and makes only async-signal-safe system
    // calls; it neither allocates nor takes locks (errors are built from an errno, the groups were listed before).
    // setgroups and the like signal the other threads of a process; a forked child has none.
    unsafe { command.pre_exec(hook) };
}

/// Raises the soft file limit to the hard one. Returns the limits before.
pub fn raise_nofile() -> io::Result<NoFile> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(NoFile { soft, hard })
}

/// A handle on a process that stays valid when its pid is reused.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; a returned descriptor is new and unowned.
    unsafe {
        let fd = cvt!(libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Sends a signal through a pidfd.
///
/// # Errors
/// `ESRCH` when the process is gone, `EPERM` when it is not ours.
pub fn pidfd_signal(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    // SAFETY: a null siginfo makes the kernel fill it in as for kill(2).
    cvt!(unsafe {
        let none = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, none, 0)
    })?;
    Ok(())
}

/// Sends a signal to a child of ours, if it is there.
pub fn signal(pid: u32, signal: Signal) {
    #[cfg(test)]
    if super::fake::is_staged() {
        return super::fake::signal(pid, signal);
    }
    send(pid, signal);
}

/// Root without CAP_KILL, as in some containers, may not signal other users' processes; their users may.
fn send(pid: u32, signal: Signal) {
    let Ok(pidfd) = pidfd_open(pid) else { return };
    if pidfd_signal(&pidfd, signal).is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
        && let Some(owner) = Credentials::of_process(pid)
    {
        let _ = super::rights::with_effective_user(owner.uid, || pidfd_signal(&pidfd, signal));
    }
}

/// Whether a process has ended, reaped or not.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    ends_within(pidfd, Duration::ZERO)
}

/// Waits for the end of a process, for so long at most.
pub fn ends_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut watched, limit).is_ok_and(|ready| ready > 0)
}

/// Has orphaned descendants become children of this process, so that none escapes a stop.
pub fn become_subreaper() {
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// `root` and all live processes below it, by the parent links in /proc.
pub fn tree(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    if let Ok(processes) = procfs::process::all_processes() {
        for stat in processes.flatten().filter_map(|process| process.stat().ok()) {
            parents.push((stat.pid as u32, stat.ppid as u32, stat.session as u32));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        for &(pid, ppid, session) in &parents {
            // A daemonized grandchild loses its parent but keeps the session given to the command.
            let ours = ppid == parent || (session == root && pid != root);
            if ours && !found.contains(&pid) {
                found.push(pid);
            }
        }
        at += 1;
    }
    found
}

/// The same as [`tree`] without reading every process of the machine, if the kernel lists a process's children.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    // Orphans have become our own children.
    let Some(own) = children_of(std::process::id()) else { return tree(root) };
    let session = |pid: u32| procfs::process::Process::new(pid as i32).and_then(|process| process.stat());
    found.extend(
        own.into_iter().filter(|&pid| pid != root && session(pid).is_ok_and(|stat| stat.session as u32 == root)),
    );
    let mut at = 0;
    while at < found.len() {
        let Some(children) = children_of(found[at]) else { return tree(root) };
        found.extend(children);
        at += 1;
    }
    found
}

/// A process's children, none when it is gone; `None` if the kernel does not list them (CONFIG_PROC_CHILDREN).
fn children_of(pid: u32) -> Option<Vec<u32>> {
    let mut children = Vec::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Some(children) };
    for thread in threads.flatten().map(|thread| thread.path()) {
        match std::fs::read_to_string(thread.join("children")) {
            Ok(list) => children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // The thread has ended meanwhile.
            Err(_) if !thread.exists() => {}
            Err(_) => return None,
        }
    }
    Some(children)
}

/// The most parents that [`is_below`] follows.
const MAX_PARENTS: usize = 32;

/// Whether a process is one of `roots`, below one of them, or in the session of one (which a daemonized grandchild keeps).
/// Follows the parents upwards, [`MAX_PARENTS`] at most.
pub fn is_below(pid: u32, roots: &[u32]) -> bool {
    let (own, mut pid) = (std::process::id(), pid);
    for _ in 0..MAX_PARENTS {
        if roots.contains(&pid) {
            return true;
        }
        if pid <= 1 || pid == own {
            return false;
        }
        let stat = procfs::process::Process::new(pid as i32).and_then(|process| process.stat());
        let Ok(stat) = stat else { return false };
        if roots.contains(&(stat.session as u32)) {
            return true;
        }
        pid = stat.ppid as u32;
    }
    false
}

/// Whether a process has a handler for a signal; false when it is gone.
pub fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
    caught.is_some_and(|caught| caught >> (signal as i32 - 1) & 1 != 0)
}

/// Sends SIGKILL to `root` and all processes below it.
pub fn kill_tree(root: u32) {
    #[cfg(test)]
    if super::fake::is_staged() {
        return super::fake::signal(root, Signal::SIGKILL);
    }
    let mut killed = Vec::new();
    // The kernel's list may lack a child while another one ends; once its parent is dead it is ours, and listed.
    for _ in 0..2 {
        let found = descendants(root);
        for &pid in found.iter().filter(|pid| !killed.contains(*pid)) {
            send(pid, Signal::SIGKILL);
        }
        if found.len() == 1 {
            return;
        }
        killed = found;
    }
}

/// Resident memory of a process in bytes, 0 when it is gone.
pub fn rss_bytes(pid: u32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|line| line.split(' ').nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4096)
}

/// Takes the worker's channel from its standard input.
pub fn take_stdin() -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    // The original would keep the channel open.
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(channel)
}

/// Makes the calling thread a SCHED_BATCH one: when all CPUs are busy it does not preempt others, finds more work when it
/// runs, and switches less. Measured at saturation: a quarter less CPU time per connection and a lower p99. With an idle CPU
/// it changes nothing. Children of other threads are unaffected.
pub fn prefer_batches() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: pid 0 is the calling thread; the parameters live through the call. The raw call, since musl's wrapper
    // is a stub. A refusal (a strict seccomp filter) costs only the gain.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const parameters) };
}

/// Names the calling thread (and so a single-threaded process) as top and ps show it; at most 15 bytes.
pub fn set_thread_name(name: &std::ffi::CStr) {
    // Cosmetic.
    let _ = nix::sys::prctl::set_name(name);
}

/// Whether a file has an extended attribute.
pub fn has_attribute(path: &std::path::Path, name: &std::ffi::CStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end with NUL; a null value of length 0 asks for the length only.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// The session of a process and the name of its program, also when it has ended and is not reaped.
pub fn session_and_name(pid: u32) -> Option<(u32, String)> {
    let stat = procfs::process::Process::new(pid as i32).and_then(|process| process.stat()).ok()?;
    Some((stat.session as u32, stat.comm))
}

/// When a process began, in the clock's ticks since boot; `None` when there is none.
pub fn started(pid: u32) -> Option<u64> {
    procfs::process::Process::new(pid as i32).and_then(|process| process.stat()).ok().map(|stat| stat.starttime)
}

/// Processes whose parent is this one.
pub fn children() -> Vec<u32> {
    #[cfg(test)]
    if super::fake::is_staged() {
        return Vec::new();
    }
    let own = std::process::id();
    let stat = |pid: u32| procfs::process::Process::new(pid as i32).and_then(|process| process.stat());
    // Twice: the list may lack a child while another one ends.
    let (Some(mut listed), Some(again)) = (children_of(own), children_of(own)) else {
        let all = procfs::process::all_processes().into_iter().flatten().flatten();
        let stats = all.filter_map(|process| process.stat().ok());
        return stats.filter(|stat| stat.ppid as u32 == own && stat.state != 'Z').map(|stat| stat.pid as u32).collect();
    };
    listed.extend(again);
    listed.sort_unstable();
    listed.dedup();
    listed.retain(|&pid| stat(pid).is_ok_and(|stat| stat.state != 'Z'));
    listed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn wait_until(holds: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < until, "not in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_alive(pid: u32) -> bool {
        let stat = procfs::process::Process::new(pid as i32).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.state != 'Z')
    }

    #[test]
    fn a_tree_is_killed_with_those_in_sessions_of_their_own() {
        let script = "sleep 600 & setsid sleep 600 & sh -c 'sleep 600 & wait' & wait";
        let mut root = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        wait_until(|| descendants(root.id()).len() == 5);
        let (mut few, mut all) = (descendants(root.id()), tree(root.id()));
        few.sort_unstable();
        all.sort_unstable();
        assert_eq!(few, all);
        kill_tree(root.id());
        root.wait().unwrap();
        wait_until(|| !few.iter().any(|&pid| is_alive(pid)));
    }
}
