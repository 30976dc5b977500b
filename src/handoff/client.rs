//! What travels with a connection.

use crate::sys::sock::PeerAddress;

/// A connection's client, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// Its address: the one that a PROXY header named, else the kernel's; unknown where nobody asked for it.
    pub address: PeerAddress,
    /// Where it connected to, if a PROXY header named both.
    pub destination: Option<Box<PeerAddress>>,
    /// What its first request is hashed by, if that was looked for and found.
    pub key: Option<u64>,
    /// A server may have had the connection: a close of ours can block.
    pub foreign: bool,
}

impl From<PeerAddress> for Client {
    fn from(address: PeerAddress) -> Self {
        Self { address, destination: None, key: None, foreign: false }
    }
}
