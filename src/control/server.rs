//! The daemon's end of the control socket. Bounded in clients, bytes and waiting: a slow or hostile peer costs
//! its own connection.

mod record;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use thiserror::Error;
use tracing::{debug, warn};

pub use self::record::ControlRecord;
use super::requests::Requests;
use super::status::Daemon;
use super::{Reply, Request, ask, socket_path};
use crate::events::{Registry, Source};
use crate::sys::reason;

/// Clients at once; for one more, the one that has been silent for longest makes room.
const MAX_CLIENTS: usize = 32;
/// Answers that may wait for a client that does not read; then nothing more is read from it.
const HIGH: usize = 256 * 1024;
/// What is said of something under way may wait up to this; then the client is closed.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// At the start, another daemon has so long to say what its services are.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Requests of one client before all else has its turn.
const BUDGET: usize = 4;

/// Another daemon is alive under the name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameTaken {
    #[error("--control {} is taken by pid {pid}", .path.display())]
    Path { path: PathBuf, pid: u32 },
    #[error(
        "the name {name:?} is taken by pid {pid}; run `roundsman reload {name}` to replace its workers, or use --name"
    )]
    Name { name: String, pid: u32 },
    /// The service of that name is there, and stopped.
    #[error("{service} is already there (pid {pid}), and stopped; run `roundsman start {service}`, or use --name")]
    Stopped { service: String, pid: u32 },
}

struct Client {
    stream: UnixStream,
    requests: Requests,
    answer: Vec<u8>,
    heard: Instant,
    /// Requests whose answer, or its end, is still to come.
    awaited: usize,
    /// It says nothing more, and may still read.
    ended: bool,
    /// It may have more to say, and no event will tell.
    unread: bool,
}

/// The listening control socket and its clients.
pub struct ControlServer {
    listener: UnixListener,
    /// Its path, and which file that is.
    file: (PathBuf, Option<(u64, u64)>),
    clients: HashMap<u32, Client>,
    /// The next client's number.
    next: u32,
    registry: Registry,
}

impl ControlServer {
    /// Opens the socket of a service's daemon. Without a place for it the daemon runs all the same.
    ///
    /// # Errors
    /// When a live daemon has the name.
    pub fn open(
        registry: &Registry,
        name: &str,
        services: &[&str],
        asked: Option<&Path>,
    ) -> Result<Option<Self>, NameTaken> {
        let path = socket_path::socket(name, asked);
        // What lies in somebody else's directory says nothing about our daemons.
        let ready = socket_path::prepare(&path, asked.is_some());
        let taken = ready.map_err(|error| error.to_string()).and_then(|()| live(&path));
        if let Ok(Some(pid)) = taken {
            return Err(match asked {
                Some(path) => NameTaken::Path { path: path.to_owned(), pid: pid.cast_unsigned() },
                None => match ask::ls_of(&path, PROBE_TIMEOUT) {
                    Ok(daemon) => taken_by(name, services, &daemon),
                    Err(_) => NameTaken::Name { name: name.to_owned(), pid: pid.cast_unsigned() },
                },
            });
        }
        if asked.is_none() {
            unique(&path, services)?;
        }
        match taken.and_then(|_| Self::bind(registry, &path).map_err(|error| reason(&error))) {
            Ok(server) => Ok(Some(server)),
            Err(error) => {
                warn!(
                    "no control socket at {} ({error}): roundsman ls will not find this daemon; \
                     --control or XDG_RUNTIME_DIR name another place",
                    path.display()
                );
                Ok(None)
            }
        }
    }

