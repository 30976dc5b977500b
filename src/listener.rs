//! Listening sockets: bind a new one or adopt an inherited one, and set what accepted sockets inherit.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use thiserror::Error;

use crate::addr::{ListenAddr, unix};
use crate::record::{Fd, Found, Kept};
use crate::sys::interrupt::impatiently;
use crate::sys::reason;
use crate::sys::sock::keep_alive;

/// Connections that the kernel keeps for us; it clamps this to net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// A bound socket; it listens once [`Listener::listen`] was called.
#[derive(Debug)]
pub struct Listener {
    /// The socket, shared with the accept thread.
    pub socket: Arc<OwnedFd>,
    /// For display: the address with the port that was bound.
    pub address: String,
    /// The port of a TCP listener.
    pub port: Option<u16>,
    /// The port that the application insists on, where that is another (`-l 80=3000`).
    pub app_port: Option<u16>,
    pub origin: Origin,
    /// Counts the listeners that had this place in the service's list before.
    pub generation: usize,
    /// Whoever started us passed it and has it, too.
    pub passed: bool,
    /// The file of a Unix socket that we made: path, device, inode.
    file: Option<(PathBuf, u64, u64)>,
}

/// Who asked for a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// `--listen`, or whoever passed the socket to us.
    Flag,
    /// A flag's that left the configuration: closed when the workers that serve it are replaced.
    Leaving,
    Server,
    /// Closed: it left the configuration, or the server's socket turned out to be a client's.
    GivenBack,
}

/// A listener in a daemon's record.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenerRecord {
    /// `None` for one that was given back.
    socket: Option<Fd>,
    address: String,
    port: Option<u16>,
    app_port: Option<u16>,
    origin: Origin,
    generation: usize,
    passed: bool,
    file: Option<(PathBuf, u64, u64)>,
}

impl ListenerRecord {
    /// Whether it was passed to the daemon.
    pub fn is_passed(&self) -> bool {
        self.passed
    }
}

#[derive(Debug, Error)]
pub enum BindError {
    /// Another socket has the address.
    #[error("cannot listen on {address}: address already in use{}", .by.as_deref().map(|by| format!(" by {by}")).unwrap_or_default())]
    InUse {
        address: String,
        /// The process that has it, if /proc shows it.
        by: Option<String>,
    },
    /// A port below the privileged limit.
    #[error(
        "cannot listen on {address}: permission denied; ports below {limit} need root or CAP_NET_BIND_SERVICE \
         (or net.ipv4.ip_unprivileged_port_start={port})"
    )]
    Privileged {
        address: String,
        port: u16,
        /// The first port that needs no privilege.
        limit: u16,
    },
    #[error("cannot listen on {address}: {}", reason(.source))]
    Os { address: String, source: io::Error },
    /// A Unix path that is not a socket.
    #[error("cannot listen on unix:{}: the path exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
}

impl Listener {
    pub fn record(&self, kept: &mut Kept) -> ListenerRecord {
        let Self { socket, address, port, app_port, origin, generation, passed, file } = self;
        ListenerRecord {
            socket: (*origin != Origin::GivenBack).then(|| kept.keep(socket)),
            address: address.clone(),
            port: *port,
            app_port: *app_port,
            origin: *origin,
            generation: *generation,
            passed: *passed,
            file: file.clone(),
        }
    }

    /// # Errors
    /// When its socket is not there.
    pub fn adopt_recorded(record: ListenerRecord, found: &mut Found) -> io::Result<Self> {
        let ListenerRecord { socket, address, port, app_port, origin, generation, passed, file } = record;
        let socket = match socket {
            Some(fd) => Arc::new(found.take(fd)?),
            None => nothing()?,
        };
        Ok(Self { socket, address, port, app_port, origin, generation, passed, file })
    }

