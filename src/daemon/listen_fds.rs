//! Listening sockets passed by systemd or another supervisor (LISTEN_FDS, see sd_listen_fds(3)).

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use thiserror::Error;

use super::fd_store::{forget_all, is_stored};
use crate::addr::Listen;
use crate::config::{Config, Inherited};
use crate::listener::{BindError, Listener};
use crate::sys::{reason, sock};

/// Why there are not all listeners.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error("LISTEN_FDS: {}", reason(.0))]
    Variables(io::Error),
    #[error("LISTEN_FDS: descriptor {fd}: {}", reason(.source))]
    Descriptor { fd: RawFd, source: io::Error },
    #[error("LISTEN_FDS: no service listens on {address}; say which in the file")]
    Unclaimed { address: String },
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Whether sockets are passed to this process, beside those that it has stored itself.
pub fn inherited() -> Inherited {
    let passed = sd_notify::listen_fds().is_ok_and(|fds| fds.zip(names()).any(|(_, name)| !is_stored(&name)));
    if passed { Inherited::Some } else { Inherited::None }
}

/// The names of passed descriptors; empty where there is none.
fn names() -> impl Iterator<Item = String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    names.into_iter().chain(std::iter::repeat(String::new()))
}

/// The listeners of each service: inherited ones where they match, the rest bound anew. A single service also serves
/// inherited ones that it does not name, unless they are from the descriptor store.
///
/// # Errors
/// See [`ListenError`].
pub fn take_inherited(config: &Config) -> Result<Vec<Vec<Listener>>, ListenError> {
    let (mut passed, mut unwanted) = (Vec::new(), Vec::new());
    for (fd, name) in sd_notify::listen_fds().map_err(ListenError::Variables)?.zip(names()) {
        let socket = sock::adopt_inherited(fd);
        match (is_stored(&name), socket.and_then(|socket| adopt(socket, &name))) {
            (_, Ok(listener)) => passed.push((listener, name)),
            // Its file was removed, for one.
            (true, Err(_)) => unwanted.push(name),
            (false, Err(source)) => return Err(ListenError::Descriptor { fd, source }),
        }
    }
    let services = config.services.iter();
    let mut all: Vec<Vec<Option<Listener>>> = services
        .map(|(service, _)| service.listen.iter().map(|listen| matching(listen, &mut passed)).collect())
        .collect();
    let (stored, passed): (Vec<_>, Vec<_>) = passed.into_iter().partition(|(_, name)| is_stored(name));
    unwanted.extend(stored.into_iter().map(|(_, name)| name));
    forget_all(&unwanted);
    for ((service, _), listeners) in config.services.iter().zip(&mut all) {
        for (listen, listener) in service.listen.iter().zip(listeners).filter(|(_, listener)| listener.is_none()) {
            *listener = Some(bind(listen)?);
        }
    }
    let mut all: Vec<Vec<Listener>> =
        all.into_iter().map(|listeners| listeners.into_iter().flatten().collect()).collect();
    let mut passed = passed.into_iter().map(|(listener, _)| listener);
    match (all.as_mut_slice(), passed.next()) {
        (_, None) => {}
        ([only], Some(first)) => only.extend(std::iter::once(first).chain(passed)),
        (_, Some(listener)) => return Err(ListenError::Unclaimed { address: listener.address.clone() }),
    }
    Ok(all)
}

fn adopt(socket: OwnedFd, name: &str) -> io::Result<Listener> {
    if is_stored(name) { Listener::adopt_stored(socket) } else { Listener::adopt(socket) }
}

fn matching(listen: &Listen, passed: &mut Vec<(Listener, String)>) -> Option<Listener> {
    let at = passed.iter().position(|(listener, _)| listener.serves(&listen.address))?;
    let (mut listener, _) = passed.remove(at);
    listener.app_port = listen.app_port;
    Some(listener)
}

/// Binds an address of a service.
///
/// # Errors
/// See [`BindError`].
pub fn bind(listen: &Listen) -> Result<Listener, BindError> {
    let mut listener = Listener::bind(&listen.address)?;
    listener.app_port = listen.app_port;
    Ok(listener)
}
