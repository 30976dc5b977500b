//! `drain` and `undrain`.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::client::{TIMEOUT, order_places};
use super::place::{self, Part};
use super::which::unreachable;
use super::{Drain, Places};
use crate::addr::Upstream;
use crate::codes::USAGE;
use crate::control::Request;
use crate::control::ask::ls_of;
use crate::control::status::ServiceState;
use crate::exit::Exit;

/// How often `--wait` asks.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// `roundsman drain`. Returns when new connections go elsewhere; with `--wait`, when none is open any more.
///
/// # Errors
/// As [`order_places`]; [`USAGE`] for a whole service; 1 when somebody takes the mark away meanwhile.
pub fn drain(args: &Drain) -> Result<(), Exit> {
    let places = Places { names: args.names.clone(), control: args.control.clone() };
    let whole = |service: Option<String>| {
        let service = service.unwrap_or_else(|| "NAME".to_owned());
        Exit::new(
            USAGE,
            format!(
                "say which slot: {service}/0; or which upstream: {service}@10.0.0.5:6379; to stop all workers: roundsman stop {service}"
            ),
        )
    };
    order_places(&places, |service, part| match part {
        Part::Whole => Err(whole(service)),
        Part::Slot(slot) => Ok(Request::Drain { service, slot: Some(slot), upstream: None, force: args.force }),
        Part::Upstream(address) => {
            Ok(Request::Drain { service, slot: None, upstream: Some(address), force: args.force })
        }
    })?;
    if !args.wait {
        return Ok(());
    }
    place::each(&places)?.into_iter().try_for_each(|(socket, service, part)| wait(&socket, service.as_deref(), &part))
}

fn wait(socket: &Path, service: Option<&str>, part: &Part) -> Result<(), Exit> {
    loop {
        let daemon = ls_of(socket, TIMEOUT).map_err(|error| unreachable(socket, &error))?;
        let meant = daemon.services.iter().find(|one| service.is_none_or(|name| one.name == name));
        match meant.and_then(|service| left(service, part)) {
            Some(0) => return Ok(()),
            Some(_) => sleep(POLL_INTERVAL),
            None => {
                let what = match part {
                    Part::Slot(number) => format!("slot {number}"),
                    Part::Upstream(address) => format!("upstream {address}"),
                    Part::Whole => return Ok(()),
                };
                return Err(Exit::new(1, format!("{what} is no longer drained")));
            }
        }
    }
}

/// How many connections a part still has; `None`: it is not drained.
fn left(service: &ServiceState, part: &Part) -> Option<u64> {
    match part {
        Part::Whole => None,
        Part::Slot(number) => {
            let slot = service.slots.get(*number as usize).filter(|slot| slot.drain)?;
            Some(slot.open + slot.pending)
        }
        Part::Upstream(address) => {
            let wanted = address.parse::<Upstream>().ok();
            let same = service.upstreams.iter().filter(|one| one.addr.parse().ok() == wanted && one.drain);
            same.map(|upstream| upstream.open).reduce(|sum, open| sum + open)
        }
    }
}

/// `roundsman undrain`.
///
/// # Errors
/// As [`order_places`].
pub fn undrain(places: &Places) -> Result<(), Exit> {
    order_places(places, |service, part| match part {
        Part::Whole => Ok(Request::Undrain { service, slot: None, upstream: None }),
        Part::Slot(slot) => Ok(Request::Undrain { service, slot: Some(slot), upstream: None }),
        Part::Upstream(address) => Ok(Request::Undrain { service, slot: None, upstream: Some(address) }),
    })
}
