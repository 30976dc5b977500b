//! Payloads of hand-offs as bytes.

use std::mem::offset_of;

use super::Client;
use crate::abi::payload;
use crate::sys::sock::PeerAddress;

/// The bytes of [`payload::Direct`], place by place.
pub(super) fn direct_payload(tag: u8, peer: &PeerAddress, number: u64, accepted: u64) -> [u8; payload::DIRECT_BYTES] {
    let mut bytes = [0; payload::DIRECT_BYTES];
    bytes[offset_of!(payload::Direct, version)] = payload::VERSION;
    bytes[offset_of!(payload::Direct, tag)] = tag;
    let len = offset_of!(payload::Direct, address_len);
    bytes[len..len + 2].copy_from_slice(&peer.len.to_ne_bytes());
    let address = offset_of!(payload::Direct, address);
    bytes[address..address + peer.bytes.len()].copy_from_slice(&peer.bytes);
    let at = offset_of!(payload::Direct, number);
    bytes[at..at + 8].copy_from_slice(&number.to_ne_bytes());
    let at = offset_of!(payload::Direct, accepted);
    bytes[at..at + 8].copy_from_slice(&accepted.to_ne_bytes());
    bytes
}

/// Puts an address where a payload has a [`payload::Endpoint`].
pub(super) fn put_endpoint(payload: &mut [u8], at: usize, address: Option<&PeerAddress>) {
    if let Some(PeerAddress { len, bytes }) = address {
        payload[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        payload[at + 2..at + 2 + bytes.len()].copy_from_slice(bytes);
    }
}

/// The address where a payload has a [`payload::Endpoint`], if it is one for TCP.
pub(super) fn endpoint(payload: &[u8], at: usize) -> Option<PeerAddress> {
    let (len, bytes) = payload.get(at..)?.split_first_chunk()?;
    let address = PeerAddress { len: u16::from_ne_bytes(*len), bytes: *bytes.first_chunk()? };
    address.ip().is_some().then_some(address)
}

/// The bytes of [`payload::TranslatedTag`], place by place.
pub(super) fn translated_tag(client: &Client, accepted: u64) -> [u8; payload::TRANSLATED_TAG_BYTES] {
    let mut bytes = [0; payload::TRANSLATED_TAG_BYTES];
    let at = offset_of!(payload::TranslatedTag, accepted);
    bytes[at..at + 8].copy_from_slice(&accepted.to_ne_bytes());
    let destination = client.destination.as_deref();
    put_endpoint(&mut bytes, offset_of!(payload::TranslatedTag, client), destination.map(|_| &client.address));
    put_endpoint(&mut bytes, offset_of!(payload::TranslatedTag, destination), destination);
    bytes
}

/// What [`translated_tag`] has put there.
pub(super) fn translated(tag: &[u8]) -> Option<Client> {
    let address = endpoint(tag, offset_of!(payload::TranslatedTag, client))?;
    let destination = endpoint(tag, offset_of!(payload::TranslatedTag, destination))?;
    Some(Client { address, destination: Some(Box::new(destination)), key: None, foreign: false })
}
