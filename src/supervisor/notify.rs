//! `--wait-ready`: a socket on which a server says READY=1 (sd_notify(3)).

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::direct::attach::{hex, secret};

/// Messages are short; what is longer is cut.
const MOST: usize = 4096;

/// The socket of one server.
#[derive(Debug)]
pub struct Notify {
    socket: UnixDatagram,
    name: String,
    /// It has said it.
    ready: bool,
}

impl Notify {
    /// Opens one at an abstract name that nobody can guess.
    ///
    /// # Errors
    /// As socket(2) and bind(2).
    pub fn open() -> io::Result<Self> {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("roundsman-notify-{}", hex(&secret()?));
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
        let socket = UnixDatagram::bind_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, name, ready: false })
    }

    /// The value of NOTIFY_SOCKET.
    pub fn variable(&self) -> String {
        format!("@{}", self.name)
    }

    /// Has epoll watch it.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.socket.as_raw_fd()), token, Interest::READABLE)
    }

    /// Reads what came; whether the server has said that it is ready.
    pub fn is_ready(&mut self) -> bool {
        let mut message = [0; MOST];
        while let Ok(n) = self.socket.recv(&mut message) {
            self.ready |= message[..n].split(|&byte| byte == b'\n').any(|line| line == b"READY=1");
        }
        self.ready
    }
}
