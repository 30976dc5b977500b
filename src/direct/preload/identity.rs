//! Which open file is at a descriptor. A server may close descriptors that it does not know (closefrom(3), a loop over all
//! numbers, a raw system call), and the numbers become other files': what the library keeps for later is looked at
//! before it is used.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::arch::nr;
use super::raw::call;

/// Words of the kernel's `struct stat`, and some more; device and inode come first on every 64-bit architecture.
const STAT_WORDS: usize = 32;

/// Device and inode of a file that was at a descriptor once.
pub struct Identity {
    device: AtomicU64,
    inode: AtomicU64,
}

/// Device and inode of the file at a descriptor now.
fn at(fd: i32) -> Option<(u64, u64)> {
    let mut stat = [0u64; STAT_WORDS];
    let done = call(nr::FSTAT, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) == 0;
    done.then_some((stat[0], stat[1]))
}

impl Identity {
    /// Of no file: no device has the number 0.
    pub const fn none() -> Self {
        Self { device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    /// Remembers the file that is at a descriptor.
    pub fn remember(&self, fd: i32) {
        let (device, inode) = at(fd).unwrap_or((0, 0));
        self.device.store(device, Relaxed);
        self.inode.store(inode, Relaxed);
    }

    /// Whether the remembered file is at this descriptor. Costs one system call.
    pub fn is_at(&self, fd: i32) -> bool {
        at(fd) == Some((self.device.load(Relaxed), self.inode.load(Relaxed)))
    }
}
