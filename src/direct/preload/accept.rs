//! accept: one message of the queue is one connection.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use super::abi::attach::ADDRESS_BYTES;
use super::abi::payload::{Direct, DirectTranslated, EMPTY, Endpoint, SOCKET, VERSION, WAKE};
use super::address::{Address, is_ip};
use super::bind::recognize;
use super::counts::Accepting;
use super::message::{self, RecvVia};
use super::raw::{self, EAGAIN, ECONNABORTED, EINVAL, EMFILE, ENOTCONN, O_RDWR, PollFd, SO_DOMAIN};
use super::table::{StandIn, Stands};
use super::{bell, close, counts, errno, fail, journal, libc_result, next, table, translations, watched};

/// Wake-ups of threads that wait in accept, a millisecond apart.
const MAX_WAKES: u32 = 200;
/// Looks at a queue, a millisecond apart, after which a message there is one that nobody takes.
const MESSAGE_STAYS: u32 = 3;
const MSG_DONTWAIT: usize = 0x40;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const SOCK_NONBLOCK: i32 = 0o4000;
const SOCK_CLOEXEC: i32 = 0o2_000_000;

/// What a message without a socket says.
const NOTHING: Direct =
    Direct { version: 0, tag: EMPTY, address_len: 0, address: [0; ADDRESS_BYTES], number: 0, accepted: 0 };

/// accept(2).
///
/// # Safety
/// As accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: i32, address: *mut u8, len: *mut u32) -> i32 {
    // SAFETY: as accept(2).
    unsafe { accept4(fd, address, len, 0) }
}

/// accept4(2) in the form of `syscall`.
///
/// # Safety
/// As accept4(2).
pub unsafe extern "C" fn accept_widened(fd: usize, address: *mut u8, len: *mut u32, flags: usize) -> isize {
    // SAFETY: as accept4(2).
    (unsafe { accept4(fd as i32, address, len, flags as i32) }) as isize
}

/// accept4(2).
///
/// # Safety
/// As accept4(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(fd: i32, address: *mut u8, len: *mut u32, flags: i32) -> i32 {
    let stand_in = match table::stand_in(fd) {
        Some(stand_in) => stand_in,
        None => {
            // SAFETY: as accept4(2).
            let result = unsafe { next::accept4(fd, address, len, flags) };
            match if result < 0 { recognize(fd) } else { None } {
                Some(stand_in) => stand_in,
                None => return result,
            }
        }
    };
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 || stand_in.is_shut() {
        // Looked at only where it fails: another file may be at the number, since a close that nobody could see.
        if close::genuine(fd).is_some() {
            return fail(EINVAL);
        }
        // SAFETY: as accept4(2).
        return unsafe { next::accept4(fd, address, len, flags) };
    }
    // SAFETY: as accept4(2): a length that is not null can be read.
    let negative = !address.is_null() && !len.is_null() && unsafe { *len } > i32::MAX as u32;
    let taken = match stand_in.stands() {
        Stands::Queue => from_queue(fd, stand_in, flags, false),
        Stands::Listener => from_listener(fd, stand_in, flags),
    };
    match taken {
        Ok(taken) if negative => {
            // As the kernel does, which looks at the length last.
            taken.count(None, stand_in);
            close::close(taken.socket);
            fail(EINVAL)
        }
        Ok(taken) => {
            let shown = other_family(stand_in, taken.peer.family());
            let peer = shown.map_or(taken.peer, |family| taken.peer.shown_as(family));
            // SAFETY: as accept4(2).
            unsafe { peer.write_to(address, len) };
            taken.count(shown, stand_in);
            taken.socket
        }
        // SAFETY: as accept4(2).
        Err(_) if errno() == ENOTCONN && close::genuine(fd).is_none() => unsafe {
            next::accept4(fd, address, len, flags)
        },
        Err(result) => result,
    }
}

/// A connection for the server.
struct Taken {
    socket: i32,
    peer: Address,
    number: u32,
    /// It came to end the wait: nobody counts it.
    wakes: bool,
    /// No byte was read from it or written to it.
    is_new: bool,
    /// When the master accepted it; 0: this process did.
    accepted: u64,
    /// This process accepts it: until it is counted.
    _accepting: Option<Accepting>,
    /// Where the client connected to, if a PROXY header named both ends.
    destination: Endpoint,
}

impl Taken {
    fn count(&self, shown: Option<u16>, from: &StandIn) {
        if !self.wakes {
            let watched = watched::begin(self.socket, from.listener.load(Relaxed), self.is_new);
            if self.destination.len > 0 {
                let own = from.address();
                // The kernel's own addresses may have another family than those of the header.
                let kernels = raw::socket_option(self.socket, SO_DOMAIN);
                let shown = (kernels != i32::from(own.family())).then_some(own.family());
                table::received(self.socket, self.number, shown, watched);
                let known = translations::received(self.socket, &self.peer, &self.destination, own.family());
                watched::translated(self.socket, known);
            } else {
                table::received(self.socket, self.number, shown, watched);
            }
            journal::received(self.socket, from.listener.load(Relaxed), self.accepted, &self.peer);
        }
    }
}

/// The family of the server's own socket, where a client's is another.
fn other_family(stand_in: &StandIn, client: u16) -> Option<u16> {
    let own = stand_in.address();
    (own.family() != client && own.is_ip() && is_ip(client)).then_some(own.family())
}

