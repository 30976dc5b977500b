//! Listening sockets passed by systemd or another supervisor (LISTEN_FDS, see sd_listen_fds(3)).

use crate::config::Inherited;
use crate::config::addr::Listen;
use crate::exit::{Exit, USAGE};
use crate::listener::Listener;
use crate::sys::sock;

/// The first descriptor of the convention.
const FIRST: i32 = 3;
/// More than this is a mistake.
const MOST: i32 = 253;

fn count() -> i32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<i32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(n)) if pid as u32 == std::process::id() => n.clamp(0, MOST),
        _ => 0,
    }
}

/// Whether sockets are passed to this process.
pub fn inherited() -> Inherited {
    if count() > 0 { Inherited::Some } else { Inherited::None }
}

/// The service's listeners: inherited ones where they match, the rest bound anew; what is inherited beyond the
/// addresses asked for is served, too.
///
/// # Errors
/// [`USAGE`] for a passed descriptor that is no stream socket; exit code 71 for an address that cannot be bound.
pub fn take_inherited(addresses: &[Listen]) -> Result<Vec<Listener>, Exit> {
    let mut passed = Vec::new();
    for fd in FIRST..FIRST + count() {
        let listener = sock::adopt_inherited(fd).and_then(Listener::adopt);
        passed.push(listener.map_err(|error| Exit::new(USAGE, format!("LISTEN_FDS: descriptor {fd}: {error}")))?);
    }
    let mut listeners = Vec::new();
    for Listen { address, app_port } in addresses {
        let mut listener = match passed.iter().position(|listener| listener.serves(address)) {
            Some(at) => passed.remove(at),
            None => Listener::bind(address).map_err(|error| Exit::new(crate::exit::OS, error.to_string()))?,
        };
        listener.app_port = *app_port;
        listeners.push(listener);
    }
    listeners.extend(passed);
    Ok(listeners)
}
