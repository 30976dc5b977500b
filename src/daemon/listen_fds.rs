//! Listening sockets passed by systemd or another supervisor (LISTEN_FDS, see sd_listen_fds(3)).

use std::io;
use std::os::fd::RawFd;

use thiserror::Error;

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

/// Whether sockets are passed to this process.
pub fn inherited() -> Inherited {
    let passed = sd_notify::listen_fds().is_ok_and(|fds| fds.len() > 0);
    if passed { Inherited::Some } else { Inherited::None }
}

/// The listeners of each service: inherited ones where they match, the rest bound anew. A single service also serves
/// inherited ones that it does not name.
///
/// # Errors
/// See [`ListenError`].
pub fn take_inherited(config: &Config) -> Result<Vec<Vec<Listener>>, ListenError> {
    let mut passed = Vec::new();
    for fd in sd_notify::listen_fds().map_err(ListenError::Variables)? {
        let listener = sock::adopt_inherited(fd).and_then(Listener::adopt);
        passed.push(listener.map_err(|source| ListenError::Descriptor { fd, source })?);
    }
    let mut all = Vec::new();
    for (service, _) in &config.services {
        all.push(service.listen.iter().map(|listen| one(listen, &mut passed)).collect::<Result<Vec<_>, _>>()?);
    }
    match (all.as_mut_slice(), passed.first()) {
        ([only], _) => only.extend(passed),
        (_, Some(listener)) => return Err(ListenError::Unclaimed { address: listener.address.clone() }),
        (_, None) => {}
    }
    Ok(all)
}

fn one(listen: &Listen, passed: &mut Vec<Listener>) -> Result<Listener, BindError> {
    let Some(at) = passed.iter().position(|listener| listener.serves(&listen.address)) else { return bind(listen) };
    let mut listener = passed.remove(at);
    listener.app_port = listen.app_port;
    Ok(listener)
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
