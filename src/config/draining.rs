//! What becomes of a replaced worker's connections: `--drain-idle` and `--drain-spread`.

use std::time::Duration;

use super::error::{ConfigError, Kind};
use super::options::DrainIdle;
use super::service::Backend;
use crate::accept::policy::Policy;
use crate::affinity::HashOn;

/// # Errors
/// Where connections cannot move, or nobody could end them one by one.
pub fn check(
    (idle, spread, timeout): (DrainIdle, Option<Duration>, Duration),
    policy: Policy,
    hash_on: Option<&HashOn>,
    backend: &Backend,
) -> Result<(), ConfigError> {
    if idle == DrainIdle::Move {
        let kind = match (backend, policy) {
            (Backend::NoPort(_), _) => Some(Kind::Excludes("no-listen")),
            (_, Policy::None) => Some(Kind::WorkersAccept),
            _ => hash_on.is_some_and(HashOn::reads_head).then_some(Kind::MovesWithoutKey),
        };
        if let Some(kind) = kind {
            return Err(kind.of("drain-idle"));
        }
    }
    let Some(spread) = spread else { return Ok(()) };
    let kind = match backend {
        Backend::NoPort(_) => Some(Kind::Excludes("no-listen")),
        Backend::Direct(_) => Some(Kind::SpreadsRelay),
        Backend::Upstreams(..) | Backend::Relayed(_) => (spread > timeout).then_some(Kind::SpreadTooLong),
    };
    kind.map_or(Ok(()), |kind| Err(kind.of("drain-spread")))
}
