//! A question to a daemon at its control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

use super::status::Daemon;
use super::{Request, socket_path};

/// A daemon's state in bytes; a slot takes some 300 of them.
const MAX_STATE: u64 = 16 << 20;

/// The state of the daemon at a control socket.
///
/// # Errors
/// As [`connect`], or when no state comes in time.
pub fn ls_of(socket: &Path, patience: Duration) -> std::io::Result<Daemon> {
    let stream = ask(socket, &Request::Ls {}, patience)?;
    let deadline = Instant::now() + patience;
    let mut line = String::new();
    BufReader::new(Until { stream, deadline }.take(MAX_STATE)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Reads until a point in time.
struct Until {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Until {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Connects to a daemon of our user or root's; root may connect to any.
///
/// # Errors
/// As connect(2), or when another user listens there.
pub fn connect(socket: &Path, patience: Duration) -> std::io::Result<UnixStream> {
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // It applies to the connect, too: the backlog may be full.
    stream.set_write_timeout(Some(patience))?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let uid = getsockopt(&stream, PeerCredentials)?.uid();
    if !socket_path::is_ours(uid) && !nix::unistd::geteuid().is_root() {
        let why = format!("the process that listens there runs as uid {uid}");
        return Err(std::io::Error::other(why));
    }
    Ok(OwnedFd::from(stream).into())
}

/// Sends one request.
///
/// # Errors
/// As [`connect`].
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> std::io::Result<UnixStream> {
    let mut stream = connect(socket, patience)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}
