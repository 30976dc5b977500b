//! `--first-byte-timeout`: a connection whose client says nothing reaches no worker.

use std::io;
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
        Ok(1..) => Look::Passes,
        Err(error) if !closed && matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Look::Waits
        }
        Ok(0) | Err(_) => Look::Refused(Refusal::ClientLeft),
    }
}
