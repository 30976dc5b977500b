//! Where control sockets are.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where root's are.
pub const OF_ROOT: &str = "/run/roundsman";

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
    if uid.is_root() {
        return OF_ROOT.into();
    }
    std::env::temp_dir().join(format!("roundsman-{uid}"))
}

/// The socket of a service's daemon.
pub fn socket(name: &str, asked: Option<&Path>) -> PathBuf {
    asked.map_or_else(|| directory().join(format!("{name}.sock")), Path::to_owned)
}

/// Makes the directory of a socket, open to nobody else.
///
/// # Errors
/// Why it cannot be used: it cannot be made, or it is another user's.
pub fn prepare(socket: &Path) -> Result<(), String> {
    let Some(directory) = socket.parent().filter(|path| !path.as_os_str().is_empty()) else { return Ok(()) };
    let shown = directory.display();
    if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        return Err(format!("cannot make {shown}: {error}"));
    }
    let meta = std::fs::metadata(directory).map_err(|error| format!("cannot use {shown}: {error}"))?;
    let (uid, own) = (meta.uid(), nix::unistd::geteuid().as_raw());
    // In a directory that others may write to, the socket's name could be taken over.
    if uid != own && uid != 0 {
        return Err(format!("cannot use {shown}: it belongs to uid {uid}"));
    }
    Ok(())
}

/// All control sockets that may belong to daemons of this user.
pub fn all() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory()).into_iter().flatten().flatten();
    let mut sockets: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "sock")).collect();
    sockets.sort();
    sockets
}
