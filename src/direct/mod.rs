//! Direct delivery: the server process itself gets the accepted sockets, through the preload library.

pub mod attach;
pub mod elf;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::mmap;

/// The preload library, built beside this program.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// The library in a file of its own that servers can load.
#[derive(Debug)]
pub struct Preload {
    file: OwnedFd,
}

impl Preload {
    /// Puts the library into a sealed memory file.
    ///
    /// # Errors
    /// As memfd_create(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: mmap::sealed_file(c"roundsman-preload", LIBRARY)? })
    }

    /// The value of LD_PRELOAD: the library in front of what is there already.
    pub fn value(&self) -> String {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        match std::env::var("LD_PRELOAD") {
            Ok(others) if !others.is_empty() => format!("{path}:{others}"),
            _ => path,
        }
    }
}
