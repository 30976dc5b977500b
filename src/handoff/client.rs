//! What travels with a connection.

use serde::{Deserialize, Serialize};

use crate::abi::attach::ADDRESS_BYTES;
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

/// The same in a daemon's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientRecord {
    address: Vec<u8>,
    destination: Option<Vec<u8>>,
    key: Option<u64>,
    foreign: bool,
}

/// An address in a record: as many bytes as count.
pub fn address_bytes(PeerAddress { len, bytes }: &PeerAddress) -> Vec<u8> {
    bytes[..usize::from(*len).min(bytes.len())].to_vec()
}

/// The reverse.
pub fn address_of(text: &[u8]) -> PeerAddress {
    let mut bytes = [0; ADDRESS_BYTES];
    let len = text.len().min(bytes.len());
    bytes[..len].copy_from_slice(&text[..len]);
    PeerAddress { len: len as u16, bytes }
}

impl From<&Client> for ClientRecord {
    fn from(Client { address, destination, key, foreign }: &Client) -> Self {
        let destination = destination.as_deref().map(address_bytes);
        Self { address: address_bytes(address), destination, key: *key, foreign: *foreign }
    }
}

impl From<ClientRecord> for Client {
    fn from(ClientRecord { address, destination, key, foreign }: ClientRecord) -> Self {
        let destination = destination.map(|bytes| Box::new(address_of(&bytes)));
        Self { address: address_of(&address), destination, key, foreign }
    }
}
