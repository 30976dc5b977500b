//! The daemon's end of the control socket. Bounded in clients, bytes and waiting: a slow or hostile peer costs
//! its own connection.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Poll, Token};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{debug, warn};

use super::{Answer, Request, Said, place};
use crate::exit::{Exit, USAGE};

/// Clients at once; one more is closed.
const MOST_CLIENTS: usize = 32;
/// The longest request.
const MOST_REQUEST: usize = 64 * 1024;
/// Answers that may wait for a client that does not read.
const MOST_ANSWER: usize = 4 * 1024 * 1024;

struct Client {
    stream: UnixStream,
    asked: Vec<u8>,
    answer: Vec<u8>,
}

/// The listening control socket and its clients.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    clients: HashMap<usize, Client>,
    next: usize,
}

impl ControlServer {
    /// Opens the socket of a service's daemon. Without a place for it the daemon runs all the same.
    ///
    /// # Errors
    /// [`USAGE`] when a live daemon has the name.
    pub fn open(poll: &Poll, token: Token, name: &str, asked: Option<&Path>) -> Result<Option<Self>, Exit> {
        let path = place::socket(name, asked);
        if let Some(pid) = live(&path) {
            let message = match asked {
                Some(path) => format!("--control {} is taken by pid {pid}", path.display()),
                None => format!("the name {name:?} is taken by pid {pid}, use --name"),
            };
            return Err(Exit::new(USAGE, message));
        }
        match place::prepare(&path).and_then(|()| Self::bind(poll, token, &path).map_err(|error| error.to_string())) {
            Ok(server) => Ok(Some(server)),
            Err(error) => {
                warn!("no control socket at {} ({error}): roundsman ls will not find this daemon", path.display());
                Ok(None)
            }
        }
    }

    fn bind(poll: &Poll, token: Token, path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        poll.registry().register(&mut listener, token, Interest::READABLE)?;
        Ok(Self { listener, path: path.to_owned(), clients: HashMap::new(), next: 0 })
    }

    /// Takes new clients; their tokens lie in `first..end`.
    pub fn accept(&mut self, poll: &Poll, first: usize, end: usize) {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    if self.clients.len() >= MOST_CLIENTS || !trusted(&stream) {
                        continue;
                    }
                    let token = first + self.next % (end - first);
                    self.next += 1;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if !self.clients.contains_key(&token)
                        && poll.registry().register(&mut stream, Token(token), both).is_ok()
                    {
                        self.clients.insert(token, Client { stream, asked: Vec::new(), answer: Vec::new() });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    debug!("control socket: {error}");
                    return;
                }
            }
        }
    }

    /// Serves one client: reads its requests, writes its answers.
    pub fn serve(&mut self, poll: &Poll, token: usize, mut answer: impl FnMut(Request) -> Answer) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        if client.turn(&mut answer).is_err() {
            let _ = poll.registry().deregister(&mut client.stream);
            self.clients.remove(&token);
        }
    }

    /// Tells a client one more line; whether it is still there.
    pub fn tell(&mut self, token: usize, said: &Said) -> bool {
        let Some(client) = self.clients.get_mut(&token) else { return false };
        if client.answer.len() > MOST_ANSWER {
            return false;
        }
        client.answer.extend(serde_json::to_vec(said).unwrap_or_default());
        client.answer.push(b'\n');
        client.write().is_ok()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// # Errors
    /// When the client is to be closed: gone, or it asks or holds back too much.
    fn turn(&mut self, answer: &mut impl FnMut(Request) -> Answer) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.write()?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(n) => self.asked.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.answer_lines(answer)?;
        }
        self.write()
    }

    fn answer_lines(&mut self, answer: &mut impl FnMut(Request) -> Answer) -> io::Result<()> {
        while let Some(end) = self.asked.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.asked.drain(..=end).collect();
            let answer = match serde_json::from_slice::<Request>(&line) {
                Ok(request) => answer(request),
                Err(error) => {
                    Answer::Now(serde_json::to_vec(&Said::Error(format!("bad request: {error}"))).unwrap_or_default())
                }
            };
            let Answer::Now(answer) = answer else { continue };
            self.answer.extend(answer);
            self.answer.push(b'\n');
            self.write()?;
            if self.answer.len() > MOST_ANSWER {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
        }
        if self.asked.len() > MOST_REQUEST { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.answer.is_empty() {
            match self.stream.write(&self.answer) {
                Ok(n) => drop(self.answer.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Only the daemon's own user, and root, may speak to it.
fn trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// The pid of the daemon behind a control socket, if one is alive.
fn live(path: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid())
}
