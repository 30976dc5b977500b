//! The access log: what happens to connections is recorded in a ring that the master reads. Without an access log there is
//! no ring, and all of this is one load.

use core::sync::atomic::{AtomicU64, Ordering::*};

use super::abi::access::{self, Closed, FILE_BYTES, NONE, Place, Received, Record, Ring, end, id};
use super::abi::attach::{LOG, op};
use super::address::Address;
use super::arch::{nr, syscall6};
use super::bell::Bell;
use super::counts::{self, Shared};
use super::table::TRACKED;
use super::{client, raw};

/// The ring's memory; not mapped: connections are not logged.
static MEMORY: Shared<FILE_BYTES> = Shared::none();
static BELL: Bell = Bell::new();

/// The number of the connection at a descriptor, 0 where none is logged, what happened to it, and the process that received
/// it: a copy in a child is none of its own.
static ENTRIES: [AtomicU64; TRACKED] = [const { AtomicU64::new(0) }; TRACKED];
/// The server was the first to end its side, by shutdown(2); it was the second.
const SHUT_FIRST: u32 = 1 << 31;
const SHUT_SECOND: u32 = 1 << 30;

/// The kernel's `struct tcp_info`, as far as it is needed, in words.
pub type TcpInfo = [u64; 29];

/// States of a TCP connection.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const CLOSING: u8 = 11;
}

/// Gets the ring from the master, once, if this worker's connections are logged.
pub fn begin() {
    if MEMORY.is_mapped() || !counts::logs() {
        return;
    }
    let Some(answer) = client::request(op::LOG, 0) else { return };
    let [file, bell, _] = answer.fds;
    // The bell first: whoever finds the ring mapped may ring.
    if answer.reply.kind == LOG && file >= 0 {
        BELL.hang(bell);
        MEMORY.map(file);
    } else {
        raw::close(bell);
    }
    raw::close(file);
}

#[inline(always)]
fn ring() -> Option<Ring<'static>> {
    MEMORY.words().map(Ring)
}

fn entry(fd: i32) -> Option<&'static AtomicU64> {
    usize::try_from(fd).ok().and_then(|fd| ENTRIES.get(fd))
}

/// Writes a record, which gets its place's ticket, unless there is no place.
fn write(ring: Ring<'_>, record: impl FnOnce(u64) -> Record) -> Option<u64> {
    let ticket = ring.claim();
    let rings = match ticket {
        Some(ticket) => ring.write(ticket, &record(ticket)),
        None => ring.wakes(),
    };
    if rings {
        BELL.ring();
    }
    ticket
}

/// A connection was received, which the master accepted at that time (0: this process did).
#[inline]
pub fn received(fd: i32, listener: u32, accepted: u64, client: &Address) {
    if let Some(ring) = ring() {
        record_received(ring, fd, listener, accepted, client);
    }
}

#[cold]
fn record_received(ring: Ring<'_>, fd: i32, listener: u32, accepted: u64, client: &Address) {
    // Its close would not be seen.
    let Some(entry) = entry(fd) else { return ring.lose() };
    let now = counts::now();
    entry.store(0, Relaxed);
    if !ring.draws(now) {
        return;
    }
    let client = Place { len: client.len as u16, bytes: client.bytes };
    let own = counts::own_pid();
    let received = |ticket| {
        Record::Received(Received {
            pid: own,
            fd: fd as u32,
            id: id(ticket),
            listener,
            accepted,
            received: now,
            client,
        })
    };
    if let Some(ticket) = write(ring, received) {
        entry.store(u64::from(own) << 32 | u64::from(id(ticket)), Relaxed);
    }
}

/// The number of this process's own connection, with what happened to it.
fn own(entry: u64) -> Option<u32> {
    (entry != 0 && (entry >> 32) as u32 == counts::own_pid()).then_some(entry as u32)
}

/// shutdown(2) is about to be called: which side is the first to end is known now.
#[inline]
pub fn shuts(fd: i32, how: i32) {
    if how != raw::SHUT_RD && MEMORY.is_mapped() {
        note_shutdown(fd);
    }
}

#[cold]
fn note_shutdown(fd: i32) {
    let Some(entry) = entry(fd) else { return };
    let before = entry.load(Relaxed);
    if let Some(known) = own(before)
        && known & (SHUT_FIRST | SHUT_SECOND) == 0
        && let Some(info) = tcp_info(fd)
    {
        let mark = match info_state(&info) {
            state::ESTABLISHED => SHUT_FIRST,
            state::CLOSE_WAIT => SHUT_SECOND,
            _ => return,
        };
        entry.store(before | u64::from(mark), Relaxed);
    }
}

/// A connection is about to be closed.
#[inline]
pub fn closing(fd: i32) {
    if let Some(ring) = ring() {
        record_closed(ring, fd);
    }
}

