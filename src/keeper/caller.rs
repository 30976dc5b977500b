//! A thread that waits for the answer to a system call: its memory and its descriptors, by /proc. The server can change both at
//! any time, so each is read once.

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use crate::abi::attach::ADDRESS_BYTES;
use crate::sys::process::pidfd_open;
use crate::sys::remote;
use crate::sys::seccomp::{Call, Notifications, take_descriptor, thread_open};
use crate::sys::sock::PeerAddress;

/// The inode of a thread's socket; `None` when none is open there or it may not be seen. The file itself is not asked: its file
/// system may hang.
pub fn inode(thread: u32, fd: i32) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{thread}/fd/{fd}")).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a thread's descriptors may not be seen: its process has changed its user.
pub fn is_hidden(thread: u32) -> bool {
    std::fs::read_dir(format!("/proc/{thread}/fd")).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The flags of a descriptor as open(2) has them: O_CLOEXEC, O_NONBLOCK.
pub fn flags(thread: u32, fd: i32) -> i32 {
    let info = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{fd}")).unwrap_or_default();
    info.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok()).unwrap_or(0)
}

/// The process of a thread.
pub fn process_of(thread: u32) -> Option<u32> {
    let status = procfs::process::Process::new(thread as i32).and_then(|process| process.status()).ok()?;
    Some(status.tgid as u32)
}

/// A duplicate of one of its descriptors. Before Linux 6.9, of its process's first thread, which may have others.
///
/// # Errors
/// As pidfd_open(2) and pidfd_getfd(2).
pub fn take(thread: u32, fd: i32) -> io::Result<OwnedFd> {
    let pidfd = thread_open(thread).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => pidfd_open(process_of(thread).unwrap_or(thread)),
        _ => Err(error),
    });
    take_descriptor(&pidfd?, fd)
}

/// Whether a thread has this open file of ours at a descriptor; `None` where the kernel does not say.
pub fn has_file(thread: u32, fd: i32, ours: BorrowedFd<'_>) -> Option<bool> {
    match remote::has_file(thread, fd, ours) {
        Ok(same) => Some(same),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Some(false),
        // No such call, or not permitted.
        Err(_) => None,
    }
}

/// The memory of a thread whose call waits.
#[derive(Debug)]
pub struct Memory<'a> {
    call: &'a Call,
    notifications: &'a Notifications,
    /// Where process_vm_readv(2) is not permitted.
    file: OnceCell<File>,
}

impl<'a> Memory<'a> {
    pub fn of(call: &'a Call, notifications: &'a Notifications) -> Self {
        Self { call, notifications, file: OnceCell::new() }
    }

    /// # Errors
    /// `EACCES` without the right to trace it; `NotFound` when the call waits no more; `EFAULT` or `EIO` for memory that is not
    /// there.
    pub fn read<const N: usize>(&self, at: u64, len: usize) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let part = &mut bytes[..len.min(N)];
        match remote::read_memory(self.call.thread, at, part) {
            Err(error) if is_forbidden(&error) => self.file()?.read_exact_at(part, at)?,
            other => other?,
        }
        // If it still waits, its number was not another thread's meanwhile.
        self.waits().map(|()| bytes)
    }

    /// An address with its length, as accept(2) and getsockname(2) write them.
    ///
    /// # Errors
    /// As [`Memory::read`]; `EINVAL` for a negative length.
    pub fn write_address(&self, address: &PeerAddress, at: u64, len_at: u64) -> io::Result<()> {
        let bytes = &address.bytes[..self.room(len_at)?.min(address.len.into()).min(ADDRESS_BYTES)];
        self.write([(at, bytes), (len_at, &u32::from(address.len).to_ne_bytes())])
    }

    /// A number with its length, as getsockopt(2) writes them.
    ///
    /// # Errors
    /// As [`Memory::write_address`].
    pub fn write_option(&self, value: i32, at: u64, len_at: u64) -> io::Result<()> {
        let bytes = value.to_ne_bytes();
        let bytes = &bytes[..self.room(len_at)?.min(bytes.len())];
        self.write([(at, bytes), (len_at, &(bytes.len() as u32).to_ne_bytes())])
    }

    /// How long the caller's buffer is.
    fn room(&self, len_at: u64) -> io::Result<usize> {
        let room = i32::from_ne_bytes(self.read(len_at, 4)?);
        usize::try_from(room).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }

    fn write(&self, places: [(u64, &[u8]); 2]) -> io::Result<()> {
        match self.file.get() {
            None => remote::write_memory(self.call.thread, places),
            Some(file) => places.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at)),
        }
    }

    fn waits(&self) -> io::Result<()> {
        if self.notifications.waits(self.call.id) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn file(&self) -> io::Result<&File> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", self.call.thread));
        self.waits()?;
        memory.map(|memory| self.file.get_or_init(|| memory))
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
}
