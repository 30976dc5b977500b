//! Listening sockets passed by systemd or another supervisor (LISTEN_FDS, see sd_listen_fds(3)).

use crate::addr::Listen;
use crate::config::{Config, Inherited};
use crate::exit::{Exit, USAGE};
use crate::listener::Listener;
use crate::sys::sock;

/// The first descriptor of the convention.
const FIRST: i32 = 3;
/// More than this is a mistake.
const MAX_FDS: i32 = 253;

fn count() -> i32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<i32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(n)) if pid as u32 == std::process::id() => n.clamp(0, MAX_FDS),
        _ => 0,
    }
}

/// Whether sockets are passed to this process.
pub fn inherited() -> Inherited {
    if count() > 0 { Inherited::Some } else { Inherited::None }
}

/// The listeners of each service: inherited ones where they match, the rest bound anew; what is inherited beyond the
/// addresses asked for is served, too, by the only service.
///
/// # Errors
/// [`USAGE`] for a passed descriptor that is no stream socket, or that is nobody's; exit code 71 for an address that cannot
/// be bound.
pub fn take_inherited(config: &Config) -> Result<Vec<Vec<Listener>>, Exit> {
    let mut passed = Vec::new();
    for fd in FIRST..FIRST + count() {
        let listener = sock::adopt_inherited(fd).and_then(Listener::adopt);
        passed.push(listener.map_err(|error| Exit::new(USAGE, format!("LISTEN_FDS: descriptor {fd}: {error}")))?);
    }
    let mut all = Vec::new();
    for (service, _) in &config.services {
        all.push(service.listen.iter().map(|listen| one(listen, &mut passed)).collect::<Result<Vec<_>, _>>()?);
    }
    match (all.as_mut_slice(), passed.first()) {
        ([only], _) => only.extend(passed),
        (_, Some(listener)) => {
            let address = &listener.address;
            return Err(Exit::new(
                USAGE,
                format!("LISTEN_FDS: no service listens on {address}; say which in the file"),
            ));
        }
        (_, None) => {}
    }
    Ok(all)
}

fn one(listen: &Listen, passed: &mut Vec<Listener>) -> Result<Listener, Exit> {
    let Some(at) = passed.iter().position(|listener| listener.serves(&listen.address)) else { return bind(listen) };
    let mut listener = passed.remove(at);
    listener.app_port = listen.app_port;
    Ok(listener)
}

/// Binds an address of a service.
///
/// # Errors
/// Exit code 71.
pub fn bind(listen: &Listen) -> Result<Listener, Exit> {
    let mut listener =
        Listener::bind(&listen.address).map_err(|error| Exit::new(crate::exit::OS, error.to_string()))?;
    listener.app_port = listen.app_port;
    Ok(listener)
}
