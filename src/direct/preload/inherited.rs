//! Stand-ins that come from another process, by exec or over a Unix socket, are marked where they arrive: what must not
//! reach the queue is known to be one before this process has asked the master for it.

use super::bind::named;
use super::{epolls, table, watched};

/// The kernel's msghdr on 64-bit machines: the control messages' address and length.
const CONTROL: usize = 32;
const CONTROL_LEN: usize = 40;
/// The length of a `struct mmsghdr`.
pub const MMSGHDR_BYTES: usize = 64;
/// The length of a control message's head (`cmsghdr`), to which the next one is aligned by 8.
const HEAD: usize = 16;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;

/// Marks what this program was started with.
pub fn mark_all() {
    epolls::each_descriptor(|_, fd| mark(fd));
}

fn mark(fd: i32) {
    let is_named = named(fd).is_some();
    if is_named || table::has_shared() {
        // One that was passed to this process before, or by this process to itself, is a copy.
        if !table::join(fd) && is_named {
            table::mark(fd);
        }
    }
}

/// Marks what came with a message.
///
/// # Safety
/// `message` is the address of a `struct msghdr` that recvmsg(2) has just filled in.
#[inline]
pub unsafe fn mark_received(message: usize) {
    // SAFETY: by the caller's word.
    unsafe {
        let len = *((message + CONTROL_LEN) as *const usize);
        if len != 0 {
            mark_rights(*((message + CONTROL) as *const usize), len);
        }
    }
}

/// A message is about to be sent: connections that go with it are those of another process, too, from then on.
///
/// # Safety
/// `message` is the address of a `struct msghdr` that is passed to sendmsg(2).
#[inline]
pub unsafe fn lose_sent(message: usize) {
    // SAFETY: by the caller's word.
    let (control, len) =
        unsafe { (*((message + CONTROL) as *const usize), *((message + CONTROL_LEN) as *const usize)) };
    if control != 0 && len != 0 {
        // SAFETY: as above: `len` bytes lie there.
        each_right(unsafe { core::slice::from_raw_parts(control as *const u8, len) }, watched::lose);
    }
}

/// Marks what came with so many messages.
///
/// # Safety
/// `messages` is the address of as many `struct mmsghdr` that recvmmsg(2) has just filled in.
pub unsafe fn mark_all_received(messages: usize, count: i32) {
    for at in 0..count.max(0) as usize {
        // SAFETY: by the caller's word.
        unsafe { mark_received(messages + at * MMSGHDR_BYTES) };
    }
}

#[cold]
unsafe fn mark_rights(control: usize, len: usize) {
    if control != 0 {
        // SAFETY: the kernel has written `len` bytes there.
        each_right(unsafe { core::slice::from_raw_parts(control as *const u8, len) }, mark);
    }
}

/// Calls `each` with every descriptor in control messages.
fn each_right(mut control: &[u8], mut each: impl FnMut(i32)) {
    while let Some((head, _)) = control.split_first_chunk::<HEAD>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, k0, k1, k2, k3] = *head;
        let len = usize::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let (level, kind) = (i32::from_ne_bytes([v0, v1, v2, v3]), i32::from_ne_bytes([k0, k1, k2, k3]));
        let Some(data) = control.get(HEAD..len) else { return };
        if level == SOL_SOCKET && kind == SCM_RIGHTS {
            data.chunks_exact(4).filter_map(|fd| fd.try_into().ok()).for_each(|fd| each(i32::from_ne_bytes(fd)));
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, len: usize, data: &[i32]) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend([level, kind].iter().flat_map(|number| number.to_ne_bytes()));
        bytes.extend(data.iter().flat_map(|number| number.to_ne_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn rights(control: &[u8]) -> Vec<i32> {
        let mut fds = Vec::new();
        each_right(control, |fd| fds.push(fd));
        fds
    }

    #[test]
    fn descriptors_are_found_among_other_control_messages() {
        let control = [
            message(1, SCM_RIGHTS, 20, &[7]),
            message(1, 2, 28, &[1, 2, 3]),
            message(41, SCM_RIGHTS, 20, &[8]),
            message(1, SCM_RIGHTS, 28, &[9, 10, 11]),
        ];
        assert_eq!(rights(&control.concat()), [7, 9, 10, 11]);
        assert_eq!(rights(&[]), []);
    }

    #[test]
    fn spoilt_lengths_end_the_search() {
        assert_eq!(rights(&message(1, SCM_RIGHTS, 0, &[7])), []);
        assert_eq!(rights(&message(1, SCM_RIGHTS, 15, &[7])), []);
        assert_eq!(rights(&message(1, SCM_RIGHTS, 100, &[7])), []);
        assert_eq!(rights(&message(1, SCM_RIGHTS, usize::MAX, &[7])), []);
        assert_eq!(rights(&message(1, SCM_RIGHTS, 20, &[7])[..12]), []);
    }
}
