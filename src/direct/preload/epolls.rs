//! The epoll instances of this process, from /proc: a registration belongs to an open file, and a stand-in is another one
//! than the socket whose place it takes.

use core::ffi::CStr;

use super::arch::{nr, syscall6};
use super::raw::{close, device_and_inode, dup_at};

#[path = "epoll_list.rs"]
mod list;
use list::each_known;
pub use list::{are_known, leave_all};

const AT_FDCWD: usize = -100isize as usize;
const DEL: usize = 2;
const ADD: usize = 1;
/// Registrations of one descriptor that are carried over.
const MAX_REGISTRATIONS: usize = 16;

#[derive(Clone, Copy)]
struct Registration {
    epoll: i32,
    /// The number that it was registered by, which may be closed by now: the registration lives as long as the open file.
    fd: i32,
    events: u32,
    data: u64,
}

/// The registrations of one descriptor, and of closed ones of the same open file, taken out of their epoll instances.
pub struct Registrations {
    found: [Registration; MAX_REGISTRATIONS],
    count: usize,
    /// Whether these are all of them: /proc was there, and no more were found than are kept.
    pub complete: bool,
}

/// The kernel's epoll_event; packed on x86_64 only.
#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(packed))]
struct Event {
    events: u32,
    data: u64,
}

fn control(epoll: i32, what: usize, fd: i32, event: &Event) {
    // SAFETY: the kernel reads the event.
    unsafe { syscall6(nr::EPOLL_CTL, [epoll as usize, what, fd as usize, &raw const *event as usize, 0, 0]) };
}

/// Takes a descriptor out of every epoll instance of this process that has it.
pub fn take_out(fd: i32) -> Registrations {
    take_out_of(fd, |each| each_epoll(each))
}

/// The same where all of them [`are_known`]: with many descriptors it takes half the time not to look for them.
pub fn take_out_of_known(fd: i32) -> Registrations {
    take_out_of(fd, |each| {
        each_known(each);
        true
    })
}

/// `epolls` calls with every instance; whether it has missed none.
fn take_out_of(fd: i32, epolls: impl FnOnce(&mut dyn FnMut(i32)) -> bool) -> Registrations {
    let none = Registration { epoll: -1, fd: -1, events: 0, data: 0 };
    let mut all = Registrations { found: [none; MAX_REGISTRATIONS], count: 0, complete: true };
    let own = device_and_inode(fd);
    let mut missed = false;
    let seen = epolls(&mut |epoll| {
        let read = each_line(epoll, |line| {
            let Some((found, inode)) = registration(line, epoll) else { return };
            let same = inode.is_none_or(|inode| own.is_some_and(|own| own.1 == inode));
            // Another descriptor of the file that is open has its own turn.
            if same && (found.fd == fd || device_and_inode(found.fd) != own) {
                let Some(place) = all.found.get_mut(all.count) else {
                    all.complete = false;
                    return;
                };
                *place = found;
                all.count += 1;
            }
        });
        missed |= !read;
    });
    all.complete &= seen && !missed;
    for one in all.found.iter().take(all.count) {
        one.control(DEL, fd);
    }
    all
}

impl Registration {
    /// epoll_ctl(2) for the file at `fd`, by the number of the registration. (Where another file is at that number by now,
    /// nothing can be done.)
    fn control(&self, what: usize, fd: i32) {
        let event = Event { events: self.events, data: self.data };
        if self.fd == fd {
            control(self.epoll, what, fd, &event);
        } else if dup_at(fd, self.fd) {
            control(self.epoll, what, self.fd, &event);
            close(self.fd);
        }
    }
}

impl Registrations {
    /// Registers whatever is at the descriptor now, as before.
    pub fn put_back(&self, fd: i32) {
        for one in self.found.iter().take(self.count) {
            one.control(ADD, fd);
        }
    }
}