/// `polled`: the server polls before it calls, and saw something.
fn from_queue(fd: i32, stand_in: &StandIn, flags: i32, polled: bool) -> Result<Taken, i32> {
    let cloexec = if flags & SOCK_CLOEXEC != 0 { MSG_CMSG_CLOEXEC } else { 0 };
    let mut saw_empty = polled;
    loop {
        // A receiver without a free descriptor would get the message without its socket: the connection would be lost.
        if !raw::has_free_fd(fd) {
            return Err(fail(EMFILE));
        }
        let mut payload = DirectTranslated { direct: NOTHING, destination: Endpoint::NONE, reserved: [0; 2] };
        let (how, by) = if stand_in.waits() { (0, RecvVia::Libc) } else { (MSG_DONTWAIT, RecvVia::Kernel) };
        stand_in.waiting.fetch_add(1, AcqRel);
        let (n, [socket, ..]) = message::receive(fd, &mut payload, cloexec | how, by);
        stand_in.waiting.fetch_sub(1, AcqRel);
        if n == -(EAGAIN as isize) && how != 0 && !raw::is_nonblocking(fd) {
            if saw_empty {
                // It polled, saw something, and must not be left waiting here.
                return Err(fail(ECONNABORTED));
            }
            // It calls with nothing there: it is one that waits in accept, and does not mind empty messages.
            stand_in.waits_from_now();
            continue;
        }
        if n < 0 {
            return Err(libc_result(n));
        }
        bell::ROOM.received();
        if socket < 0 {
            if stand_in.is_shut() {
                return Err(fail(EINVAL));
            }
            if n == 0 {
                ended();
                return Err(fail(EAGAIN));
            }
            saw_empty = true;
            continue;
        }
        if flags & SOCK_NONBLOCK == 0 {
            // The master accepts non-blocking; this server wants it blocking.
            raw::set_status_flags(socket, O_RDWR);
        }
        let DirectTranslated { direct, destination, .. } = payload;
        let wakes = direct.tag == WAKE;
        if !wakes {
            counts::took(direct.accepted);
        }
        let len = u32::from(direct.address_len);
        return Ok(Taken {
            socket,
            peer: Address { bytes: direct.address, len },
            number: direct.number as u32,
            wakes,
            is_new: direct.tag == SOCKET,
            accepted: direct.accepted,
            destination,
            _accepting: None,
        });
    }
}

/// The queue has ended: only when somebody closed the end that we keep, and the master is gone. A server that tries
/// again at once shall not take a whole CPU for it.
fn ended() {
    raw::sleep_ms(50);
}

/// Empty messages, so that whoever waits in accept, poll, select or epoll_wait at the queue looks again. The master may be
/// emptying it at the same time, so it takes as many as it takes until one has stayed there (a thread that was cancelled
/// while it waited stays counted, hence the bound).
pub fn wake_waiting(stand_in: &StandIn, queue: i32) {
    let mut stayed = 0;
    for _ in 0..MAX_WAKES {
        let queued = queue < 0 || raw::queued_bytes(queue) > 0;
        stayed = if queued { stayed + 1 } else { 0 };
        if stand_in.waiting.load(Acquire) == 0 && (queue < 0 || stayed > MESSAGE_STAYS) {
            return;
        }
        if stand_in.waiting.load(Acquire) > 0 || !queued {
            wake_one(stand_in);
        }
        raw::sleep_ms(1);
    }
}

fn wake_one(stand_in: &StandIn) {
    let direct = Direct { version: VERSION, ..NOTHING };
    if stand_in.stands() == Stands::Queue
        && let Some(queue) = stand_in.sending_end()
    {
        // As long as all messages of this queue.
        if counts::translates() {
            let empty = DirectTranslated { direct, destination: Endpoint::NONE, reserved: [0; 2] };
            message::send(queue, &empty, None, MSG_DONTWAIT);
        } else {
            message::send(queue, &direct, None, MSG_DONTWAIT);
        }
    }
}

/// Policy none: the shared socket is always non-blocking, whatever this server wants.
fn from_listener(fd: i32, stand_in: &'static StandIn, flags: i32) -> Result<Taken, i32> {
    unsafe extern "C" {
        fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
    }
    let mut waited = false;
    loop {
        let accepting = Accepting::begin();
        if accepting.is_none() {
            if table::leave(stand_in) {
                return from_queue(fd, stand_in, flags, !waited && !stand_in.waits());
            }
            // It cannot be left, and is ready again and again.
            raw::sleep_ms(10);
            return Err(fail(if stand_in.nonblock() { EAGAIN } else { ECONNABORTED }));
        }
        let mut peer = Address::empty();
        // SAFETY: the address goes into the local.
        let socket = unsafe { next::accept4(fd, peer.bytes.as_mut_ptr(), &raw mut peer.len, flags) };
        if socket >= 0 {
            let number = counts::released();
            let destination = Endpoint::NONE;
            return Ok(Taken {
                socket,
                peer,
                number,
                wakes: false,
                is_new: false,
                accepted: 0,
                destination,
                _accepting: accepting,
            });
        }
        drop(accepting);
        if errno() != EAGAIN && stand_in.leaves() {
            // Another thread has put the queue there, just before the call.
            continue;
        }
        if stand_in.nonblock() || errno() != EAGAIN {
            return Err(socket);
        }
        if !waited {
            // It calls with nothing there.
            stand_in.waits_from_now();
            waited = true;
        }
        let mut waits = PollFd { fd, events: 1, revents: 0 };
        // SAFETY: one entry, which lives through the call. libc's own poll: a thread can be cancelled in it.
        match unsafe { poll(&raw mut waits, 1, raw::receive_timeout(fd)) } {
            0 => return Err(fail(EAGAIN)),
            1.. => {}
            _ => return Err(-1),
        }
    }
}
