//! bind, listen, connect: where a stand-in comes from.

use core::sync::atomic::Ordering::Relaxed;

use super::abi::attach::{ADDRESS_BYTES, BACK, LATER, LISTENER, PASS, QUEUE_NAME, SHARED, STATUS, YOURSELF, ask};
use super::arch::nr;
use super::closing::genuine;
use super::epolls;
use super::raw::{
    AF_UNIX, EADDRINUSE, EINVAL, EISCONN, EMFILE, F_GETFD, F_GETFL, F_SETFL, O_CLOEXEC, O_NONBLOCK, O_RDWR, call,
    fcntl, is_stream,
};
use super::table::{AF_INET, AF_INET6, Address, New, StandIn, Stands};
use super::{counts, errno, fail, lease, next, table};

/// An address, if it is one for TCP, with its port.
///
/// # Safety
/// `address` is readable for `len` bytes.
unsafe fn tcp_address(address: *const u8, len: u32) -> Option<(Address, u16)> {
    if address.is_null() || len < 16 {
        return None;
    }
    let mut bytes = [0; ADDRESS_BYTES];
    let have = len.min(ADDRESS_BYTES as u32);
    // SAFETY: `len` bytes are readable by the caller's word, and `have` is no more.
    unsafe { core::ptr::copy_nonoverlapping(address, bytes.as_mut_ptr(), have as usize) };
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let mut address = Address { bytes, len: have };
    match address.family() {
        AF_INET => address.len = 16,
        AF_INET6 if have == ADDRESS_BYTES as u32 => {}
        _ => return None,
    }
    Some((address, port))
}

/// bind(2).
///
/// # Safety
/// As bind(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: i32, address: *const u8, len: u32) -> i32 {
    let natively = || next::bind(fd, address, len);
    if genuine(fd).is_some() {
        return fail(EINVAL);
    }
    // SAFETY: as bind(2).
    let Some((to, port)) = (unsafe { tcp_address(address, len) }) else { return natively() };
    if port == 0 || !is_stream(fd) || is_bound(fd) {
        return natively();
    }
    // Before the master has the socket: it makes it non-blocking, and the two share that.
    let flags = fcntl(fd, F_GETFL, 0) as usize;
    let mut asked = ask_to_bind(fd, &to);
    let mut tries = 0;
    while asked.as_ref().is_some_and(|answer| answer.reply.kind == YOURSELF) {
        // With our own rights. What the kernel refuses is the server's answer; the master only hears of it.
        let result = natively();
        if result < 0 {
            let refused = errno();
            let heard = lease::ask(ask::BOUND, refused as u32, to.bytes, None);
            if tries < CLOSING_TRIES && heard.is_some_and(|answer| answer.reply.kind == LATER) {
                // A listener there was closed a moment ago, and a copy of it is about to be.
                tries += 1;
                pause();
                asked = ask_to_bind(fd, &to);
                continue;
            }
            return fail(refused);
        }
        asked = lease::ask(ask::BOUND, 0, to.bytes, Some(fd));
        if asked.is_none() {
            // No master: it is bound, as without this library.
            return result;
        }
        break;
    }
    let Some(answer) = asked else { return natively() };
    match answer.reply.kind {
        STATUS => {
            // The master had it for a moment.
            fcntl(fd, F_SETFL, flags);
            fail(answer.reply.number as i32)
        }
        SHARED | LISTENER => take_place(fd, &answer, flags & O_NONBLOCK, &to),
        PASS => natively(),
        _ => fail(EINVAL),
    }
}

/// Whether a socket has a port: by an earlier bind, or by a listen(2) without one. The kernel refuses to bind it again.
fn is_bound(fd: i32) -> bool {
    let mut own = Address { bytes: [0; ADDRESS_BYTES], len: ADDRESS_BYTES as u32 };
    next::getsockname(fd, own.bytes.as_mut_ptr(), &raw mut own.len) == 0 && own.bytes[2..4] != [0; 2]
}

/// How often a bind is tried again, 2 ms apart, where a copy of a closed listener may be in the way.
const CLOSING_TRIES: u32 = 100;

