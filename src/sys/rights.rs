//! Runs code with the rights of a server, which may be fewer than ours.
#![allow(unsafe_code)]

use std::io;

use nix::unistd::Uid;

use super::cvt;
use super::process::Credentials;

/// Runs `act` with the rights of a server. If it has fewer than we, a thread of its own first drops our capabilities, and
/// takes the user's rights to files if the servers have a user of their own.
///
/// # Errors
/// Those of `act`; and when the thread cannot be had or rights cannot be dropped, in which case `act` was not run.
pub fn as_server<T: Send>(user: Option<&Credentials>, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let own = nix::unistd::geteuid();
    let user = user.filter(|user| user.uid != own);
    if user.is_none() && (own.is_root() || outlive_exec()) {
        return act();
    }
    std::thread::scope(|scope| {
        let limited = move || {
            user.map_or(Ok(()), take_file_rights)?;
            let kept = if user.is_some() { [0; 2] } else { ambient() };
            let mut sets = capabilities()?;
            sets.iter_mut().zip(kept).for_each(|(sets, kept)| sets.effective &= kept);
            set_capabilities(&sets)?;
            act()
        };
        let thread = std::thread::Builder::new().name("as-server".into()).spawn_scoped(scope, limited)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread with a server's rights has failed")))
    })
}

/// Runs `act` with another user's rights to files, on a thread of its own.
///
/// # Errors
/// As [`as_server`].
pub fn with_files_of<T: Send>(user: &Credentials, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_a_thread(|| take_file_rights(user).and_then(|()| act()))
}

/// Runs `act` with another user's effective id, on a thread of its own. Its real and saved ones stay ours: by these the kernel
/// judges who may signal or trace that thread, and with it us.
///
/// # Errors
/// As setresuid(2), and those of `act`.
pub fn with_effective_user<T: Send>(user: Uid, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    const KEEP: libc::uid_t = libc::uid_t::MAX;
    on_a_thread(|| {
        // SAFETY: the call takes three integers, and concerns the calling thread alone: it is not libc's, which changes all.
        cvt!(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, user.as_raw(), KEEP) })?;
        act()
    })
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("as-user".into()).spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread with a user's rights has failed")))
    })
}

/// Whether a program that we start as the same user has all our capabilities.
fn outlive_exec() -> bool {
    let kept = ambient();
    capabilities().is_ok_and(|sets| sets.iter().zip(kept).all(|(sets, kept)| sets.effective & !kept == 0))
}

/// The capabilities that outlive exec(2) without root.
fn ambient() -> [u32; 2] {
    let mut kept = [0; 2];
    for capability in 0..u64::BITS {
        // SAFETY: the call takes five integers.
        let set = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_IS_SET, capability, 0, 0) };
        if set == 1 {
            kept[(capability / 32) as usize] |= 1 << (capability % 32);
        }
    }
    kept
}

/// Gives the calling thread that user's rights to files. By raw system calls: libc's setgroups would change all threads.
fn take_file_rights(user: &Credentials) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = user.groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: pointer and length describe `groups`, which lives through the call.
    cvt!(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: both take an integer and return the id before, so a second call shows whether the first succeeded. A
    // change from root to another user removes root's rights to files from the effective set (capabilities(7)).
    let (gid, uid) = unsafe {
        libc::syscall(libc::SYS_setfsgid, user.gid.as_raw());
        libc::syscall(libc::SYS_setfsuid, user.uid.as_raw());
        (libc::syscall(libc::SYS_setfsgid, -1), libc::syscall(libc::SYS_setfsuid, -1))
    };
    if gid as u32 != user.gid.as_raw() || uid as u32 != user.uid.as_raw() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// The calling thread's capabilities.
fn capabilities() -> io::Result<[Sets; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the layouts are those of capget(2) in version 3, with two sets; pid 0 is the calling thread.
    cvt!(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(sets)
}

fn set_capabilities(sets: &[Sets; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as above.
    cvt!(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) })?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn another_user_has_none_of_our_rights() {
        use nix::unistd::{Gid, Uid};
        let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
        let nobody = Credentials { uid, gid, groups: vec![gid] };
        if nix::unistd::geteuid().is_root() {
            let effective = || {
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                status.lines().find(|line| line.starts_with("CapEff")).unwrap().to_owned()
            };
            let file = tempfile::tempdir().unwrap();
            let path = file.path().join("socket");
            let refused = as_server(Some(&nobody), || Ok(std::os::unix::net::UnixListener::bind(&path))).unwrap();
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            // Our own rights are unchanged.
            let before = effective();
            let there = as_server(Some(&nobody), || Ok(effective())).unwrap();
            assert_eq!(there, format!("CapEff:\t{:016x}", 0));
            assert_eq!(effective(), before);
        }
    }
}