/// `tfd:        5 events:       19 data:     5  pos:0 ino:7 sdev:8` (proc(5), fdinfo of an epoll descriptor): tfd and pos are
/// decimal, the others are hexadecimal. The registration, and the file's inode, which older kernels do not name.
fn registration(line: &[u8], epoll: i32) -> Option<(Registration, Option<u64>)> {
    let mut words = line.split(|&byte| byte == b' ' || byte == b'\t').filter(|word| !word.is_empty());
    words.next().filter(|&word| word == b"tfd:")?;
    let fd = number(words.next()?, 10)? as i32;
    words.next().filter(|&word| word == b"events:")?;
    let events = number(words.next()?, 16)? as u32;
    words.next().filter(|&word| word == b"data:")?;
    let data = number(words.next()?, 16)?;
    let inode = words.find_map(|word| number(word.strip_prefix(b"ino:")?, 16));
    Some((Registration { epoll, fd, events, data }, inode))
}

fn number(text: &[u8], base: u64) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for &byte in text {
        let digit = (byte as char).to_digit(base as u32)?;
        value = value.wrapping_mul(base).wrapping_add(u64::from(digit));
    }
    Some(value)
}

fn open(path: &CStr) -> i32 {
    const O_CLOEXEC: usize = 0o2_000_000;
    // SAFETY: the path ends with NUL.
    (unsafe { syscall6(nr::OPENAT, [AT_FDCWD, path.as_ptr() as usize, O_CLOEXEC, 0, 0, 0]) }) as i32
}

/// Calls `each` with every descriptor that is an epoll instance; whether none can have been missed.
fn each_epoll(mut each: impl FnMut(i32)) -> bool {
    each_descriptor(|directory, fd| {
        if is_epoll(directory, fd) {
            each(fd);
        }
    })
}

/// Calls `each` with the descriptor of /proc/self/fd and every descriptor of this process; whether it
/// has read all of them (no descriptor may be left to open the directory, or there is no /proc).
pub fn each_descriptor(mut each: impl FnMut(i32, i32)) -> bool {
    let directory = open(c"/proc/self/fd");
    if directory < 0 {
        return false;
    }
    let mut entries = [0u8; 2048];
    let complete = loop {
        let (at, len) = (entries.as_mut_ptr() as usize, entries.len());
        // SAFETY: the kernel writes at most `len` bytes into the local.
        let n = unsafe { syscall6(nr::GETDENTS64, [directory as usize, at, len, 0, 0, 0]) };
        if n <= 0 {
            break n == 0;
        }
        each_name(entries.get(..n as usize).unwrap_or(&[]), |name| {
            if let Some(fd) = number(name, 10) {
                each(directory, fd as i32);
            }
        });
    };
    close(directory);
    complete
}

/// Calls `each` with the names in what getdents64(2) gave, records of linux_dirent64: inode (8), offset (8), length of the
/// record (2), type (1), name with NUL.
fn each_name(mut records: &[u8], mut each: impl FnMut(&[u8])) {
    while let Some((&low, &high)) = records.get(16).zip(records.get(17)) {
        let len = usize::from(u16::from_ne_bytes([low, high]));
        if let Some(name) = records.get(19..len).and_then(|name| name.split(|&byte| byte == 0).next()) {
            each(name);
        }
        records = records.get(len.max(1)..).unwrap_or(&[]);
    }
}

/// Writes `number` in decimal, with a NUL behind it, as far as there is room.
fn decimal(number: i32, to: &mut [u8]) {
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
}

fn is_epoll(directory: i32, fd: i32) -> bool {
    let (mut name, mut target) = ([0u8; 16], [0u8; 32]);
    decimal(fd, &mut name);
    let arguments = [directory as usize, name.as_ptr() as usize, target.as_mut_ptr() as usize, target.len(), 0, 0];
    // SAFETY: the name ends with NUL; the kernel writes at most the target's length.
    let n = unsafe { syscall6(nr::READLINKAT, arguments) };
    n > 0 && target.get(..n as usize).is_some_and(|target| target.starts_with(b"anon_inode:[eventpoll]"))
}

