//! Registrations of epoll instances of other processes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::cvt;

/// One registration of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// The descriptor of the epoll instance.
    pub instance: RawFd,
    events: u32,
    data: u64,
}

/// Where a thread's descriptor `fd` is registered while it is the file with this inode.
pub fn of(thread: u32, fd: i32, inode: u64) -> Vec<Registration> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{thread}/fd")) else { return Vec::new() };
    let mut found = Vec::new();
    for link in descriptors.flatten() {
        let instance = link.file_name().to_str().and_then(|name| name.parse().ok());
        let is_epoll =
            std::fs::read_link(link.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]");
        let Some(instance) = instance.filter(|_| is_epoll) else { continue };
        let info = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{instance}")).unwrap_or_default();
        let registered = info.lines().filter_map(|line| registration(line, fd, inode));
        found.extend(registered.map(|(events, data)| Registration { instance, events, data }));
    }
    found
}

/// Events and data of a line about one registration: `tfd: 5 events: 19 data: fe pos:0 ino:1234 sdev:8`.
fn registration(line: &str, fd: i32, inode: u64) -> Option<(u32, u64)> {
    let mut words = line.split_whitespace();
    let mut after = |name: &str| match words.next()?.strip_prefix(name)? {
        "" => words.next(),
        value => Some(value),
    };
    let number: i32 = after("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    after("pos:")?;
    let own = u64::from_str_radix(after("ino:")?, 16).ok()?;
    (number == fd && own == inode).then_some((events, data))
}

/// A change of what an epoll instance watches.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// This file no more, if it does.
    Remove(BorrowedFd<'a>),
    Add(BorrowedFd<'a>, Registration),
}

/// Changes what an epoll instance of another process watches, as if that process did it with its descriptor `fd`: an instance
/// knows what it watches by the open file and its number.
///
/// # Errors
/// As epoll_ctl(2), unshare(2) and pthread_create(3); `EBADF` where this process may not have a descriptor of that number.
pub fn change(instance: BorrowedFd<'_>, fd: i32, changes: &[Change<'_>]) -> io::Result<()> {
    thread::scope(|scope| {
        let changes = thread::Builder::new().spawn_scoped(scope, || change_here(instance, fd, changes))?;
        changes.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

/// The same on a thread that ends then.
fn change_here(instance: BorrowedFd<'_>, fd: i32, changes: &[Change<'_>]) -> io::Result<()> {
    // A table of its own: what has that number in this process stays what it is. The table ends with the thread.
    unshare(CloneFlags::CLONE_FILES)?;
    // None of the files is in the way of the others.
    // SAFETY: the call takes three integers; what it returns is of this thread's own table, which no owner of a descriptor knows.
    let aside = |own: BorrowedFd<'_>| cvt!(unsafe { libc::fcntl(own.as_raw_fd(), libc::F_DUPFD_CLOEXEC, fd + 1) });
    let instance = aside(instance)?;
    let mut files = Vec::new();
    for change in changes {
        let (Change::Remove(file) | Change::Add(file, _)) = *change;
        files.push(aside(file)?);
    }
    for (change, file) in changes.iter().zip(files) {
        // SAFETY: as above; the event lives through the call.
        unsafe {
            cvt!(libc::dup2(file, fd))?;
            match *change {
                Change::Remove(_) => {
                    libc::epoll_ctl(instance, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut());
                }
                Change::Add(_, Registration { events, data, .. }) => {
                    let mut event = libc::epoll_event { events, u64: data };
                    cvt!(libc::epoll_ctl(instance, libc::EPOLL_CTL_ADD, fd, &raw mut event))?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;
    use crate::sys::sock;

    #[test]
    fn a_registration_moves_to_another_file_of_the_same_number() {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let (before, _before) = sock::seqpacket_pair().unwrap();
        let (after, sender) = sock::seqpacket_pair().unwrap();
        let (own, fd) = (std::process::id(), before.as_raw_fd());
        epoll.add(&before, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0xfeed_beef_cafe_0123)).unwrap();
        let inode = |socket: &std::os::fd::OwnedFd| sock::inode(socket.as_fd()).unwrap();
        let found = of(own, fd, inode(&before));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].instance, found[0].data), (epoll.0.as_raw_fd(), 0xfeed_beef_cafe_0123));
        assert_eq!(of(own, fd, inode(&after)), []);
        change(epoll.0.as_fd(), fd, &[Change::Remove(before.as_fd()), Change::Add(after.as_fd(), found[0])]).unwrap();
        // Now under that number, as in a server.
        nix::unistd::write(&sender, b"x").unwrap();
        let mut events = [EpollEvent::empty()];
        assert_eq!(epoll.wait(&mut events, EpollTimeout::from(1000u16)).unwrap(), 1);
        assert_eq!(events[0].data(), 0xfeed_beef_cafe_0123);
        assert_eq!(of(own, fd, inode(&after)), found);
        assert_eq!(of(own, fd, inode(&before)), []);
    }
}
