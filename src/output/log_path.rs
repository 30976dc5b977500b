//! Opening a log file in a directory that others may write to, as the servers' user may write to `/var/log/app`.
//!
//! The path is walked name by name, each looked up in the open directory before it and never followed by the kernel. A
//! symbolic link is followed only where nobody but root and we can have put it. The last name is a file that has no
//! other name and belongs to the servers or to us. So a server that can write to the directory can spoil its own logs, and
//! cannot make us write anywhere else. Nothing waits: a FIFO without a reader and a leased file are errors at once.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys::process::Credentials;

/// Links, missing directories and lost races on the way to one file. The kernel follows at most 40 links.
const MAX_DETOURS: usize = 40;
/// Looks a name up, and does nothing to the file.
const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Appends, and waits for nothing.
const APPEND: OFlag =
    OFlag::O_WRONLY.union(OFlag::O_APPEND).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// An open log file, and where it was found.
#[derive(Debug)]
pub struct Opened {
    /// For appending; non-blocking.
    pub file: File,
    /// Its size, where it is a regular file: only such a file is rotated.
    pub size: Option<u64>,
    directory: OwnedFd,
    name: OsString,
}

/// Opens a log file of servers that run under these credentials (`None`: ours), and makes missing directories.
///
/// # Errors
/// As open(2), or which part of the path cannot be trusted.
pub fn open(path: &Path, servers: Option<&Credentials>) -> io::Result<Opened> {
    // Where we are may be a place that we cannot look into, and is of no interest for an absolute path.
    let start = directory(Path::new(if path.is_absolute() { "/" } else { "." }))?;
    let mut walk = Walk { directory: start, shown: PathBuf::new(), left: Vec::new(), detours: 0, servers };
    walk.enter(path)?;
    while let Some(name) = walk.left.pop() {
        if let Some(opened) = walk.step(name)? {
            return Ok(opened);
        }
    }
    Err(Errno::EISDIR.into())
}