/// Calls `each` with every whole line of an epoll descriptor's fdinfo; whether it was read to its end.
fn each_line(epoll: i32, mut each: impl FnMut(&[u8])) -> bool {
    let mut path = [0u8; 40];
    let head = b"/proc/self/fdinfo/";
    for (place, byte) in path.iter_mut().zip(head) {
        *place = *byte;
    }
    decimal(epoll, path.get_mut(head.len()..).unwrap_or(&mut []));
    let file = CStr::from_bytes_until_nul(&path).map_or(-1, open);
    if file < 0 {
        return false;
    }
    let mut buffer = [0u8; 1024];
    let (mut kept, mut complete) = (0, false);
    while let Some(room) = buffer.get_mut(kept..).filter(|room| !room.is_empty()) {
        // SAFETY: the kernel writes at most the room's length.
        let n = unsafe { syscall6(nr::READ, [file as usize, room.as_mut_ptr() as usize, room.len(), 0, 0, 0]) };
        if n <= 0 {
            complete = n == 0;
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
    close(file);
    complete
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_read_from_a_line_of_fdinfo() {
        let line = b"tfd:       12 events: 80000019 data:         ffffffff0000000c  pos:0 ino:1f sdev:8";
        let read = |line: &[u8]| {
            registration(line, 3).map(|(found, inode)| (found.epoll, found.fd, found.events, found.data, inode))
        };
        assert_eq!(read(line), Some((3, 12, 0x8000_0019, 0xffff_ffff_0000_000c, Some(31))));
        assert_eq!(read(&line[..line.len() - 19]), Some((3, 12, 0x8000_0019, 0xffff_ffff_0000_000c, None)));
        for other in
            [&b"pos:\t0"[..], b"flags:\t02", b"tfd: 12", b"tfd: x events: 1 data: 1", b"tfd: 12 data: 1 events: 1", b""]
        {
            assert_eq!(read(other), None);
        }
    }

    #[test]
    fn numbers_are_written_and_read() {
        for (fd, text) in [(0, "0"), (7, "7"), (10, "10"), (65_535, "65535"), (i32::MAX, "2147483647"), (-3, "0")] {
            let mut room = [b'x'; 12];
            decimal(fd, &mut room);
            assert_eq!(
                CStr::from_bytes_until_nul(&room),
                Ok(std::ffi::CString::new(text).unwrap_or_default().as_c_str())
            );
        }
        assert_eq!(
            (number(b"ff", 16), number(b"ff", 10), number(b"", 10), number(b".", 10)),
            (Some(255), None, None, None)
        );
    }

    #[test]
    fn spoilt_directory_records_end() {
        let record = |name: &[u8], len: u16| {
            let mut bytes = vec![0u8; 24];
            bytes[16..18].copy_from_slice(&len.to_ne_bytes());
            bytes[19..19 + name.len()].copy_from_slice(name);
            bytes
        };
        let names = |records: &[u8]| {
            let mut names = Vec::new();
            each_name(records, |name| names.push(name.to_vec()));
            names
        };
        assert_eq!(names(&[record(b"3", 24), record(b"12", 24)].concat()), [b"3".to_vec(), b"12".to_vec()]);
        assert_eq!(names(&record(b"3", 0)), Vec::<Vec<u8>>::new());
        assert_eq!(names(&record(b"3", u16::MAX)), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn this_process_s_registrations_are_found_and_put_back() -> std::io::Result<()> {
        use std::os::fd::AsRawFd;
        let poll = mio::Poll::new()?;
        let (socket, other) = std::os::unix::net::UnixStream::pair()?;
        let fd = socket.as_raw_fd();
        let register =
            |token| poll.registry().register(&mut mio::unix::SourceFd(&fd), mio::Token(token), mio::Interest::READABLE);
        register(5)?;
        let taken = take_out(fd);
        assert_eq!(taken.count, 1);
        assert_eq!((taken.found[0].epoll, taken.found[0].data), (poll.as_raw_fd(), 5));
        register(6)?;
        assert_eq!((take_out(fd).count, take_out(fd).count, take_out(other.as_raw_fd()).count), (1, 0, 0));
        taken.put_back(fd);
        assert!(register(7).is_err(), "it is registered again");
        // By a number that is closed: the open file lives on at another.
        let copy = socket.try_clone()?;
        drop(socket);
        let stale = take_out(copy.as_raw_fd());
        assert_eq!((stale.count, stale.found[0].fd), (1, fd));
        stale.put_back(copy.as_raw_fd());
        assert_eq!(take_out(copy.as_raw_fd()).count, 1);
        Ok(())
    }
}
