//! The epoll instances of this process, from /proc: a registration belongs to an open file, and a stand-in is another one
//! than the socket whose place it takes.

use super::arch::{nr, syscall6};
use super::lease;

const AT_FDCWD: usize = -100isize as usize;
const DEL: usize = 2;
const ADD: usize = 1;
/// Registrations of one descriptor that are carried over.
const MAX_REGISTRATIONS: usize = 16;

/// One registration.
#[derive(Clone, Copy)]
struct Registration {
    epoll: i32,
    events: u32,
    data: u64,
}

/// The registrations of one descriptor, taken out of their epoll instances.
pub struct Registrations {
    found: [Registration; MAX_REGISTRATIONS],
    count: usize,
}

/// The kernel's epoll_event; packed on x86_64 only.
#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(packed))]
struct Event {
    events: u32,
    data: u64,
}

fn control(epoll: i32, what: usize, fd: i32, event: *const Event) {
    // SAFETY: the event is a local of the caller, or null where the kernel ignores it.
    unsafe { syscall6(nr::EPOLL_CTL, [epoll as usize, what, fd as usize, event as usize, 0, 0]) };
}

/// Takes a descriptor out of every epoll instance of this process that has it.
pub fn take_out(fd: i32) -> Registrations {
    let mut all =
        Registrations { found: [Registration { epoll: -1, events: 0, data: 0 }; MAX_REGISTRATIONS], count: 0 };
    each_epoll(|epoll| {
        each_line(epoll, |line| {
            if let Some((events, data)) = registration(line, fd)
                && let Some(place) = all.found.get_mut(all.count)
            {
                *place = Registration { epoll, events, data };
                all.count += 1;
            }
        });
    });
    for one in all.found.iter().take(all.count) {
        control(one.epoll, DEL, fd, core::ptr::null());
    }
    all
}

impl Registrations {
    /// Registers whatever is at the descriptor now, as before.
    pub fn put_back(&self, fd: i32) {
        for one in self.found.iter().take(self.count) {
            let event = Event { events: one.events, data: one.data };
            control(one.epoll, ADD, fd, &raw const event);
        }
    }
}

/// `tfd:        5 events:       19 data:     5 …` (proc(5), fdinfo of an epoll descriptor): tfd is decimal, the others are
/// hexadecimal.
fn registration(line: &[u8], fd: i32) -> Option<(u32, u64)> {
    let mut words = line.split(|&byte| byte == b' ' || byte == b'\t').filter(|word| !word.is_empty());
    if words.next()? != b"tfd:" || number(words.next()?, 10)? != fd as u64 {
        return None;
    }
    words.next().filter(|&word| word == b"events:")?;
    let events = number(words.next()?, 16)?;
    words.next().filter(|&word| word == b"data:")?;
    Some((events as u32, number(words.next()?, 16)?))
}

fn number(text: &[u8], base: u64) -> Option<u64> {
    let mut value: u64 = 0;
    for &byte in text {
        let digit = (byte as char).to_digit(base as u32)?;
        value = value.wrapping_mul(base).wrapping_add(u64::from(digit));
    }
    Some(value)
}

fn open(path: &[u8]) -> i32 {
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: callers pass a path that ends with NUL.
    (unsafe { syscall6(nr::OPENAT, [AT_FDCWD, path.as_ptr() as usize, O_CLOEXEC, 0, 0, 0]) }) as i32
}

/// Calls `each` with every descriptor that is an epoll instance.
fn each_epoll(mut each: impl FnMut(i32)) {
    let directory = open(b"/proc/self/fd\0");
    if directory < 0 {
        return;
    }
    let mut entries = [0u8; 2048];
    loop {
        let (at, len) = (entries.as_mut_ptr() as usize, entries.len());
        // SAFETY: the kernel writes at most `len` bytes into the local.
        let n = unsafe { syscall6(nr::GETDENTS64, [directory as usize, at, len, 0, 0, 0]) };
        if n <= 0 {
            break;
        }
        let mut rest = entries.get(..n as usize).unwrap_or(&[]);
        // linux_dirent64: inode (8), offset (8), record length (2), type (1), name with NUL.
        while let Some((&low, &high)) = rest.get(16).zip(rest.get(17)) {
            let len = usize::from(u16::from_ne_bytes([low, high]));
            let name = rest.get(19..len).and_then(|name| name.split(|&byte| byte == 0).next());
            if let Some(fd) = name.filter(|name| !name.is_empty()).and_then(|name| number(name, 10))
                && is_epoll(directory, fd as i32)
            {
                each(fd as i32);
            }
            rest = rest.get(len.max(1)..).unwrap_or(&[]);
        }
    }
    lease::close(directory);
}

/// Writes `number` in decimal, with a NUL behind it; the length without that.
fn decimal(number: i32, to: &mut [u8]) -> usize {
    let (mut digits, mut count, mut rest) = ([0u8; 10], 0, number.max(0) as u32);
    loop {
        if let Some(place) = digits.get_mut(count) {
            *place = b'0' + (rest % 10) as u8;
        }
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in to.iter_mut().zip(digits.iter().take(count).rev()) {
        *place = *digit;
    }
    if let Some(place) = to.get_mut(count) {
        *place = 0;
    }
    count
}

fn is_epoll(directory: i32, fd: i32) -> bool {
    let (mut name, mut target) = ([0u8; 16], [0u8; 32]);
    decimal(fd, &mut name);
    let arguments = [directory as usize, name.as_ptr() as usize, target.as_mut_ptr() as usize, target.len(), 0, 0];
    // SAFETY: the name ends with NUL; the kernel writes at most the target's length.
    let n = unsafe { syscall6(nr::READLINKAT, arguments) };
    n > 0 && target.get(..n as usize).is_some_and(|target| target.starts_with(b"anon_inode:[eventpoll]"))
}

/// Calls `each` with every whole line of an epoll descriptor's fdinfo.
fn each_line(epoll: i32, mut each: impl FnMut(&[u8])) {
    let mut path = [0u8; 40];
    let head = b"/proc/self/fdinfo/";
    for (place, byte) in path.iter_mut().zip(head) {
        *place = *byte;
    }
    decimal(epoll, path.get_mut(head.len()..).unwrap_or(&mut []));
    let file = open(&path);
    if file < 0 {
        return;
    }
    let mut buffer = [0u8; 1024];
    let mut kept = 0;
    loop {
        let Some(room) = buffer.get_mut(kept..).filter(|room| !room.is_empty()) else { break };
        // SAFETY: the kernel writes at most the room's length.
        let n = unsafe { syscall6(nr::READ, [file as usize, room.as_mut_ptr() as usize, room.len(), 0, 0, 0]) };
        if n <= 0 {
            break;
        }
        let len = kept + n as usize;
        let mut start = 0;
        while let Some(end) = buffer.get(start..len).and_then(|rest| rest.iter().position(|&byte| byte == b'\n')) {
            each(buffer.get(start..start + end).unwrap_or(&[]));
            start += end + 1;
        }
        buffer.copy_within(start.min(len)..len, 0);
        kept = len - start.min(len);
    }
    lease::close(file);
}
