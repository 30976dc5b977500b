//! A shared page of 64-bit counters in a sealed memfd.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::abi::page::PAGE_BYTES;

/// Drops this program's code from memory. Pages that are still needed fault back in from the page cache; start-up-only pages
/// stay out. Saves a megabyte in a process that does little.
pub fn forget_start_up_code() {
    let here = forget_start_up_code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let of = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        // Code is not writable, so no changed page is lost.
        (rest.starts_with("r-xp") && (from..to).contains(&here)).then_some((from, to - from))
    };
    if let Some((from, len)) = maps.lines().find_map(of) {
        // SAFETY: a private mapping of a file without write permission: all its pages are the file's, and dropped ones are
        // read again. It only costs the faults.
        let _ = unsafe { libc::madvise(from as *mut c_void, len, libc::MADV_DONTNEED) };
    }
}

/// A mapping as atomic 64-bit words, shared with every process that has the memfd: of [`PAGE_BYTES`] bytes, unless another
/// size is named.
#[derive(Debug)]
pub struct SharedPage {
    at: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping is only reachable as atomics.
unsafe impl Send for SharedPage {}
// SAFETY: the mapping is only reachable as atomics.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Creates a page of zeroes and the memfd that shares it. Its size is sealed, so that no process can truncate it and so
    /// raise SIGBUS in the others.
    pub fn create() -> io::Result<(Self, OwnedFd)> {
        Self::create_sized(c"roundsman-counters", PAGE_BYTES)
    }

    /// The same with a name and a size in bytes.
    pub fn create_sized(name: &std::ffi::CStr, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, bytes as i64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok((Self::map_sized(fd.as_fd(), bytes)?, fd))
    }

    /// Maps the page behind a memfd made by [`SharedPage::create`] in another process.
    ///
    /// # Errors
    /// As mmap(2); `EINVAL` when the file is shorter than a page.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::map_sized(fd, PAGE_BYTES)
    }

    /// The same for a file of [`SharedPage::create_sized`].
    ///
    /// # Errors
    /// As [`SharedPage::map`].
    pub fn map_sized(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let short = || io::Error::from_raw_os_error(libc::EINVAL);
        let bytes = NonZeroUsize::new(bytes).ok_or_else(short)?;
        if nix::sys::stat::fstat(fd)?.st_size < bytes.get() as i64 {
            return Err(short());
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { at, bytes })
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is so long, page-aligned, lives as long as `self` (sealed against shrinking), and every access
        // on all sides is atomic.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast::<AtomicU64>(), self.bytes.get() / 8) }
    }
}

/// A memory file whose contents no process can change.
pub fn sealed_file(name: &std::ffi::CStr, contents: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(contents)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// The same file at a descriptor of at least `number`, if the file limit allows it.
///
/// # Errors
/// As fcntl(2).
pub fn above(file: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    match fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(number)) {
        // SAFETY: the descriptor is new and owned by nothing else.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(nix::errno::Errno::EINVAL) => Ok(file),
        Err(errno) => Err(errno.into()),
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: `at` is our mapping of that size; no reference outlives `self`.
        let _ = unsafe { munmap(self.at, self.bytes.get()) };
    }
}
