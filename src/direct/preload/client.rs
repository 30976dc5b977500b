//! The library's end of the attach socket: a request, a reply.

use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering::*};

use super::abi::attach::{ADDRESS_BYTES, HAS_TRANSLATIONS, Reply, Request, STATUS, TOKEN_BYTES, VARIABLE, VERSION};
use super::arch::{nr, pid, syscall6};
use super::bell;
use super::identity::Identity;
use super::message::{self, RecvVia};
use super::raw::{self, close, unix_seqpacket};

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The connection to the master and the process that opened it: one that was forked since needs its own.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static OWNER: AtomicU32 = AtomicU32::new(0);
static FILE: Identity = Identity::none();
/// The process one of whose threads uses it at this moment; 0: none.
static IN_USE_BY: AtomicU32 = AtomicU32::new(0);

const EINTR: isize = 4;

/// How many milliseconds this process still waits in all for replies that it can do without, until one comes.
static PATIENCE: AtomicU32 = AtomicU32::new(PATIENCE_MS);
const PATIENCE_MS: u32 = 1000;
const SLICE_MS: u32 = 10;

/// How long a request waits for its reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it is there.
    Always,
    /// While there is patience: a master that hangs must not keep a server from ending. It finds the request later.
    Briefly,
}

impl Wait {
    /// Whether a reply has come.
    fn has_reply(self, socket: i32) -> bool {
        if self == Self::Always {
            return true;
        }
        loop {
            if raw::is_readable_within(socket, 0) {
                return true;
            }
            let taken = PATIENCE.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(SLICE_MS));
            if taken.is_err() {
                return false;
            }
            if raw::is_readable_within(socket, SLICE_MS) {
                return true;
            }
        }
    }
}

/// A reply with the descriptors that came with it (-1 where there are fewer).
pub struct Answer {
    pub reply: Reply,
    pub fds: [i32; 3],
}

impl Answer {
    /// As if the master had answered with this errno.
    pub fn failed(errno: i32) -> Self {
        let reply = Reply { version: VERSION, kind: STATUS, number: errno as u32, address: [0; ADDRESS_BYTES] };
        Self { reply, fds: [-1; 3] }
    }

    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        (self.reply.kind == STATUS && self.reply.number != 0).then_some(self.reply.number as i32)
    }
}

fn close_all(fds: &[i32]) {
    fds.iter().filter(|&&fd| fd >= 0).for_each(|&fd| close(fd));
}

/// Where the master is, and the proof that this process is one of its workers.
#[cfg_attr(test, derive(Debug, PartialEq))]
pub struct Master {
    /// A `sockaddr_un`.
    address: [u8; 110],
    address_len: usize,
    token: [u8; TOKEN_BYTES],
    /// Whether the worker has a record of translated addresses.
    pub translates: bool,
}

impl Master {
    /// From the environment; `None`: this process has none.
    pub fn find() -> Option<Self> {
        let value = variable()?.to_bytes();
        remembered::keep(value);
        Self::parse(value)
    }

    /// As it was found first, also by a parent: some servers clear the environment of their workers.
    pub fn remembered() -> Option<Self> {
        remembered::with(Self::parse).or_else(Self::find)
    }

    /// The variable's value: name, `:`, token, what the worker has.
    fn parse(value: &[u8]) -> Option<Self> {
        let plain = value.strip_suffix(HAS_TRANSLATIONS.as_bytes());
        let (value, translates) = (plain.unwrap_or(value), plain.is_some());
        let colon = value.iter().position(|&byte| byte == b':')?;
        let (name, token) = (value.get(..colon)?, value.get(colon + 1..)?);
        // AF_UNIX, then a NUL byte: an abstract name.
        let mut master = Self { address: [0; 110], address_len: 3 + name.len(), token: [0; TOKEN_BYTES], translates };
        master.address[0] = 1;
        master.address.get_mut(3..3 + name.len())?.copy_from_slice(name);
        if token.len() != 2 * TOKEN_BYTES {
            return None;
        }
        for (byte, digits) in master.token.iter_mut().zip(token.chunks_exact(2)) {
            *byte = digit(*digits.first()?)? << 4 | digit(*digits.get(1)?)?;
        }
        Some(master)
    }