fn pause() {
    const PAUSE: [usize; 2] = [0, 2_000_000];
    call(nr::NANOSLEEP, [PAUSE.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

/// Asks where a socket is to be bound, as long as another process binds the same address.
fn ask_to_bind(fd: i32, to: &Address) -> Option<lease::Answer> {
    const TRIES: u32 = 1500;
    let mut answer = lease::ask(ask::BIND, to.len, to.bytes, Some(fd))?;
    for _ in 0..TRIES {
        if answer.reply.kind != LATER {
            return Some(answer);
        }
        pause();
        answer = lease::ask(ask::BIND, to.len, to.bytes, Some(fd))?;
    }
    // It is taken, by whoever takes so long.
    Some(lease::Answer::failed(EADDRINUSE))
}

/// Puts what the master sent in the place of the server's socket.
fn take_place(fd: i32, answer: &lease::Answer, nonblock: usize, address: &Address) -> i32 {
    let [place, page_fd, keep] = answer.fds;
    let stands = if answer.reply.kind == LISTENER { Stands::Listener } else { Stands::Queue };
    let page = if page_fd >= 0 { counts::map(page_fd) } else { 0 };
    let cloexec = if fcntl(fd, F_GETFD, 0) & 1 != 0 { O_CLOEXEC } else { 0 };
    let mut placed = place >= 0 && page != 0;
    if placed {
        // O_NONBLOCK belongs to the open file: the queue's becomes what the server's socket had.
        if stands == Stands::Queue {
            fcntl(place, F_SETFL, O_RDWR | nonblock);
        }
        let registered = epolls::take_out(fd);
        placed = call(nr::DUP3, [place as usize, fd as usize, cloexec, 0, 0, 0]) >= 0;
        registered.put_back(fd);
    }
    close_those_that_came([place, page_fd]);
    let keep = if keep >= 0 { lease::out_of_the_way(keep) } else { -1 };
    let new =
        New { listener: answer.reply.number, page, keep, stands, nonblock: nonblock != 0, listens: false, address };
    if !placed || table::put_stand_in(fd, &new).is_none() {
        return fail(EMFILE);
    }
    lease::take_lease();
    0
}

/// The stand-in at a descriptor, also where this process got it by exec or over a Unix socket: the queue's name tells.
/// To be asked only where the kernel has refused what a listening socket can.
pub fn recognize(fd: i32) -> Option<&'static StandIn> {
    if let Some(known) = table::stand_in(fd) {
        return Some(known);
    }
    let (mut name, mut len) = ([0u8; 64], 64u32);
    let place = (name.as_mut_ptr() as usize, &raw mut len as usize);
    if call(nr::GETSOCKNAME, [fd as usize, place.0, place.1, 0, 0, 0]) < 0 {
        return None;
    }
    let listener = named(name.get(..len as usize)?)?;
    let answer = lease::ask(ask::ADOPT, listener, [0; ADDRESS_BYTES], None)?;
    let page = page_of(&answer, SHARED);
    let keep = if answer.fds[2] >= 0 { lease::out_of_the_way(answer.fds[2]) } else { -1 };
    if page == 0 {
        return None;
    }
    let mut address = Address { bytes: answer.reply.address, len: ADDRESS_BYTES as u32 };
    if address.family() == AF_INET {
        address.len = 16;
    }
    table::put_stand_in(
        fd,
        &New { listener, page, keep, stands: Stands::Queue, nonblock: false, listens: true, address: &address },
    )?;
    lease::take_lease();
    table::stand_in(fd)
}

/// Maps the page that came with an answer of this kind (0: none did), and closes what else came to replace a descriptor:
/// it is in its place already.
fn page_of(answer: &lease::Answer, kind: u16) -> usize {
    let [place, page_fd, _] = answer.fds;
    let page = if answer.reply.kind == kind && page_fd >= 0 { counts::map(page_fd) } else { 0 };
    close_those_that_came([place, page_fd]);
    page
}

fn close_those_that_came(fds: [i32; 2]) {
    for fd in fds.into_iter().filter(|&fd| fd >= 0) {
        lease::close(fd);
    }
}

/// Under none a stand-in is the listening socket itself, which has no name of ours: the master knows it.
fn recognize_shared(fd: i32) -> Option<&'static StandIn> {
    let mut own = Address { bytes: [0; ADDRESS_BYTES], len: ADDRESS_BYTES as u32 };
    let named = next::getsockname(fd, own.bytes.as_mut_ptr(), &raw mut own.len) == 0;
    if !named || !matches!(own.family(), AF_INET | AF_INET6) || !is_stream(fd) {
        return None;
    }
    let answer = lease::ask(ask::RECOGNIZE, 0, [0; ADDRESS_BYTES], Some(fd))?;
    let page = page_of(&answer, LISTENER);
    if page == 0 {
        return None;
    }
    // Whoever passed it on had it non-blocking, or this process would not poll it.
    let new = New {
        listener: answer.reply.number,
        page,
        keep: -1,
        stands: Stands::Listener,
        nonblock: true,
        listens: true,
        address: &own,
    };
    table::put_stand_in(fd, &new)?;
    lease::take_lease();
    table::stand_in(fd)
}

/// The listener in a queue's name: family, NUL, the name.
fn named(name: &[u8]) -> Option<u32> {
    let rest = name.get(3..)?.strip_prefix(QUEUE_NAME.as_bytes())?;
    let mut listener = 0u32;
    for &byte in rest.iter().take_while(|&&byte| byte != b':') {
        listener = listener.wrapping_mul(10).wrapping_add((byte as char).to_digit(10)?);
    }
    (name.first() == Some(&(AF_UNIX as u8))).then_some(listener)
}

/// listen(2).
#[unsafe(no_mangle)]
pub extern "C" fn listen(fd: i32, backlog: i32) -> i32 {
    let stand_in = match table::stand_in(fd) {
        Some(stand_in) => stand_in,
        None => {
            let result = next::listen(fd, backlog);
            match if result < 0 { recognize(fd) } else { recognize_shared(fd) } {
                Some(stand_in) => stand_in,
                None => return result,
            }
        }
    };
    match lease::ask(ask::LISTEN, stand_in.listener.load(Relaxed), [0; ADDRESS_BYTES], None) {
        Some(answer) if answer.reply.kind == STATUS && answer.reply.number != 0 => fail(answer.reply.number as i32),
        _ => {
            stand_in.listens();
            0
        }
    }
}

/// connect(2): on a socket that was bound to a port first, as a client does that wants a source port of its own. One that
/// listens cannot be connected.
///
/// # Safety
/// As connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: i32, address: *const u8, len: u32) -> i32 {
    if let Some(stand_in) = genuine(fd).filter(|_| counts::ours()) {
        if !stand_in.is_shut() {
            return fail(EISCONN);
        }
        if !become_oneself(fd, stand_in) {
            return fail(EADDRINUSE);
        }
    }
    next::connect(fd, address, len)
}

/// Puts the server's own socket back in its place.
fn become_oneself(fd: i32, stand_in: &StandIn) -> bool {
    let nonblock = match stand_in.stands() {
        Stands::Queue => fcntl(fd, F_GETFL, 0) as usize & O_NONBLOCK,
        Stands::Listener => usize::from(stand_in.nonblock()) * O_NONBLOCK,
    };
    let Some(answer) = lease::ask(ask::GIVE_BACK, stand_in.listener.load(Relaxed), [0; ADDRESS_BYTES], None) else {
        return false;
    };
    let socket = answer.fds[0];
    if answer.reply.kind != BACK || socket < 0 {
        return false;
    }
    let cloexec = if fcntl(fd, F_GETFD, 0) & 1 != 0 { O_CLOEXEC } else { 0 };
    let registered = epolls::take_out(fd);
    table::remove_stand_in(fd);
    fcntl(socket, F_SETFL, O_RDWR | nonblock);
    call(nr::DUP3, [socket as usize, fd as usize, cloexec, 0, 0, 0]);
    registered.put_back(fd);
    lease::close(socket);
    true
}
