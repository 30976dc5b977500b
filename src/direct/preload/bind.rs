//! bind, listen: where a stand-in comes from.

use core::sync::atomic::Ordering::Relaxed;

use super::abi::attach::{ADDRESS_BYTES, LATER, LISTENER, PASS, QUEUE_NAME, SHARED, STATUS, YOURSELF, op};
use super::address::{AF_UNIX, Address};
use super::client::{self, Answer};
use super::close::{close, genuine};
use super::counts::Page;
use super::lease::take_lease;
use super::raw::{
    self, EADDRINUSE, EINVAL, EMFILE, NAME_BYTES, O_NONBLOCK, O_RDWR, SHUT_RD, is_stream, set_status_flags,
    status_flags,
};
use super::table::{New, StandIn, Stands};
use super::{counts, epolls, errno, fail, idle, journal, moving, next, table, translations};

/// How long to wait before an answer is asked for once more.
const RETRY_AFTER_MS: u64 = 2;
/// Tries while another process binds the same address: 3 s.
const MAX_TRIES_WHILE_BINDING: u32 = 1500;
/// Tries while a copy of a closed listener may be in the way: 0.2 s.
const MAX_TRIES_WHILE_CLOSING: u32 = 100;

/// bind(2).
///
/// # Safety
/// As bind(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: i32, address: *const u8, len: u32) -> i32 {
    // SAFETY: as bind(2).
    let natively = || unsafe { next::bind(fd, address, len) };
    if genuine(fd).is_some() {
        return fail(EINVAL);
    }
    // SAFETY: as bind(2).
    let Some(to) = (unsafe { Address::for_tcp(address, len) }) else { return natively() };
    if to.port() == 0 || !is_stream(fd) || is_bound(fd) {
        return natively();
    }
    // Before the master has the socket: it makes it non-blocking, and the two share that.
    let flags = status_flags(fd);
    let mut asked = ask_to_bind(fd, &to);
    let mut tries = 0;
    while asked.as_ref().is_some_and(|answer| answer.reply.kind == YOURSELF) {
        // With our own rights. What the kernel refuses is the server's answer; the master only hears of it.
        let result = natively();
        if result < 0 {
            let refused = errno();
            let reply = client::request_with(op::BOUND, refused as u32, to.bytes, None);
            if tries < MAX_TRIES_WHILE_CLOSING && reply.is_some_and(|answer| answer.reply.kind == LATER) {
                // A listener there was closed a moment ago, and a copy of it is about to be.
                tries += 1;
                raw::sleep_ms(RETRY_AFTER_MS);
                asked = ask_to_bind(fd, &to);
                continue;
            }
            return fail(refused);
        }
        asked = client::request_with(op::BOUND, 0, to.bytes, Some(fd));
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
            set_status_flags(fd, flags);
            fail(answer.reply.number as i32)
        }
        SHARED | LISTENER => take_place(fd, &answer, flags & O_NONBLOCK, &to),
        PASS => natively(),
        _ => fail(EINVAL),
    }
}

/// Whether a socket has a port: by an earlier bind, or by a listen(2) without one. The kernel refuses to bind it again.
fn is_bound(fd: i32) -> bool {
    own_name(fd).is_some_and(|own| own.port() != 0)
}

/// getsockname(2), without us.
fn own_name(fd: i32) -> Option<Address> {
    let mut own = Address::empty();
    // SAFETY: the name goes into the local, as much of it as has room.
    let result = unsafe { next::getsockname(fd, own.bytes.as_mut_ptr(), &raw mut own.len) };
    (result == 0).then_some(own)
}

/// Asks where a socket is to be bound, as long as another process binds the same address.
fn ask_to_bind(fd: i32, to: &Address) -> Option<Answer> {
    let ask = || client::request_with(op::BIND, to.len, to.bytes, Some(fd));
    let mut answer = ask()?;
    for _ in 0..MAX_TRIES_WHILE_BINDING {
        if answer.reply.kind != LATER {
            return Some(answer);
        }
        raw::sleep_ms(RETRY_AFTER_MS);
        answer = ask()?;
    }
    // The other process keeps it.
    Some(Answer::failed(EADDRINUSE))
}

