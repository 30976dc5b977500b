//! The record of the addresses that PROXY headers named, from the master's side, which makes the file, and looks into it for a
//! connection that goes on with another worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Client;
use crate::abi::payload::Endpoint;
use crate::abi::translations::{FILE_BYTES, Translations};
use crate::sys::mmap::SharedPage;
use crate::sys::sock::{PeerAddress, option};

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

    /// The file behind a descriptor from [`TranslationsFile::create`].
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// # Errors
    /// As fcntl(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What a header named for a connection.
    pub fn client(&self, connection: BorrowedFd<'_>) -> Option<Client> {
        let mut cookie = [0; 8];
        option(connection, libc::SOL_SOCKET, libc::SO_COOKIE, &mut cookie).ok()?;
        let memory = SharedPage::map_sized(self.0.as_fd(), FILE_BYTES).ok()?;
        let known = Translations(memory.words()).get(u64::from_ne_bytes(cookie))?;
        let address = |endpoint: Endpoint| {
            let address = PeerAddress { len: endpoint.len, bytes: endpoint.address };
            address.ip().is_some().then_some(address)
        };
        Some(Client {
            address: address(known.client)?,
            destination: Some(Box::new(address(known.destination)?)),
            key: None,
            foreign: false,
        })
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
