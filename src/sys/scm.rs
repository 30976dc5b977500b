//! Descriptors over Unix sockets (SCM_RIGHTS), without an allocation per message.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::cvt;

/// The kernel's bound on descriptors in one message (SCM_MAX_FD in include/net/scm.h).
pub const MAX_FDS: usize = 253;

/// Of a socket with SO_PASSPIDFD (since Linux 6.5; linux/socket.h), which a server can set on its end of a queue.
const SCM_PIDFD: libc::c_int = 4;

/// Room for one SCM_RIGHTS header with [`MAX_FDS`] descriptors and one SCM_CREDENTIALS, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct CmsgBuffer([MaybeUninit<u8>; CMSG_LEN]);
const CMSG_LEN: usize = 16 + MAX_FDS * size_of::<RawFd>() + 4 + 32;

/// The result of [`recv_fds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Payload bytes written to the buffer; 0 on a SEQPACKET socket is end of file.
    pub len: usize,
    /// MSG_CTRUNC: descriptors of the message were lost for lack of room.
    pub truncated: bool,
    /// On a socket with SO_PASSCRED.
    pub sender: Option<Sender>,
}

/// The sender of a message, as verified by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// 0 for a process outside our pid namespace.
    pub pid: u32,
    pub uid: u32,
}

/// Sends `payload` with `fds` (at most [`MAX_FDS`]) as one message; never blocks, never raises SIGPIPE.
///
/// # Errors
/// `EAGAIN` when the queue is full, `ETOOMANYREFS` when too many descriptors are in flight for this user,
/// `EINVAL` for more than [`MAX_FDS`] descriptors.
pub fn send_fds<'a>(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    send_some(socket, payload, fds).map(drop)
}

/// The same on a stream: the descriptors travel with the first byte. Returns the number of bytes sent.
pub fn send_some<'a>(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    fds: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<usize> {
    let mut raw = [0 as RawFd; MAX_FDS];
    let mut count = 0;
    for fd in fds {
        let Some(place) = raw.get_mut(count) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        *place = fd.as_raw_fd();
        count += 1;
    }
    let mut iov = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control = CmsgBuffer([MaybeUninit::uninit(); CMSG_LEN]);
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if count > 0 {
        let bytes = (count * size_of::<RawFd>()) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic; the buffer holds MAX_FDS descriptors, so the header
        // that CMSG_FIRSTHDR returns and the `count` descriptors after it lie within it.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr(), libc::CMSG_DATA(header).cast::<RawFd>(), count);
        }
    }
    // SAFETY: every pointer in `message` refers to a local that outlives the call.
    let n = cvt!(unsafe {
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    })?;
    Ok(n as usize)
}

