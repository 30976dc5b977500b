//! The record of the addresses that PROXY headers named, from the master's side, which makes the file and never looks into it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::abi::translations::FILE_BYTES;
use crate::sys::mmap::SharedPage;

/// The memory file of a worker's record.
#[derive(Debug)]
pub struct TranslationsFile(OwnedFd);

impl TranslationsFile {
    /// # Errors
    /// As memfd_create(2) and mmap(2).
    pub fn create() -> io::Result<Self> {
        let (_, fd) = SharedPage::create_sized(c"roundsman-addresses", FILE_BYTES)?;
        Ok(Self(fd))
    }
}

impl AsFd for TranslationsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "translations_tests.rs"]
mod tests;
