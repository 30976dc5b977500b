//! Which open file is at a descriptor. A server may close descriptors that it does not know (closefrom(3), a loop over all
//! numbers, a raw system call), and the numbers become other files': what the library keeps for later is looked at
//! before it is used.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::raw::device_and_inode;

/// Device and inode of a file that was at a descriptor once.
pub struct Identity {
    device: AtomicU64,
    inode: AtomicU64,
}

impl Identity {
    /// Of no file: no device has the number 0.
    pub const fn none() -> Self {
        Self { device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    pub fn remember(&self, fd: i32) {
        let (device, inode) = device_and_inode(fd).unwrap_or((0, 0));
        self.device.store(device, Relaxed);
        self.inode.store(inode, Relaxed);
    }

    /// Whether the remembered file is at this descriptor. Costs one system call.
    pub fn is_at(&self, fd: i32) -> bool {
        device_and_inode(fd).is_some_and(|file| self.is(file))
    }

    /// Whether the remembered file has this device and inode.
    pub fn is(&self, (device, inode): (u64, u64)) -> bool {
        (self.device.load(Relaxed), self.inode.load(Relaxed)) == (device, inode)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn another_file_at_the_number_is_noticed() -> io::Result<()> {
        let (zero, null) = (File::open("/dev/zero")?, File::open("/dev/null")?);
        let identity = Identity::none();
        assert!(!identity.is_at(zero.as_raw_fd()) && !identity.is_at(-1));
        identity.remember(zero.as_raw_fd());
        assert!(identity.is_at(zero.as_raw_fd()) && identity.is_at(zero.try_clone()?.as_raw_fd()));
        assert!(!identity.is_at(null.as_raw_fd()) && !identity.is_at(-1));
        identity.remember(-1);
        assert!(!identity.is_at(-1), "a closed descriptor is no file");
        Ok(())
    }
}
