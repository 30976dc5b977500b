//! Whether a server accepts: connection attempts at growing intervals, and ports for servers to listen on.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::addr::Upstream;
use crate::relay::protocol::Resolved;

const FIRST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(100);
/// An attempt without an answer is given up after so long.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Tries an address until it accepts.
#[derive(Debug)]
pub struct Probe {
    /// Candidates; the first that accepts is the one.
    candidates: Vec<SockAddr>,
    attempt: Option<(usize, OwnedFd, Instant)>,
    next: usize,
    due: Instant,
    interval: Duration,
}

impl Probe {
    /// For a server that was given a private address. One that listens on "localhost" may have chosen ::1.
    pub fn private(address: SocketAddr, now: Instant) -> Self {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        Self::new(vec![address.into(), v6.into()], now)
    }

    /// For an upstream's addresses.
    pub fn upstream(resolved: &Resolved, now: Instant) -> Self {
        let candidates = match &resolved.upstream {
            Upstream::Unix(path) => SockAddr::unix(path).into_iter().collect(),
            Upstream::Host { .. } => resolved.addresses.iter().map(|&address| address.into()).collect(),
        };
        Self::new(candidates, now)
    }

    fn new(candidates: Vec<SockAddr>, now: Instant) -> Self {
        Self { candidates, attempt: None, next: 0, due: now + FIRST, interval: FIRST }
    }

    /// When to call [`Probe::accepts`] again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The address that accepts, if one does.
    pub fn accepts(&mut self, now: Instant) -> Option<SockAddr> {
        if now < self.due {
            return None;
        }
        // One round: finish the attempt under way, else try each candidate.
        for _ in 0..self.candidates.len().max(1) {
            let (at, socket, since) = match self.attempt.take() {
                Some(attempt) => attempt,
                None => {
                    let at = self.next % self.candidates.len().max(1);
                    let Some(socket) = self.candidates.get(at).and_then(|address| begin(address).ok()) else {
                        self.next += 1;
                        continue;
                    };
                    (at, socket, now)
                }
            };
            match outcome(&socket) {
                Some(Ok(())) => return self.candidates.get(at).cloned(),
                None if now.duration_since(since) < TIMEOUT => {
                    self.attempt = Some((at, socket, since));
                    break;
                }
                None | Some(Err(_)) => self.next = at + 1,
            }
        }
        self.interval = (self.interval * 3 / 2).min(LONGEST);
        self.due = now + self.interval;
        None
    }
}

fn begin(address: &SockAddr) -> io::Result<OwnedFd> {
    let domain = Domain::from(i32::from(address.family()));
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// `None` while the attempt is under way. Over loopback it is over when connect(2) returns.
fn outcome(socket: &OwnedFd) -> Option<io::Result<()>> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => None,
        Ok(_) => Some(match SockRef::from(socket).take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        }),
        Err(errno) => Some(Err(errno.into())),
    }
}

/// Whether nobody listens on a port of any address.
pub fn is_free(port: u16) -> bool {
    let free = |ip: IpAddr| match TcpListener::bind((ip, port)) {
        Ok(_) => true,
        // No IPv6 here: then nobody else has the port there.
        Err(error) => matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)),
    };
    free(Ipv4Addr::UNSPECIFIED.into()) && free(Ipv6Addr::UNSPECIFIED.into())
}

/// Ports above the usual ephemeral range, so that no outgoing connection sits on one.
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_000;

/// The ports of two daemons with consecutive process ids begin so far apart; prime to the number of ports.
const APART: u32 = 613;

/// Chooses private addresses for servers.
#[derive(Debug)]
pub struct PrivatePorts {
    next: Cell<u16>,
}

impl Default for PrivatePorts {
    /// Begins somewhere that depends on the process, so that two daemons seldom try the same port: those that were started
    /// one after the other begin far apart.
    fn default() -> Self {
        let span = u32::from(PORTS.end() - PORTS.start());
        Self { next: Cell::new(PORTS.start() + (std::process::id() % span * APART % span) as u16) }
    }
}

impl PrivatePorts {
    /// A loopback address whose port is free on all addresses now. A server that finds it taken all the same
    /// fails and is started again with another.
    ///
    /// # Errors
    /// When no port is free.
    pub fn choose(&self) -> io::Result<SocketAddr> {
        for _ in PORTS {
            let port = self.next.get();
            self.next.set(if port >= *PORTS.end() { *PORTS.start() } else { port + 1 });
            if is_free(port) {
                return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free port in {}-{}", PORTS.start(), PORTS.end())))
    }
}