impl Opened {
    /// Whether its name still stands for it: it may have been moved away, or replaced.
    pub fn is_in_place(&self) -> bool {
        let there = fstatat(&self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        matches!((there, fstat(&self.file)), (Ok(there), Ok(own)) if is_same(&there, &own))
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`, the last one goes: in the directory where the file was found.
    ///
    /// # Errors
    /// As rename(2) and unlink(2), which follow no link.
    pub fn rotate(&self, keep: u32) -> io::Result<()> {
        let directory = &self.directory;
        if keep == 0 {
            return Ok(unlinkat(directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?);
        }
        let numbered = |n: u32| {
            let mut name = self.name.clone();
            name.push(format!(".{n}"));
            name
        };
        for n in (1..keep).rev() {
            match renameat(directory, numbered(n).as_os_str(), directory, numbered(n + 1).as_os_str()) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(renameat(directory, self.name.as_os_str(), directory, numbered(1).as_os_str())?)
    }
}

struct Walk<'a> {
    /// Where the next name is looked up.
    directory: OwnedFd,
    /// Its path, for messages.
    shown: PathBuf,
    /// The names still to be looked up, the next one last.
    left: Vec<OsString>,
    detours: usize,
    servers: Option<&'a Credentials>,
}

impl Walk<'_> {
    /// Puts the names of a path, or of a link's target, before those that are left.
    fn enter(&mut self, path: &Path) -> io::Result<()> {
        if path.is_absolute() {
            (self.directory, self.shown) = (directory(Path::new("/"))?, PathBuf::from("/"));
        }
        let names = path.components().rev().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
        self.left.extend(names.map(|part| part.as_os_str().to_owned()));
        Ok(())
    }

    /// Looks one name up; the file, when that was the last.
    fn step(&mut self, name: OsString) -> io::Result<Option<Opened>> {
        let found = match openat(&self.directory, name.as_os_str(), PATH_ONLY, Mode::empty()) {
            Err(Errno::ENOENT) => None,
            found => Some(found?),
        };
        let Some(found) = found else {
            return if self.left.is_empty() { self.create(name) } else { self.make(name).map(|()| None) };
        };
        let stat = fstat(&found)?;
        if kind(&stat) == SFlag::S_IFLNK {
            return self.follow(name, &found, &stat);
        }
        if self.left.is_empty() {
            return self.append(name, &stat);
        }
        // Anything but a directory fails at the next name.
        self.descend(name, found);
        Ok(None)
    }

    fn descend(&mut self, name: OsString, into: OwnedFd) {
        self.directory = into;
        self.shown.push(name);
    }

    /// Looks the same name up once more, which others may go on changing: but not for ever.
    fn again(&mut self, name: OsString) -> io::Result<()> {
        self.detour()?;
        self.left.push(name);
        Ok(())
    }

    fn detour(&mut self) -> io::Result<()> {
        self.detours += 1;
        if self.detours > MAX_DETOURS { Err(Errno::ELOOP.into()) } else { Ok(()) }
    }

    fn make(&mut self, name: OsString) -> io::Result<()> {
        match mkdirat(&self.directory, name.as_os_str(), Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => self.again(name),
            Err(error) => Err(error.into()),
        }
    }

    fn follow(&mut self, name: OsString, link: &OwnedFd, stat: &FileStat) -> io::Result<Option<Opened>> {
        self.detour()?;
        if fstatfs(&self.directory)?.filesystem_type() == PROC_SUPER_MAGIC {
            // Nobody can put a link there, and the target of /proc/self/fd/1 has no path.
            if !self.left.is_empty() {
                let into = openat(&self.directory, name.as_os_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
                self.descend(name, into);
                return Ok(None);
            }
            let target = fstatat(&self.directory, name.as_os_str(), AtFlags::empty())?;
            let file = openat(&self.directory, name.as_os_str(), APPEND, Mode::empty());
            return self.opened(name, file.map_err(|error| in_words(error, &target))?).map(Some);
        }
        if !is_trusted(&fstat(&self.directory)?, stat, self.servers) {
            return Err(self.refused(&name, "is a symbolic link that somebody other than root can have put there"));
        }
        self.enter(Path::new(&readlinkat(link, "")?))?;
        Ok(None)
    }

    fn create(&mut self, name: OsString) -> io::Result<Option<Opened>> {
        let new = APPEND | OFlag::O_CREAT | OFlag::O_EXCL;
        match openat(&self.directory, name.as_os_str(), new, Mode::from_bits_truncate(0o640)) {
            Ok(file) => self.opened(name, file).map(Some),
            Err(Errno::EEXIST) => self.again(name).map(|()| None),
            Err(error) => Err(error.into()),
        }
    }

    fn append(&mut self, name: OsString, found: &FileStat) -> io::Result<Option<Opened>> {
        if matches!(kind(found), SFlag::S_IFBLK) {
            return Err(self.refused(&name, "is a block device"));
        }
        let directory = fstat(&self.directory)?;
        let shared = !is_ours(directory.st_uid) || may_write(&directory, Mode::S_IWGRP | Mode::S_IWOTH);
        if shared && let Err(why) = self.is_log(found, &directory) {
            return Err(self.refused(&name, &format!("{why}, in a directory that others can write to")));
        }
        let file = match openat(&self.directory, name.as_os_str(), APPEND | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ENOENT) => return self.again(name).map(|()| None),
            file => file.map_err(|error| in_words(error, found))?,
        };
        // The name is asked once more: if it stands for the open file, and is its only name, the file is nowhere else. A
        // count taken from the file alone would miss a link that was removed again.
        let there = fstatat(&self.directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let known = there.is_ok_and(|there| is_same(&there, found) && there.st_nlink == 1);
        if shared && !(known && is_same(&fstat(&file)?, found)) {
            return Err(self.refused(&name, "was replaced, or has another name"));
        }
        self.opened(name, file).map(Some)
    }

    /// Whether a file can be a log of the servers.
    fn is_log(&self, file: &FileStat, directory: &FileStat) -> Result<(), String> {
        let servers = self.servers.map(|user| user.uid.as_raw());
        match kind(file) {
            SFlag::S_IFREG if file.st_nlink > 1 => Err("has another name (a hard link)".to_owned()),
            SFlag::S_IFREG | SFlag::S_IFIFO if is_ours(file.st_uid) => Ok(()),
            SFlag::S_IFREG | SFlag::S_IFIFO if [Some(directory.st_uid), servers].contains(&Some(file.st_uid)) => Ok(()),
            SFlag::S_IFREG | SFlag::S_IFIFO => Err(format!("belongs to uid {}", file.st_uid)),
            SFlag::S_IFDIR => Err("is a directory".to_owned()),
            _ => Err("is no file".to_owned()),
        }
    }

    fn opened(&mut self, name: OsString, file: OwnedFd) -> io::Result<Opened> {
        let stat = fstat(&file)?;
        let size = (kind(&stat) == SFlag::S_IFREG).then_some(stat.st_size as u64);
        Ok(Opened { file: file.into(), size, directory: self.directory.try_clone()?, name })
    }

    fn refused(&self, name: &OsStr, what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {what}", self.shown.join(name).display()))
    }
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Root's, or of the user that we are.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

fn may_write(directory: &FileStat, who: Mode) -> bool {
    Mode::from_bits_truncate(directory.st_mode).intersects(who)
}

/// Whether only root and we can have put a link into a directory. A system's group that can write there (`syslog` to
/// `/var/log`) is trusted not to move root's links, unless the servers are in it.
fn is_trusted(directory: &FileStat, link: &FileStat, servers: Option<&Credentials>) -> bool {
    let sticky = may_write(directory, Mode::S_ISVTX);
    let of_servers = servers
        .is_some_and(|user| [user.gid].iter().chain(&user.groups).any(|group| group.as_raw() == directory.st_gid));
    let open = may_write(directory, Mode::S_IWOTH) || (may_write(directory, Mode::S_IWGRP) && of_servers);
    is_ours(directory.st_uid) && is_ours(link.st_uid) && (sticky || !open)
}

/// ENXIO means a FIFO or a socket.
fn in_words(error: Errno, file: &FileStat) -> io::Error {
    match (error, kind(file)) {
        (Errno::ENXIO, SFlag::S_IFSOCK) => io::Error::other("it is a socket"),
        (Errno::ENXIO, SFlag::S_IFIFO) => io::Error::other("it is a FIFO that no process reads"),
        _ => error.into(),
    }
}
