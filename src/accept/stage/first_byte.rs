//! `--first-byte-timeout`: a connection whose client says nothing reaches no worker.

use std::os::fd::AsFd;

use super::refusals::Refusal;
use super::steps::Look;
use super::{Arrival, StageRules};
use crate::sys::sock;

/// Looks whether something has come.
pub(super) fn look(rules: &StageRules, arrival: &Arrival, closed: bool) -> Look {
    if rules.first_byte.is_none() {
        return Look::Passes;
    }
    match sock::peek(arrival.socket.as_fd(), &mut [0]) {
        Ok(Some(1..)) => Look::Passes,
        Ok(None) if !closed => Look::Waits,
        Ok(_) | Err(_) => Look::Refused(Refusal::ClientLeft),
    }
}
