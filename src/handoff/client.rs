//! What travels with a connection.

use crate::sys::sock::PeerAddress;

/// A connection's client, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// Its address: the one that a PROXY header named, else the kernel's; unknown where nobody asked for it.
    pub address: PeerAddress,
    /// Where it connected to, if a PROXY header named both.
    pub destination: Option<Box<PeerAddress>>,
}

impl From<PeerAddress> for Client {
    fn from(address: PeerAddress) -> Self {
        Self { address, destination: None }
    }
}
