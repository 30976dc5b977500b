//! `--drain-idle move`: while its worker leaves, a connection that the server closes between two requests goes back to the
//! master, which has another server go on with it. The client notices nothing: no FIN is sent while the master has the socket.
//! Whatever is not certain is closed.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

use super::abi::attach::{ADDRESS_BYTES, Request, STATUS, TRANSLATED, op};
use super::client::{self, Master, Wait};
use super::identity::Identity;
use super::raw::{EAGAIN, close};
use super::watched::{self, Watched};
use super::{counts, epolls, message, raw, table};

/// The connection to the master for this, since nothing may wait for an answer; -1: none.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static FILE: Identity = Identity::none();
/// The process that opened it, and the one that is about to.
static OWNER: AtomicU32 = AtomicU32::new(0);
static OPENER: AtomicU32 = AtomicU32::new(0);

/// How many milliseconds this process still waits in all for a master that does not keep up.
static PATIENCE: AtomicU32 = AtomicU32::new(200);

const MSG_DONTWAIT: usize = 0x40;
const ETOOMANYREFS: i32 = 109;

/// Opens the way to the master, if connections are watched.
pub fn begin() {
    if counts::watches() {
        is_ready();
    }
}

/// Whether this process has a way to the master, opened now if need be.
pub fn is_ready() -> bool {
    let own = counts::own_pid();
    if OWNER.load(Acquire) == own {
        return true;
    }
    // A mark that came by fork is nobody's. What comes while another thread is at it is not watched.
    if OPENER.swap(own, AcqRel) == own {
        return false;
    }
    let opened = OWNER.load(Acquire) == own || open(own);
    OPENER.store(0, Release);
    opened
}

fn open(own: u32) -> bool {
    let Some(master) = Master::remembered() else { return false };
    let Some(socket) = master.connect(Wait::Briefly) else { return false };
    let request = master.request(op::MOVES, 0, [0; ADDRESS_BYTES]);
    let agreed = client::exchange(socket, &request, None, Wait::Briefly)
        .is_some_and(|answer| answer.reply.kind == STATUS && answer.errno().is_none());
    if !agreed {
        close(socket);
        return false;
    }
    let socket = raw::move_to_high_fd(socket);
    FILE.remember(socket);
    SOCKET.store(socket, Release);
    OWNER.store(own, Release);
    true
}

/// A connection has gone to the master.
pub struct Moved {
    fd: i32,
    going: u32,
}

impl Moved {
    /// Its descriptor is closed. Whether the bell is to be rung.
    pub fn close_done(self) -> bool {
        table::gone(self.fd, self.going)
    }
}

/// close(2) is about to be called.
#[inline]
pub fn at_close(fd: i32) -> Option<Moved> {
    let watched = leaving(fd)?;
    if !is_free(fd, watched) {
        return None;
    }
    epolls::leave_all(fd);
    send(fd, watched).then(|| Moved { fd, going: table::going(fd) })
}

/// shutdown(2) is about to be called, for sending at least. A socket whose other end is closed takes the connection's place:
/// it has ended in both directions.
#[inline]
pub fn at_shutdown(fd: i32) -> Option<Moved> {
    let watched = leaving(fd).filter(|_| counts::ours())?;
    if !is_free(fd, watched) {
        return None;
    }
    let Some(ended) = raw::ended_stream(raw::is_nonblocking(fd)) else {
        watched.leaving.store(0, SeqCst);
        return None;
    };
    let registered = epolls::take_out_of_known(fd);
    if !registered.complete {
        watched.leaving.store(0, SeqCst);
    }
    let moved = (registered.complete && send(fd, watched)).then(|| {
        let going = table::going(fd);
        raw::dup3(ended, fd, raw::cloexec_of(fd));
        Moved { fd, going }
    });
    registered.put_back(fd);
    close(ended);
    moved
}

/// The connection at a descriptor, where connections are to go back to the master now.
#[inline]
fn leaving(fd: i32) -> Option<&'static Watched> {
    if table::is_watched(fd) && counts::moves() { watched::known(fd) } else { None }
}

/// Whether another server can go on with a connection. Then no thread of this one can begin to use it any more.
#[cold]
fn is_free(fd: i32, watched: &Watched) -> bool {
    let may = watched.is_own() && watched.may_move();
    // Another thread's call waits from here on.
    if !may || watched.leaving.swap(1, SeqCst) != 0 {
        return false;
    }
    let free = watched.inside.load(SeqCst) == 0
        && watched::so_far(fd).is_some_and(|so_far| watched.is_at_rest(so_far))
        && !raw::lingers(fd)
        && epolls::are_known();
    if !free {
        watched.leaving.store(0, SeqCst);
    }
    free
}

fn send(fd: i32, watched: &Watched) -> bool {
    let socket = SOCKET.load(Acquire);
    let mut address = [0; ADDRESS_BYTES];
    address[0] = if watched.translated.load(Relaxed) != 0 { TRANSLATED } else { 0 };
    let request = Master::remembered().map(|master| master.request(op::MOVE, watched.listener.load(Relaxed), address));
    let sent = match request {
        // The server may have closed it.
        Some(request) if OWNER.load(Acquire) == request.pid && FILE.is_at(socket) => deliver(socket, &request, fd),
        _ => false,
    };
    if !sent {
        watched.leaving.store(0, SeqCst);
    }
    sent
}

fn deliver(socket: i32, request: &Request, fd: i32) -> bool {
    loop {
        let result = message::send(socket, request, Some(fd), MSG_DONTWAIT);
        if result >= 0 {
            return true;
        }
        let full = matches!(-result as i32, EAGAIN | ETOOMANYREFS);
        let waits = |left: u32| left.checked_sub(1);
        if !full || PATIENCE.fetch_update(Relaxed, Relaxed, waits).is_err() {
            return false;
        }
        raw::sleep_ms(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_one_thread_opens_the_way_no_other_does() {
        let own = counts::own_pid();
        OPENER.store(own, SeqCst);
        assert!(!is_ready());
        assert_eq!(OPENER.load(SeqCst), own, "it is not its to end");
        // A child of a process whose thread was at it. There is no master here.
        OPENER.store(own + 1, SeqCst);
        assert!(!is_ready());
        assert_eq!(OPENER.load(SeqCst), 0, "it has tried");
        OWNER.store(own, SeqCst);
        assert!(is_ready());
        OWNER.store(own + 1, SeqCst);
        assert!(!is_ready(), "its parent's");
        OWNER.store(0, SeqCst);
    }
}
