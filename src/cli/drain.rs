//! `drain` and `undrain`.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::client::{TIMEOUT, order_places};
use super::place::{self, Part};
use super::which::unreachable;
use super::{Drain, Places};
use crate::codes::USAGE;
use crate::control::Request;
use crate::control::ask::ls_of;
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
        Exit::new(USAGE, format!("say which slot: {service}/0; to stop all workers: roundsman stop {service}"))
    };
    order_places(&places, |service, part| match part {
        Part::Whole => Err(whole(service)),
        Part::Slot(slot) => Ok(Request::Drain { service, slot, force: args.force }),
        Part::Upstream(address) => Err(Exit::new(USAGE, format!("{address} is not a slot"))),
    })?;
    if !args.wait {
        return Ok(());
    }
    place::each(&places)?.into_iter().try_for_each(|(socket, service, part)| wait(&socket, service.as_deref(), &part))
}

fn wait(socket: &Path, service: Option<&str>, part: &Part) -> Result<(), Exit> {
    let Part::Slot(number) = *part else { return Ok(()) };
    loop {
        let daemon = ls_of(socket, TIMEOUT).map_err(|error| unreachable(socket, &error))?;
        let meant = daemon.services.iter().find(|one| service.is_none_or(|name| one.name == name));
        let slot = meant.and_then(|service| service.slots.get(number as usize));
        match slot.filter(|slot| slot.drain) {
            None => return Err(Exit::new(1, format!("slot {number} is no longer drained"))),
            Some(slot) if slot.open + slot.pending == 0 => return Ok(()),
            Some(_) => sleep(POLL_INTERVAL),
        }
    }
}

/// `roundsman undrain`.
///
/// # Errors
/// As [`order_places`].
pub fn undrain(places: &Places) -> Result<(), Exit> {
    order_places(places, |service, part| match part {
        Part::Whole => Ok(Request::Undrain { service, slot: None }),
        Part::Slot(slot) => Ok(Request::Undrain { service, slot: Some(slot) }),
        Part::Upstream(address) => Err(Exit::new(USAGE, format!("{address} is not a slot"))),
    })
}
