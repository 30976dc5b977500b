//! What a verb is for: a service, one slot of it, or one of its upstreams.

use std::path::PathBuf;

use super::{Places, Target, Targets, which};
use crate::codes::USAGE;
use crate::exit::Exit;

/// A part of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Whole,
    Slot(u32),
    /// By its address, as `ls` shows it.
    Upstream(String),
}

/// The control socket of a daemon, a service (`None`: all of them), and a part of it.
pub type Place = (PathBuf, Option<String>, Part);

/// The places that a verb is for.
///
/// # Errors
/// As [`which::each`], and [`USAGE`] for what is no slot, before anything is asked.
pub fn each(places: &Places) -> Result<Vec<Place>, Exit> {
    let targets = |names: &[String]| Targets { names: names.to_vec(), control: places.control.clone() };
    let mut meant: Vec<Place> = Vec::new();
    if !places.names.iter().any(|name| split(name).is_some()) {
        let whole = which::each(&targets(&places.names))?;
        return Ok(whole.into_iter().map(|(socket, service)| (socket, service, Part::Whole)).collect());
    }
    for name in &places.names {
        let found = match split(name) {
            Some((service, part)) => part_of(name, service, part, places.control.clone())?,
            None => {
                let (socket, service) =
                    which::one(&Target { name: Some(name.clone()), control: places.control.clone() })?;
                (socket, service, Part::Whole)
            }
        };
        if !meant.contains(&found) {
            meant.push(found);
        }
    }
    Ok(meant)
}

/// `web/2` and `web@10.0.0.5:80`, taken apart before the separator. An address may contain a slash, a name neither.
fn split(name: &str) -> Option<(&str, &str)> {
    let at = name.find(['@', '/'])?;
    Some(name.split_at(at))
}

fn part_of(name: &str, service: &str, part: &str, control: Option<PathBuf>) -> Result<Place, Exit> {
    let slot = part.strip_prefix('/');
    let number = slot.and_then(|slot| slot.parse().ok());
    let whole = |name: &str| which::one(&Target { name: Some(name.to_owned()), control: control.clone() });
    match whole(service) {
        Ok((socket, found @ Some(_))) => match (slot, number) {
            (_, Some(number)) => Ok((socket, found, Part::Slot(number))),
            (Some(slot), None) => Err(Exit::new(USAGE, format!("'{slot}' is not a slot of {service}: {service}/0"))),
            (None, None) => Ok((socket, found, Part::Upstream(part[1..].to_owned()))),
        },
        // The path of a program, perhaps.
        Ok((_, None)) | Err(_) if slot.is_some() && number.is_none() => {
            whole(name).map(|(socket, service)| (socket, service, Part::Whole))
        }
        Ok((_, None)) => Err(Exit::new(USAGE, format!("{service} is a daemon of several services; name the service"))),
        Err(exit) => Err(exit),
    }
}
