//! The relay: bytes, turns, upstreams.

mod balance;
mod bytes;
mod limits;
mod servers;
mod sticky;
mod streams;
mod upstreams;
mod upstreams_shown;
mod weights;