/// Puts what the master sent in the place of the server's socket: the listening socket that all workers share at once, the
/// queue when the server listens.
fn take_place(fd: i32, answer: &Answer, nonblock: usize, address: &Address) -> i32 {
    let [place, page_fd, keep] = answer.fds;
    let (listener, stands) = match answer.reply.kind {
        LISTENER => (answer.reply.number, Stands::Listener),
        _ => (answer.reply.number, Stands::Queue),
    };
    let page = if page_fd >= 0 { counts::map(page_fd) } else { None };
    let file = match stands {
        Stands::Listener => place,
        Stands::Queue => {
            let idle = idle::socket(listener, address, nonblock).unwrap_or(-1);
            raw::copy_timeouts(fd, idle);
            if raw::receives_no_more(fd) {
                // shutdown(2) before bind(2): it polls and receives as that socket did.
                raw::shutdown(idle, SHUT_RD);
            }
            idle
        }
    };
    let own = raw::device_and_inode(fd);
    let placed = place >= 0 && file >= 0 && page.is_some() && idle::put(fd, file);
    close_those_that_came([file, page_fd]);
    let keep = if keep >= 0 { raw::move_to_high_fd(keep) } else { -1 };
    let Some(page) = page.filter(|_| placed) else { return fail(EMFILE) };
    let new = New { listener, page, keep, stands, nonblock: nonblock != 0, listens: false, address };
    let Some(stand_in) = table::put_stand_in(fd, &new) else { return fail(EMFILE) };
    journal::begin();
    translations::begin();
    moving::begin();
    if stands == Stands::Queue {
        stand_in.park(raw::move_to_high_fd(place));
    }
    // Copies of the server's socket that were made before bind(2).
    epolls::each_descriptor(|_, copy| {
        if copy != fd && raw::device_and_inode(copy) == own {
            take_over(copy, fd);
        }
    });
    take_lease();
    0
}

/// The stand-in at a descriptor, also where this process got it by exec or over a Unix socket: the queue's name tells.
/// To be asked only where the kernel has refused what a listening socket can.
pub fn recognize(fd: i32) -> Option<&'static StandIn> {
    if let Some(known) = table::stand_in(fd) {
        return Some(known);
    }
    let (listener, listens) = named(fd)?;
    if table::join(fd) {
        return table::stand_in(fd);
    }
    let (queue, stand_in) = adopt(fd, listener, listens)?;
    table::join_marked();
    if listens {
        // It is in its place already.
        raw::close(queue);
    } else {
        stand_in.park(queue);
    }
    Some(stand_in)
}

/// The listener that a stand-in's name tells, and whether it is the queue that is there (else an idle socket).
pub fn named(fd: i32) -> Option<(u32, bool)> {
    let mut name = [0u8; 3 + NAME_BYTES];
    let len = raw::socket_name(fd, &mut name)?;
    parse_name(name.get(..len)?).map(|(listener, rest)| (listener, !idle::is_idle(rest)))
}

/// The address that an idle socket's name tells.
fn idle_address(fd: i32) -> Option<Address> {
    let mut name = [0u8; 3 + NAME_BYTES];
    let len = raw::socket_name(fd, &mut name)?;
    parse_name(name.get(..len)?).filter(|(_, rest)| idle::is_idle(rest)).and_then(|(_, rest)| idle::address(rest))
}

/// Asks the master for a listener's queue, and makes the descriptor its stand-in; the queue.
fn adopt(fd: i32, listener: u32, listens: bool) -> Option<(i32, &'static StandIn)> {
    let answer = client::request(op::ADOPT, listener)?;
    let [queue, page_fd, keep] = answer.fds;
    let page = if answer.reply.kind == SHARED && page_fd >= 0 { counts::map(page_fd) } else { None };
    close_those_that_came([page_fd, -1]);
    let keep = if keep >= 0 { raw::move_to_high_fd(keep) } else { -1 };
    let address = Address::from_bytes(answer.reply.address);
    let queue = if queue >= 0 { raw::move_to_high_fd(queue) } else { -1 };
    let stand_in = page.filter(|_| queue >= 0).and_then(|page| {
        let new = New { listener, page, keep, stands: Stands::Queue, nonblock: false, listens, address: &address };
        table::put_stand_in(fd, &new)
    });
    if stand_in.is_none() {
        close_those_that_came([queue, keep]);
    }
    journal::begin();
    translations::begin();
    moving::begin();
    take_lease();
    Some((queue, stand_in?))
}

/// Maps the page that came with an answer of this kind, and closes what else came to replace a descriptor: it is in its
/// place already.
fn page_of(answer: &Answer, kind: u16) -> Option<Page> {
    let [place, page_fd, _] = answer.fds;
    let page = if answer.reply.kind == kind && page_fd >= 0 { counts::map(page_fd) } else { None };
    close_those_that_came([place, page_fd]);
    page
}

fn close_those_that_came(fds: [i32; 2]) {
    for fd in fds.into_iter().filter(|&fd| fd >= 0) {
        raw::close(fd);
    }
}