#[cold]
fn record_closed(ring: Ring<'_>, fd: i32) {
    let Some(known) = entry(fd).and_then(|entry| own(entry.swap(0, Relaxed))) else { return };
    let mut info = tcp_info(fd);
    // The kernel reads the state before the numbers: a FIN that came in between is in these already.
    if info.as_ref().is_some_and(|info| !fin_came(info, known)) && raw::receives_no_more(fd) {
        // That is visible before the state is. The first of these two waits until whoever receives the FIN has finished.
        tcp_info(fd);
        info = tcp_info(fd);
    }
    let closed = closed(known & (access::IDS - 1), known, info.as_ref(), counts::now());
    write(ring, |_| Record::Closed(closed));
}

/// A connection goes on with another worker, whose line has all of its bytes.
pub fn moved(fd: i32) {
    let Some(ring) = ring() else { return };
    if let Some(known) = entry(fd).and_then(|entry| own(entry.swap(0, Relaxed))) {
        let moved = Closed { end: end::MOVED, ..closed(known & (access::IDS - 1), 0, None, counts::now()) };
        write(ring, |_| Record::Closed(moved));
    }
}

/// Whether the client has ended its side.
fn fin_came(info: &TcpInfo, marks: u32) -> bool {
    match info_state(info) {
        state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT => true,
        state::CLOSE => marks & (SHUT_FIRST | SHUT_SECOND) != 0,
        _ => false,
    }
}

/// What the kernel knows of a TCP connection.
pub fn tcp_info(fd: i32) -> Option<TcpInfo> {
    const IPPROTO_TCP: usize = 6;
    const TCP_INFO: usize = 11;
    let mut info: TcpInfo = [0; 29];
    let mut len = size_of::<TcpInfo>() as u32;
    let arguments = [fd as usize, IPPROTO_TCP, TCP_INFO, info.as_mut_ptr() as usize, &raw mut len as usize, 0];
    // SAFETY: the kernel writes at most the words of the local, and the length.
    let result = unsafe { syscall6(nr::GETSOCKOPT, arguments) };
    (result == 0).then_some(info)
}

pub fn info_state(info: &TcpInfo) -> u8 {
    info[0] as u8
}

/// What a connection's end says, from what the kernel knows of it just before the close.
fn closed(id: u32, marks: u32, info: Option<&TcpInfo>, now: u64) -> Closed {
    let mut closed = Closed {
        id,
        end: end::SERVER,
        closed: now,
        bytes_in: u64::MAX,
        bytes_out: u64::MAX,
        rtt: NONE,
        retransmits: NONE,
        connect: NONE,
        upstream: NONE,
        address: Place::UNKNOWN,
    };
    let Some(info) = info else { return closed };
    let state = info_state(info);
    let shut = marks & (SHUT_FIRST | SHUT_SECOND) != 0;
    // A connection that the server has not ended is closed by a reset, or because the client was lost.
    let reset = state == state::CLOSE && !shut;
    closed.end = match state {
        _ if marks & SHUT_SECOND != 0 => end::CLIENT,
        _ if marks & SHUT_FIRST != 0 => end::SERVER,
        state::CLOSE_WAIT | state::LAST_ACK => end::CLIENT,
        _ if reset => end::RESET,
        _ => end::SERVER,
    };
    let [acked, received, sent, again] = [info[15], info[16], info[25], info[26]];
    // The kernel counts a FIN as one byte.
    closed.bytes_in = received.saturating_sub(u64::from(fin_came(info, marks)));
    // What was sent, and what lies in the send buffer; of a reset connection what the client had acknowledged. Before
    // Linux 4.19 only that is known.
    let unsent = info[18] as u32;
    closed.bytes_out = if reset || sent == 0 { acked } else { sent.saturating_sub(again) + u64::from(unsent) };
    closed.rtt = (info[8] >> 32) as u32;
    closed.retransmits = (info[12] >> 32) as u32;
    closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(state: u8, acked: u64, received: u64) -> TcpInfo {
        let mut info = [0; 29];
        info[0] = u64::from(state) | 0x0700;
        (info[8], info[12], info[15], info[16], info[25]) = (45 << 32, 3 << 32 | 9, acked, received, 1000);
        info
    }

    #[test]
    fn who_was_first_and_how_many_bytes() {
        let of = |state, acked, received, marks| {
            let closed = closed(7, marks, Some(&info(state, acked, received)), 1);
            assert_eq!((closed.rtt, closed.retransmits, closed.id), (45, 3, 7));
            (closed.end, closed.bytes_in, closed.bytes_out)
        };
        // As the kernel shows them: 100 bytes came, 1000 went.
        assert_eq!(of(state::ESTABLISHED, 1000, 100, 0), (end::SERVER, 100, 1000));
        assert_eq!(of(state::CLOSE_WAIT, 1000, 101, 0), (end::CLIENT, 100, 1000));
        assert_eq!(of(5, 1001, 100, SHUT_FIRST), (end::SERVER, 100, 1000));
        assert_eq!(of(state::CLOSE, 1001, 101, SHUT_FIRST), (end::SERVER, 100, 1000));
        assert_eq!(of(state::CLOSE, 1001, 101, SHUT_SECOND), (end::CLIENT, 100, 1000));
        assert_eq!(of(state::CLOSE, 900, 100, 0), (end::RESET, 100, 900));
        assert_eq!(closed(7, 0, None, 1).bytes_in, u64::MAX);
    }
}
