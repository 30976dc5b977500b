//! Random bytes from the kernel.
#![allow(unsafe_code)]

use std::io;

/// Fills a buffer of at most 256 bytes, which getrandom(2) never cuts short.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    loop {
        // SAFETY: the kernel writes at most the length of the slice.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(n) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
