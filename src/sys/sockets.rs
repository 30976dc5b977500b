//! The sockets of a process, by the links in /proc/PID/fd.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::inspect;

/// The processes among `pids` that have one of these sockets open.
pub fn holders(pids: &[u32], inodes: &[u64]) -> Vec<u32> {
    pids.iter().copied().filter(|&pid| sockets(pid).any(|inode| inodes.contains(&inode))).collect()
}

/// The inodes of a process's sockets.
pub fn sockets(pid: u32) -> impl Iterator<Item = u64> {
    inspect::look(pid, || inodes(pid, |_| true)).unwrap_or_default().into_iter()
}

/// The same of its TCP sockets alone; of all where the kernel does not say which those are.
pub fn tcp_sockets(pid: u32) -> impl Iterator<Item = u64> {
    inspect::look(pid, || inodes(pid, may_be_tcp)).unwrap_or_default().into_iter()
}

/// Whether a process or thread has a socket for TCP at a descriptor.
pub fn is_tcp(pid: u32, fd: i32) -> bool {
    let link = format!("/proc/{pid}/fd/{fd}");
    std::fs::read_link(&link).is_ok_and(|target| inode(&target).is_some()) && may_be_tcp(Path::new(&link))
}

/// # Errors
/// When the process is gone, or may not be looked at.
fn inodes(pid: u32, wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for link in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().map(|link| link.path()) {
        match std::fs::read_link(&link) {
            Ok(target) => inodes.extend(inode(&target).filter(|_| wanted(&link))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed meanwhile.
            Err(_) => {}
        }
    }
    Ok(inodes)
}

fn inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// By the extended attribute that all sockets have: the name of the protocol, `TCP` or `TCPv6`.
fn may_be_tcp(link: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(link.as_os_str().as_bytes()) else { return true };
    // The kernel's names have at most 31 bytes.
    let mut name = [0u8; 32];
    let (attribute, buffer) = (c"system.sockprotoname", name.as_mut_ptr().cast());
    // SAFETY: both strings end with NUL, and the buffer is as long as is said.
    let length = unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), buffer, name.len()) };
    length < 0 || name.starts_with(b"TCP")
}
