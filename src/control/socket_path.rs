//! Where control sockets are.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys::reason;

/// Why a directory cannot have control sockets.
#[derive(Debug, Error)]
pub enum Unusable {
    #[error("cannot make {}: {}", .directory.display(), reason(.source))]
    NotMade { directory: PathBuf, source: io::Error },
    #[error("cannot use {}: {}", .directory.display(), reason(.source))]
    Unreadable { directory: PathBuf, source: io::Error },
    #[error("cannot use {}: it belongs to uid {uid}", .directory.display())]
    Foreign { directory: PathBuf, uid: u32 },
    #[error("cannot use {}: others can write to it; chmod go-w", .0.display())]
    Writable(PathBuf),
}

/// Where root's are.
pub const OF_ROOT: &str = "/run/roundsman";
/// Where those of a unit with a user of its own are (config/roundsman.service).
pub const OF_UNIT: &str = "/run/roundsman-unit";

/// The directory for control sockets of this user: systemd's, the session's, the system's, or one of our own.
pub fn directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // systemd gives several as a list.
    if let Some(runtime) = set("RUNTIME_DIRECTORY") {
        let first = runtime.to_string_lossy().split(':').next().unwrap_or_default().to_owned();
        return first.into();
    }
    if let Some(session) = set("XDG_RUNTIME_DIR") {
        return session.join("roundsman");
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() && !is_read_only(Path::new(OF_ROOT)) {
        return OF_ROOT.into();
    }
    std::env::temp_dir().join(format!("roundsman-{uid}"))
}

/// Whether a path lies, or would lie, on a file system that is mounted read-only: a container's, whose /tmp is not.
fn is_read_only(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    nix::unistd::access(there, nix::unistd::AccessFlags::W_OK) == Err(nix::errno::Errno::EROFS)
}

/// The socket of a service's daemon.
pub fn socket(name: &str, asked: Option<&Path>) -> PathBuf {
    asked.map_or_else(|| directory().join(format!("{name}.sock")), Path::to_owned)
}

/// Makes the directory of a socket, open to nobody else, or checks the one that is there.
///
/// # Errors
/// Why it cannot be used: it cannot be made, or others could put sockets of their own there.
pub fn prepare(socket: &Path, asked: bool) -> Result<(), Unusable> {
    let Some(directory) = socket.parent().filter(|path| !path.as_os_str().is_empty()) else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| Unusable::NotMade { directory: directory.to_owned(), source })?;
    check(directory, asked)
}

/// Whether the sockets in a directory can be trusted to be those of their owners. One that was asked for may be open to
/// more writers (a volume of containers, say): who listens is checked in any case.
fn check(directory: &Path, asked: bool) -> Result<(), Unusable> {
    let fail = |source: io::Error| Unusable::Unreadable { directory: directory.to_owned(), source };
    let mut meta = std::fs::symlink_metadata(directory).map_err(fail)?;
    if meta.is_symlink() && is_ours(meta.uid()) {
        meta = std::fs::metadata(directory).map_err(fail)?;
    }
    if !is_ours(meta.uid()) {
        return Err(Unusable::Foreign { directory: directory.to_owned(), uid: meta.uid() });
    }
    // In a sticky directory nobody else can replace a socket.
    if !asked && meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
        return Err(Unusable::Writable(directory.to_owned()));
    }
    Ok(())
}

/// Whether something belongs to us, or to root.
pub fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// All control sockets that may belong to daemons of this user, or why none can be trusted.
///
/// # Errors
/// When the directory is somebody else's. A missing one has no sockets.
pub fn all() -> Result<Vec<PathBuf>, Unusable> {
    let own = directory();
    let mut sockets = sockets_in(&own)?;
    let usual = usual();
    if usual.contains(&own) {
        // What is in another place and cannot be trusted is not ours.
        let others = usual.iter().filter(|place| **place != own).filter_map(|place| sockets_in(place).ok());
        sockets.extend(others.flatten());
    }
    sockets.sort();
    Ok(sockets)
}

/// Where daemons of this user are, whether they were started in a session, by cron, by sudo or by systemd. Any other
/// directory has been chosen, and is looked at alone.
fn usual() -> [PathBuf; 4] {
    let uid = nix::unistd::geteuid();
    [
        format!("/run/user/{uid}/roundsman").into(),
        OF_ROOT.into(),
        OF_UNIT.into(),
        format!("/tmp/roundsman-{uid}").into(),
    ]
}

/// # Errors
/// As [`all`].
fn sockets_in(directory: &Path) -> Result<Vec<PathBuf>, Unusable> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(Vec::new()) };
    let owner = match check(directory, false) {
        Ok(()) => None,
        // Only root can make directories there: systemd has made it for the daemons of a user, and root may ask them.
        Err(Unusable::Foreign { uid, .. })
            if nix::unistd::geteuid().is_root() && [OF_ROOT, OF_UNIT].map(Path::new).contains(&directory) =>
        {
            Some(uid)
        }
        Err(error) => return Err(error),
    };
    let may_have = |uid: u32| is_ours(uid) || owner == Some(uid);
    let is_socket = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "sock")
            && std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket() && may_have(meta.uid()))
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_socket).collect())
}