    /// A new connection. Connecting takes time where many others wait for the master, too.
    pub fn connect(&self, wait: Wait) -> Option<i32> {
        let socket = unix_seqpacket()?;
        if wait == Wait::Briefly {
            // The least that is not "without end".
            raw::set_send_timeout(socket, PATIENCE.load(Relaxed).max(1));
        }
        let address = self.address.as_ptr() as usize;
        // SAFETY: the kernel reads the address, which outlives the call.
        if unsafe { syscall6(nr::CONNECT, [socket as usize, address, self.address_len, 0, 0, 0]) } < 0 {
            close(socket);
            return None;
        }
        Some(socket)
    }

    pub fn request(&self, op: u16, number: u32, address: [u8; ADDRESS_BYTES]) -> Request {
        Request { version: VERSION, op, pid: pid(), token: self.token, number, address }
    }
}

/// The variable's value, as it was found first.
mod remembered {
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicUsize, Ordering::*};

    const MOST: usize = 160;
    const WRITING: usize = usize::MAX;

    struct Value(UnsafeCell<[u8; MOST]>);
    // SAFETY: written once, by whoever has set LEN to WRITING, and read only after LEN has its length.
    unsafe impl Sync for Value {}
    static VALUE: Value = Value(UnsafeCell::new([0; MOST]));
    /// 0: none yet.
    static LEN: AtomicUsize = AtomicUsize::new(0);

    /// Keeps the first one.
    pub fn keep(value: &[u8]) {
        if value.len() > MOST || LEN.compare_exchange(0, WRITING, AcqRel, Relaxed).is_err() {
            return;
        }
        // SAFETY: no other thread writes it, and none reads it yet.
        let place = unsafe { &mut *VALUE.0.get() };
        place.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        LEN.store(value.len(), Release);
    }

    pub fn with<T>(parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        let len = LEN.load(Acquire);
        if len == 0 || len == WRITING {
            return None;
        }
        // SAFETY: it is never written again.
        parse(unsafe { &*VALUE.0.get() }.get(..len)?)
    }
}

fn variable() -> Option<&'static CStr> {
    // SAFETY: libc keeps `environ` a null-terminated list of NUL-terminated strings (or null); a thread that changes it
    // while another one reads it breaks getenv(3), too.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = CStr::from_ptr(*entry);
            if let Some(rest) = text.to_bytes_with_nul().strip_prefix(VARIABLE.as_bytes())
                && let Some(value) = rest.strip_prefix(b"=")
            {
                return CStr::from_bytes_with_nul(value).ok();
            }
            entry = entry.add(1);
        }
    }
    None
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// A request about a listener.
pub fn request(op: u16, listener: u32) -> Option<Answer> {
    request_with(op, listener, [0; ADDRESS_BYTES], None)
}

/// Tells the master something about a listener, and waits a little until it has heard.
pub fn tell(op: u16, listener: u32) {
    let _ = send_and_wait(op, listener, [0; ADDRESS_BYTES], None, Wait::Briefly);
}

/// Asks the master and waits for its reply; `None` when there is no master (then all is as without this library).
pub fn request_with(op: u16, number: u32, address: [u8; ADDRESS_BYTES], fd: Option<i32>) -> Option<Answer> {
    send_and_wait(op, number, address, fd, Wait::Always)
}

