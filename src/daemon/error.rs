//! Why the daemon does not start, or ends.

use std::io;

use thiserror::Error;

use crate::control::server::NameTaken;
use crate::service::step::CannotListen;
use crate::sys::reason;
use crate::worker::delivery::DeliveryError;

#[derive(Debug, Error)]
pub enum DaemonError {
    #[error("{doing}: {}", reason(.source))]
    Os { doing: &'static str, source: io::Error },
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    #[error("{0}")]
    LogFile(String),
    #[error(transparent)]
    Listen(#[from] CannotListen),
}

/// That the system refused `doing`.
pub(super) fn os(doing: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |source| DaemonError::Os { doing, source }
}
