//! The control socket.

mod ls;
mod socket;
mod trust;