    /// Binds an address. A Unix socket file on which nobody listens is replaced.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(address: &ListenAddr) -> Result<Self, BindError> {
        let fail = |source: io::Error| explain(address, source);
        match address {
            ListenAddr::Tcp(to) => {
                // `[::]:80` means both families, as with nearly every server; a particular v6 address only itself.
                let socket = bind_tcp(*to, !to.ip().is_unspecified()).map_err(fail)?;
                Self::finish(socket, None).map_err(fail)
            }
            ListenAddr::Port(port) => {
                let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
                let socket = match bind_tcp(any, false) {
                    Err(error) if no_ipv6(&error) => bind_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)), false),
                    other => other,
                };
                Self::finish(socket.map_err(fail)?, None).map_err(fail)
            }
            ListenAddr::Unix(path) => {
                replace_stale(path)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(fail)?;
                socket.bind(&SockAddr::unix(path).map_err(fail)?).map_err(fail)?;
                // An abstract address has no file.
                let is_file = socket.local_addr().map_err(fail)?.as_pathname().is_some();
                let meta = is_file.then(|| std::fs::metadata(path)).transpose().map_err(fail)?;
                Self::finish(socket, meta.map(|meta| (path.clone(), meta.dev(), meta.ino()))).map_err(fail)
            }
        }
    }

    /// Adopts a server's bound socket; its options stay as the server set them.
    ///
    /// # Errors
    /// As getsockname(2) and fcntl(2).
    pub fn of_server(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?.as_socket();
        // Java binds [::ffff:127.0.0.1].
        let shown = |local: SocketAddr| SocketAddr::new(local.ip().to_canonical(), local.port()).to_string();
        let address = local.map(shown).unwrap_or_default();
        let port = local.map(|address| address.port());
        Ok(Self {
            socket: Arc::new(socket.into()),
            address,
            port,
            app_port: None,
            passed: false,
            file: None,
            origin: Origin::Server,
            generation: 0,
        })
    }

    /// Adopts a socket that was passed to this process.
    ///
    /// # Errors
    /// When it is not a stream socket.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        if socket.r#type()? != Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { passed: true, ..Self::finish(socket, None)? })
    }

    /// Adopts a listener that we had stored before we were killed.
    ///
    /// # Errors
    /// When it is not a stream socket; ENOENT when the file of a Unix socket is gone, so that no client finds it.
    pub fn adopt_stored(socket: OwnedFd) -> io::Result<Self> {
        let listener = Self::adopt(socket)?;
        let local = SockRef::from(&listener.socket).local_addr()?;
        let file = match local.as_pathname() {
            Some(path) => {
                let meta = std::fs::symlink_metadata(path)?;
                Some((path.to_owned(), meta.dev(), meta.ino()))
            }
            None => None,
        };
        Ok(Self { passed: false, file, ..listener })
    }

    fn finish(socket: Socket, file: Option<(PathBuf, u64, u64)>) -> io::Result<Self> {
        let local = socket.local_addr()?;
        let (address, port) = match (local.as_socket(), local.as_pathname(), local.as_abstract_namespace()) {
            (Some(tcp), ..) => {
                // Accepted sockets inherit both: no system call per connection.
                socket.set_tcp_nodelay(true)?;
                keep_alive(&SockRef::from(&socket));
                (tcp.to_string(), Some(tcp.port()))
            }
            (None, Some(path), _) => (unix(path), None),
            (None, None, Some(name)) => (format!("unix:@{}", String::from_utf8_lossy(name)), None),
            (None, None, None) => ("unix:(unnamed)".to_owned(), None),
        };
        Ok(Self {
            socket: Arc::new(socket.into()),
            address,
            port,
            app_port: None,
            passed: false,
            file,
            origin: Origin::Flag,
            generation: 0,
        })
    }

    /// Starts to listen, or sets the backlog of a listening socket.
    ///
    /// # Errors
    /// As listen(2): another socket may have taken the address in between.
    pub fn listen(&self) -> io::Result<()> {
        SockRef::from(&self.socket).listen(BACKLOG)
    }

    /// The port that servers bind to get this listener's connections.
    pub fn served_port(&self) -> Option<u16> {
        self.app_port.or(self.port)
    }

    /// Closes this listener. Its place in the service's list stays, with a socket that is never readable.
    ///
    /// # Errors
    /// As socket(2).
    pub fn close(&mut self) -> io::Result<()> {
        let nothing = nothing()?;
        self.remove_file();
        self.origin = Origin::GivenBack;
        (self.port, self.app_port, self.file) = (None, None, None);
        // A server may have connected it.
        impatiently(|| self.socket = nothing);
        Ok(())
    }

    /// Whether this is the socket that `address` asks for.
    pub fn serves(&self, address: &ListenAddr) -> bool {
        match address {
            ListenAddr::Unix(path) => self.address == unix(path),
            ListenAddr::Tcp(wanted) => crate::sys::sock::local_addr(self.socket.as_fd()) == Some(*wanted),
            ListenAddr::Port(port) => crate::sys::sock::local_addr(self.socket.as_fd())
                .is_some_and(|local| local.port() == *port && local.ip().is_unspecified()),
        }
    }

    /// Removes the file of a Unix socket, if it is still ours.
    pub fn remove_file(&self) {
        if let Some((path, device, inode)) = &self.file
            && std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*device, *inode))
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The socket of all closed listeners.
fn nothing() -> io::Result<Arc<OwnedFd>> {
    static NOTHING: OnceLock<Arc<OwnedFd>> = OnceLock::new();
    if let Some(socket) = NOTHING.get() {
        return Ok(socket.clone());
    }
    let socket = Arc::new(Socket::new(Domain::UNIX, Type::DGRAM.nonblocking(), None)?.into());
    Ok(NOTHING.get_or_init(|| socket).clone())
}

/// A bound TCP socket, non-blocking; `only_v6` is for an address of IPv6.
///
/// # Errors
/// As socket(2) and bind(2).
pub fn bind_tcp(to: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if to.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&to.into())?;
    Ok(socket)
}

/// Whether an error says that there is no IPv6 on this machine.
pub fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Removes the file of a Unix socket on which nobody listens; refuses a live one and what is no socket.
fn replace_stale(path: &Path) -> Result<(), BindError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    let address = format!("unix:{}", path.display());
    match UnixStream::connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            std::fs::remove_file(path).map_err(|source| BindError::Os { address, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(BindError::InUse { address, by: None }),
        Err(source) => Err(BindError::Os { address, source }),
    }
}

/// Explains a failed bind or listen of a server; `None` where the errno says all.
pub fn refused(address: SocketAddr, source: &io::Error) -> Option<String> {
    let errno = source.raw_os_error().filter(|errno| [libc::EADDRINUSE, libc::EACCES].contains(errno))?;
    let shown = SocketAddr::new(address.ip().to_canonical(), address.port());
    match explain(&ListenAddr::Tcp(shown), io::Error::from_raw_os_error(errno)) {
        BindError::Os { .. } => None,
        error => Some(error.to_string()),
    }
}

fn explain(address: &ListenAddr, source: io::Error) -> BindError {
    let port = match address {
        ListenAddr::Tcp(address) => Some(address.port()),
        ListenAddr::Port(port) => Some(*port),
        ListenAddr::Unix(_) => None,
    };
    let address = address.to_string();
    match (source.raw_os_error(), port) {
        (Some(libc::EADDRINUSE), _) => BindError::InUse { address, by: port.and_then(crate::proc_net::port_holder) },
        (Some(libc::EACCES), Some(port)) if port < first_free_port() => {
            BindError::Privileged { address, port, limit: first_free_port() }
        }
        _ => BindError::Os { address, source },
    }
}

fn first_free_port() -> u16 {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}