    fn bind(registry: &Registry, path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "what is there is not a socket")),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        registry.watch(Source::ControlListener, &listener)?;
        let file = (path.to_owned(), inode(path));
        Ok(Self { listener, file, clients: HashMap::new(), next: 0, registry: registry.clone() })
    }

    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Takes new clients.
    pub fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if !trusted(&stream) || !self.has_room() {
                        continue;
                    }
                    let number = self.next;
                    self.next = self.next.wrapping_add(1);
                    if !self.clients.contains_key(&number)
                        && self.registry.watch(Source::ControlClient(number), &stream).is_ok()
                    {
                        self.clients.insert(number, Client::new(stream));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    debug!("control socket: {}", reason(&error));
                    return;
                }
            }
        }
    }

    /// Whether there is room for one more, after somebody idle may have been sent away.
    fn has_room(&mut self) -> bool {
        if self.clients.len() < MAX_CLIENTS {
            return true;
        }
        let idle = self.clients.iter().filter(|(_, client)| client.awaited == 0);
        let Some(number) = idle.min_by_key(|(_, client)| client.heard).map(|(&number, _)| number) else { return false };
        self.close(number);
        true
    }

    /// Up to a few requests of one client. What is no request is answered here.
    pub fn requests(&mut self, number: u32) -> Vec<Request> {
        let Some(client) = self.clients.get_mut(&number) else { return Vec::new() };
        match client.turn() {
            Ok(requests) => {
                client.awaited += requests.len();
                requests
            }
            Err(_) => {
                self.close(number);
                Vec::new()
            }
        }
    }

    /// Whether a client is still there.
    pub fn has(&self, number: u32) -> bool {
        self.clients.contains_key(&number)
    }

    /// Clients that may have said more than their turn allowed.
    pub fn unread(&self) -> Vec<u32> {
        self.clients.iter().filter(|(_, client)| client.unread).map(|(&number, _)| number).collect()
    }

    /// Tells a client one more line about what it asked for; `last` is the end of it. Whether it is still there.
    pub fn tell(&mut self, number: u32, said: &impl serde::Serialize, last: Finality) -> bool {
        let Some(client) = self.clients.get_mut(&number) else { return false };
        if last == Finality::Last {
            client.awaited = client.awaited.saturating_sub(1);
        }
        client.say(said);
        let gone = client.write().is_err() || client.answer.len() > MAX_ANSWER || client.is_over();
        if gone {
            self.close(number);
        }
        !gone
    }

    /// Gives a client away, with what is still to be written to it.
    pub fn give_away(&mut self, number: u32) -> Option<(UnixStream, Vec<u8>)> {
        let client = self.clients.remove(&number)?;
        self.registry.unwatch(&client.stream);
        Some((client.stream, client.answer))
    }

    fn close(&mut self, number: u32) {
        drop(self.give_away(number));
    }
}

/// Whether a reply is the last one to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    Last,
    More,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Another daemon may have the path by now.
        let (path, own) = &self.file;
        if own.is_some() && inode(path) == *own {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            requests: Requests::default(),
            answer: Vec::new(),
            heard: Instant::now(),
            awaited: 0,
            ended: false,
            unread: false,
        }
    }

    /// # Errors
    /// When the client is to be closed: gone, or it asks too much at once.
    fn turn(&mut self) -> io::Result<Vec<Request>> {
        self.write()?;
        let mut found = Vec::new();
        let mut bad = 0;
        loop {
            // One that does not read is not listened to.
            self.unread = self.answer.len() <= HIGH;
            if found.len() + bad >= BUDGET || !self.unread {
                break;
            }
            match self.requests.next() {
                Some(Ok(request)) => found.push(request),
                Some(Err(why)) => {
                    self.say(&Reply::Error(why));
                    bad += 1;
                }
                None if self.read()? => {}
                None => {
                    self.unread = false;
                    break;
                }
            }
        }
        self.write()?;
        if found.is_empty() && self.is_over() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(found) }
    }

    /// Whether more came.
    fn read(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(n) => {
                    self.heard = Instant::now();
                    self.requests.push(&buffer[..n])?;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.ended && self.awaited == 0 && self.answer.is_empty() && !self.unread
    }

    fn say(&mut self, what: &impl serde::Serialize) {
        self.answer.extend(serde_json::to_vec(what).unwrap_or_default());
        self.answer.push(b'\n');
    }

    fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            if written == self.answer.len() {
                break Ok(());
            }
            match self.stream.write(&self.answer[written..]) {
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.answer.drain(..written);
        result
    }
}

/// Only the daemon's own user, and root, may speak to it.
fn trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// No other daemon has a service of the same name: verbs find services by it.
fn unique(own: &Path, services: &[&str]) -> Result<(), NameTaken> {
    for path in socket_path::all().unwrap_or_default().iter().filter(|path| *path != own) {
        let Ok(daemon) = ask::ls_of(path, PROBE_TIMEOUT) else { continue };
        if let Some(taken) = daemon.services.iter().find(|service| services.contains(&service.name.as_str())) {
            return Err(taken_by(&taken.name, services, &daemon));
        }
    }
    Ok(())
}

fn taken_by(name: &str, services: &[&str], daemon: &Daemon) -> NameTaken {
    let stopped = daemon.services.iter().find(|service| service.stopped && services.contains(&service.name.as_str()));
    match stopped {
        Some(service) => NameTaken::Stopped { service: service.name.clone(), pid: daemon.pid },
        None => NameTaken::Name { name: name.to_owned(), pid: daemon.pid },
    }
}

/// The pid of the daemon behind a control socket, if one is alive.
///
/// # Errors
/// When it is another user's process, whose name is not taken from us by that.
fn live(path: &Path) -> Result<Option<i32>, String> {
    let stream = match ask::connect(path, PROBE_TIMEOUT) {
        Ok(stream) => stream,
        // A leftover, or nothing. Anything else may be alive, and its socket stays.
        Err(error) if [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(reason(&error)),
    };
    let peer = getsockopt(&stream, PeerCredentials).map_err(|errno| errno.desc())?;
    if socket_path::is_ours(peer.uid()) {
        Ok(Some(peer.pid()))
    } else {
        Err(format!("uid {} listens there", peer.uid()))
    }
}

/// Device and inode.
fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}