/// Receives one message without blocking; its descriptors (close-on-exec) are appended to `fds`.
pub fn recv_fds(socket: BorrowedFd<'_>, payload: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    let mut control = CmsgBuffer([MaybeUninit::uninit(); CMSG_LEN]);
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CMSG_LEN;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` refers to a local or to `payload`, which outlive the call.
    let len = cvt!(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })? as usize;
    let mut sender = None;
    // SAFETY: the kernel filled `control` up to msg_controllen; the CMSG macros walk within that, and each
    // descriptor in an SCM_RIGHTS or SCM_PIDFD block is new in this process and owned by nobody else; an SCM_CREDENTIALS block
    // is a ucred.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                let bytes = (*header).cmsg_len - (data as usize - header as usize);
                for at in 0..bytes / size_of::<RawFd>() {
                    let fd = data.cast::<RawFd>().add(at).read_unaligned();
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            } else if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == SCM_PIDFD {
                let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
                if fd >= 0 {
                    drop(OwnedFd::from_raw_fd(fd));
                }
            } else if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_CREDENTIALS {
                let ucred = libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned();
                sender = Some(Sender { pid: ucred.pid as u32, uid: ucred.uid });
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received { len, truncated: message.msg_flags & libc::MSG_CTRUNC != 0, sender })
}

/// The length of the next message (as far as it fits) and whether it has descriptors; leaves it in the queue.
pub fn peek(socket: BorrowedFd<'_>, payload: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut iov = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` refers to a local or to `payload`, which outlive the call.
    let len = cvt!(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })? as usize;
    // There is no room for descriptors, so MSG_CTRUNC shows whether there are some.
    Ok((len, message.msg_flags & libc::MSG_CTRUNC != 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::sock::{queued_bytes, seqpacket_pair};
    use std::os::fd::AsFd;

    #[test]
    fn a_full_message_arrives_whole_and_counts_one_byte_per_socket() {
        let (tx, rx) = seqpacket_pair().unwrap();
        let fds: Vec<_> = (0..MAX_FDS).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        send_fds(tx.as_fd(), &[1; MAX_FDS], fds.iter().map(AsFd::as_fd)).unwrap();
        assert_eq!(queued_bytes(rx.as_fd()).unwrap(), MAX_FDS);
        let (mut got, mut payload) = (Vec::new(), [0; MAX_FDS + 1]);
        let received = recv_fds(rx.as_fd(), &mut payload, &mut got).unwrap();
        assert_eq!((received.len, received.truncated, got.len()), (MAX_FDS, false, MAX_FDS));
        assert_eq!(queued_bytes(rx.as_fd()).unwrap(), 0);
    }

    #[test]
    fn a_descriptor_of_the_sender_is_closed() {
        const SO_PASSPIDFD: i32 = 76;
        let (tx, rx) = seqpacket_pair().unwrap();
        crate::sys::sock::set_option(rx.as_fd(), libc::SOL_SOCKET, SO_PASSPIDFD, &1i32.to_ne_bytes()).unwrap();
        let pidfds = || {
            let links =
                std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|link| std::fs::read_link(link.path()));
            links
                .filter(|target| target.as_ref().is_ok_and(|target| target.as_os_str() == "anon_inode:[pidfd]"))
                .count()
        };
        let before = pidfds();
        for _ in 0..20 {
            send_fds(tx.as_fd(), &[1], std::iter::empty()).unwrap();
            let mut got = Vec::new();
            assert_eq!(recv_fds(rx.as_fd(), &mut [0; 8], &mut got).unwrap().len, 1);
            assert!(got.is_empty());
        }
        // Other tests may have some for a moment.
        assert!(pidfds() < before + 20);
    }

    #[test]
    fn a_peek_shows_descriptors_and_leaves_the_message() {
        let (tx, rx) = seqpacket_pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send_fds(tx.as_fd(), &[1, 2], std::iter::once(file.as_fd())).unwrap();
        send_fds(tx.as_fd(), &[3], std::iter::empty()).unwrap();
        let (mut payload, mut got) = ([0; 8], Vec::new());
        assert_eq!(peek(rx.as_fd(), &mut payload).unwrap(), (2, true));
        assert_eq!(recv_fds(rx.as_fd(), &mut payload, &mut got).unwrap().len, 2);
        assert_eq!((got.len(), peek(rx.as_fd(), &mut payload).unwrap()), (1, (1, false)));
    }

    #[test]
    fn one_more_than_the_kernel_takes_is_refused() {
        let (tx, _rx) = seqpacket_pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = send_fds(tx.as_fd(), &[1], (0..=MAX_FDS).map(|_| file.as_fd())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn an_empty_message_carries_no_descriptor_and_end_of_file_is_zero_bytes() {
        let (tx, rx) = seqpacket_pair().unwrap();
        let (mut got, mut payload) = (Vec::new(), [0; 8]);
        send_fds(tx.as_fd(), &[0], std::iter::empty()).unwrap();
        assert_eq!(recv_fds(rx.as_fd(), &mut payload, &mut got).unwrap().len, 1);
        assert!(got.is_empty());
        let error = recv_fds(rx.as_fd(), &mut payload, &mut got).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(tx);
        assert_eq!(recv_fds(rx.as_fd(), &mut payload, &mut got).unwrap().len, 0);
    }
}
