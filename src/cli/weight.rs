//! `weight`.

use super::client::order_places;
use super::place::Part;
use super::{Places, Weight};
use crate::codes::USAGE;
use crate::config::upstream::weight;
use crate::control::Request;
use crate::exit::Exit;

/// `roundsman weight`.
///
/// # Errors
/// As [`order_places`]; [`USAGE`] for a whole service, and for what is no weight.
pub fn set(args: &Weight) -> Result<(), Exit> {
    let refused = |why: String| Exit::new(USAGE, format!("{}: {why}", args.place));
    let to = weight(&args.weight).map_err(|why| match weight(&args.place) {
        // The other way round.
        Ok(number) => Exit::new(USAGE, format!("{why}; did you mean: roundsman weight {} {number}?", args.weight)),
        Err(_) => refused(why),
    })?;
    let places = Places { names: vec![args.place.clone()], control: args.control.clone() };
    order_places(&places, |service, part| {
        let (slot, upstream) = match part {
            Part::Whole => return Err(refused("say which slot or upstream: NAME/0, NAME@10.0.0.5:6379".to_owned())),
            Part::Slot(slot) => (Some(slot), None),
            Part::Upstream(address) => (None, Some(address)),
        };
        Ok(Request::Weight { service, slot, upstream, weight: to.into(), force: args.force })
    })
}
