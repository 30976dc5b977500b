//! The control socket.

mod socket;
mod trust;