fn send_and_wait(op: u16, number: u32, address: [u8; ADDRESS_BYTES], fd: Option<i32>, wait: Wait) -> Option<Answer> {
    let master = Master::find()?;
    let request = master.request(op, number, address);
    let own = request.pid;
    // One at a time over the connection that stays. Whoever finds it in use (another thread, the code that this signal
    // handler interrupted) opens another; a mark that came by fork is nobody's.
    let taken = IN_USE_BY.compare_exchange(0, own, AcqRel, Acquire);
    if taken.is_err_and(|by| by == own || IN_USE_BY.compare_exchange(by, own, AcqRel, Acquire).is_err()) {
        let socket = master.connect(wait)?;
        let answer = exchange(socket, &request, fd, wait);
        close(socket);
        return answer;
    }
    let answer = over_the_kept_connection(&master, &request, fd, wait);
    IN_USE_BY.store(0, Release);
    answer
}

fn over_the_kept_connection(master: &Master, request: &Request, fd: Option<i32>, wait: Wait) -> Option<Answer> {
    // A connection that the server has closed (it closes what it does not know) is opened again; its number may be that
    // of one of the server's own by now, which gets and loses no byte by us.
    for _ in 0..2 {
        let known = if OWNER.load(Acquire) == request.pid { SOCKET.load(Acquire) } else { -1 };
        let socket = if known >= 0 && FILE.is_at(known) {
            known
        } else {
            let new = master.connect(wait)?;
            FILE.remember(new);
            SOCKET.store(new, Release);
            OWNER.store(request.pid, Release);
            new
        };
        // Nothing else is under way on it: this does not block.
        if message::send(socket, request, fd, 0) >= 0 {
            if wait.has_reply(socket) {
                return receive(socket);
            }
            // The reply would be taken for the next one's.
            SOCKET.store(-1, Release);
            close(socket);
            return None;
        }
        SOCKET.store(-1, Release);
    }
    None
}

/// A request over a connection of its own.
pub fn exchange(socket: i32, request: &Request, fd: Option<i32>, wait: Wait) -> Option<Answer> {
    if message::send(socket, request, fd, 0) >= 0 && wait.has_reply(socket) { receive(socket) } else { None }
}

fn receive(socket: i32) -> Option<Answer> {
    const CLOEXEC: usize = 0x4000_0000;
    let mut reply = Reply { version: 0, kind: 0, number: 0, address: [0; ADDRESS_BYTES] };
    loop {
        let (n, fds) = message::receive(socket, &mut reply, CLOEXEC, RecvVia::Kernel);
        if n == -EINTR {
            continue;
        }
        if n != size_of::<Reply>() as isize || reply.version != VERSION {
            close_all(&fds);
            return None;
        }
        PATIENCE.store(PATIENCE_MS, Relaxed);
        let [fds @ .., bell] = fds;
        bell::ROOM.hang(bell);
        return Some(Answer { reply, fds });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "000102030405060708090a0b0c0d0eff";

    #[test]
    fn the_variable_has_a_name_and_a_token() {
        let master = Master::parse(format!("roundsman-1-ab:{TOKEN}").as_bytes());
        let (token, name) = master.map(|m| (m.token, m.address[..m.address_len].to_vec())).unwrap_or_default();
        assert_eq!(token, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(name, b"\x01\0\0roundsman-1-ab");
        for (end, translates) in [("", false), (HAS_TRANSLATIONS, true)] {
            let master = Master::parse(format!("roundsman-1-ab:{TOKEN}{end}").as_bytes());
            assert_eq!(master.map(|m| (m.translates, m.token)), Some((translates, token)));
        }
    }

    #[test]
    fn a_spoilt_variable_is_none() {
        let long = "x".repeat(200);
        for value in [
            String::new(),
            ":".to_owned(),
            "name".to_owned(),
            format!("name:{}", &TOKEN[1..]),
            format!("name:{TOKEN}0"),
            format!("name:{}", TOKEN.replace('f', "g")),
            format!("{long}:{TOKEN}"),
        ] {
            assert_eq!(Master::parse(value.as_bytes()), None, "{value}");
        }
        assert!(Master::parse(format!("{}:{TOKEN}", &long[..107]).as_bytes()).is_some());
        assert!(Master::parse(format!("{}:{TOKEN}", &long[..108]).as_bytes()).is_none());
    }
}