/// Under none a stand-in is the listening socket itself, which has no name of ours: the master knows it.
fn recognize_shared(fd: i32) -> Option<&'static StandIn> {
    let own = own_name(fd).filter(Address::is_ip)?;
    if !is_stream(fd) {
        return None;
    }
    let answer = client::request_with(op::RECOGNIZE, 0, [0; ADDRESS_BYTES], Some(fd))?;
    let page = page_of(&answer, LISTENER)?;
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
    journal::begin();
    translations::begin();
    moving::begin();
    take_lease();
    table::stand_in(fd)
}

/// The listener in a name (family, NUL, the name), and what follows it.
fn parse_name(name: &[u8]) -> Option<(u32, &[u8])> {
    let mut rest = name.get(3..)?.strip_prefix(QUEUE_NAME.as_bytes())?;
    let mut listener = 0u32;
    while let Some((&byte, behind)) = rest.split_first().filter(|(byte, _)| **byte != b':') {
        listener = listener.wrapping_mul(10).wrapping_add((byte as char).to_digit(10)?);
        rest = behind;
    }
    (name.first() == Some(&(AF_UNIX as u8))).then_some((listener, rest))
}

/// listen(2).
#[unsafe(no_mangle)]
pub extern "C" fn listen(fd: i32, backlog: i32) -> i32 {
    let known = genuine(fd).or_else(|| {
        // An idle socket is a Unix socket that could listen by itself.
        if named(fd).is_some() { recognize(fd) } else { None }
    });
    let stand_in = match known {
        Some(stand_in) => stand_in,
        None => {
            // The master has given up the listener since then.
            if let Some(address) = idle_address(fd) {
                return match listen_anew(fd, &address, backlog) {
                    Ok(socket) => {
                        take_over(fd, socket);
                        end_copy(socket)
                    }
                    Err(errno) => fail(errno),
                };
            }
            let result = next::listen(fd, backlog);
            match if result < 0 { None } else { recognize_shared(fd) } {
                Some(stand_in) => stand_in,
                None => return result,
            }
        }
    };
    if stand_in.has_ended() {
        return listen_again(stand_in, backlog);
    }
    let answer = client::request(op::LISTEN, stand_in.listener.load(Relaxed));
    if let Some(errno) = answer.and_then(|answer| answer.errno()) {
        return fail(errno);
    }
    if stand_in.is_shut() && !place_parked(stand_in) {
        return fail(EADDRINUSE);
    }
    stand_in.listens();
    0
}

/// Puts what was kept in the idle socket's place.
fn place_parked(stand_in: &'static StandIn) -> bool {
    if stand_in.stands() == Stands::Listener {
        return true;
    }
    let queue = stand_in.unpark().or_else(|| {
        let answer = client::request(op::ADOPT, stand_in.listener.load(Relaxed))?;
        let [queue, page_fd, keep] = answer.fds;
        close_those_that_came([page_fd, keep]);
        (queue >= 0).then_some(queue)
    });
    queue.map(|queue| idle::replace(stand_in, queue)).is_some()
}

/// listen(2) after shutdown(2): for the master that is a new listener at the same address.
fn listen_again(stand_in: &'static StandIn, backlog: i32) -> i32 {
    let mut any = -1;
    table::each_fd(stand_in, |fd| any = fd);
    match listen_anew(any, &stand_in.address(), backlog) {
        Ok(socket) => {
            table::each_fd(stand_in, |fd| take_over(fd, socket));
            table::release(stand_in);
            end_copy(socket)
        }
        Err(errno) => fail(errno),
    }
}

/// A socket that listens at an address, with the blocking mode and the time-outs of the one at `like`.
fn listen_anew(like: i32, address: &Address, backlog: i32) -> Result<i32, i32> {
    let socket = raw::tcp_socket(address.family()).ok_or(EMFILE)?;
    set_status_flags(socket, O_RDWR | status_flags(like) & O_NONBLOCK);
    // SAFETY: the address is a local of the caller's.
    let bound = unsafe { bind(socket, address.bytes.as_ptr(), address.len) };
    if bound < 0 || listen(socket, backlog) < 0 {
        let refused = errno();
        close(socket);
        return Err(refused);
    }
    raw::copy_timeouts(like, socket);
    Ok(socket)
}

/// Puts a stand-in at another descriptor, too.
fn take_over(fd: i32, socket: i32) {
    if idle::put(fd, socket) {
        table::copy(socket, fd);
    }
}

fn end_copy(socket: i32) -> i32 {
    table::forget(socket);
    raw::close(socket);
    0
}
