//! Where clients come in.

mod abstract_sockets;
mod addresses;
mod rate;
