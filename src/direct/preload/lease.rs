//! The lease: a connection that lasts as long as the process, so that it hears of its master's end.

use core::sync::atomic::{AtomicU32, Ordering::AcqRel};

use super::abi::attach::{ADDRESS_BYTES, OPTION_BYTES, SocketOption, op};
use super::arch::pid;
use super::client::{self, Master, Wait};
use super::raw::{SO_TYPE, SOL_SOCKET, close, signal_on_input};
use super::sockopt::packed;

/// The process that holds a lease.
static LEASED: AtomicU32 = AtomicU32::new(0);

/// Takes a lease, once per process: when the master is gone, however it went, the kernel sends this process its stop
/// signal (fcntl(2): F_SETOWN, F_SETSIG, O_ASYNC). A connection of its own, since every message on it would do that.
pub fn take_lease() {
    let own = pid();
    if LEASED.swap(own, AcqRel) == own {
        return;
    }
    let Some(master) = Master::find() else { return };
    let Some(socket) = master.connect(Wait::Always) else { return };
    let request = master.request(op::LEASE, 0, [0; ADDRESS_BYTES]);
    let Some(answer) = client::exchange(socket, &request, None, Wait::Always) else {
        close(socket);
        return;
    };
    wait_for_the_wake_up_to_end();
    signal_on_input(socket, answer.reply.number as i32);
    // It stays open as long as the process.
}

/// The kernel first queues a message and then wakes its reader. A reader that was there already can be so quick that the
/// lease is armed in between: the wake-up would then be the stop signal, for a server that has just started (one in a
/// thousand under load). The master answers one request after the other, so when it answers this one, which asks for
/// an option of a listener that does not exist, its last call has ended.
fn wait_for_the_wake_up_to_end() {
    let nothing = SocketOption { level: SOL_SOCKET, name: SO_TYPE, len: OPTION_BYTES as u32, value: [0; OPTION_BYTES] };
    let _ = client::request_with(op::GET_OPTION, u32::MAX, packed(&nothing), None);
}
