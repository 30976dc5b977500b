//! connect: of a socket that was bound before, and of a server to itself.

use core::sync::atomic::Ordering::Relaxed;

use super::abi::attach::{BACK, op};
use super::address::Address;
use super::close::genuine_or_marked;
use super::raw::{self, EADDRINUSE, EISCONN, O_NONBLOCK, O_RDWR, is_stream, set_status_flags, status_flags};
use super::table::{StandIn, Stands};
use super::{client, counts, fail, idle, next, table};

/// connect(2): on a socket that was bound to a port first, as a client does that wants a source port of its own. One that
/// listens cannot be connected.
///
/// # Safety
/// As connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: i32, address: *const u8, len: u32) -> i32 {
    if let Some(stand_in) = genuine_or_marked(fd).filter(|_| counts::ours()) {
        if !stand_in.is_shut() {
            return fail(EISCONN);
        }
        if !restore_socket(fd, stand_in) {
            return fail(EADDRINUSE);
        }
    }
    if counts::is_stopping() {
        // SAFETY: as connect(2).
        unsafe { report_connect(fd, address, len) };
    }
    // SAFETY: as connect(2).
    unsafe { next::connect(fd, address, len) }
}

/// Tells the master of a connect(2) to a port where a thread of this process waits in accept(2): perhaps that is to end the
/// wait, which only the master can. The connection itself may go to another worker.
///
/// # Safety
/// As connect(2).
unsafe fn report_connect(fd: i32, address: *const u8, len: u32) {
    // SAFETY: as connect(2).
    let Some(to) = (unsafe { Address::for_tcp(address, len) }) else { return };
    if let Some(listener) = table::awaited_at(to.port()).filter(|_| is_stream(fd)) {
        let _ = client::request_with(op::CONNECTS, listener, to.bytes, None);
    }
}

/// Puts the server's own socket back at all descriptors of a stand-in.
fn restore_socket(fd: i32, stand_in: &'static StandIn) -> bool {
    let nonblock = match stand_in.stands() {
        Stands::Queue => status_flags(fd) & O_NONBLOCK,
        Stands::Listener => usize::from(stand_in.nonblock()) * O_NONBLOCK,
    };
    let Some(answer) = client::request(op::GIVE_BACK, stand_in.listener.load(Relaxed)) else { return false };
    let socket = answer.fds[0];
    if answer.reply.kind != BACK || socket < 0 {
        return false;
    }
    set_status_flags(socket, O_RDWR | nonblock);
    raw::copy_timeouts(fd, socket);
    table::each_fd(stand_in, |fd| {
        idle::put(fd, socket);
        table::forget(fd);
    });
    table::release(stand_in);
    raw::close(socket);
    true
}
