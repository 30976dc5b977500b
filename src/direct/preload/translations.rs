//! Connections whose addresses a PROXY header named: the server sees these in place of the kernel's, in every process of the
//! worker. Without `--proxy-from` there is no record, and all of this is one load.

use super::abi::attach::{TRANSLATIONS, op};
use super::abi::payload::Endpoint;
use super::abi::translations::{FILE_BYTES, Translation, Translations};
use super::address::Address;
use super::arch::pid;
use super::counts::{self, Shared};
use super::{client, raw};

/// The record's memory; not mapped: there is none.
static MEMORY: Shared<FILE_BYTES> = Shared::none();

/// Gets the record from the master, once, if this worker's connections have one.
pub fn begin() {
    if MEMORY.is_mapped() || !counts::translates() {
        return;
    }
    let Some(answer) = client::request(op::TRANSLATIONS, 0) else { return };
    let [file, ..] = answer.fds;
    if answer.reply.kind == TRANSLATIONS {
        MEMORY.map(file);
    }
    raw::close(file);
}

#[inline(always)]
fn record() -> Option<Translations<'static>> {
    MEMORY.words().map(Translations)
}

fn endpoint(address: &Address) -> Endpoint {
    Endpoint { len: address.len as u16, address: address.bytes }
}

/// Of the two ends of a connection.
#[derive(Clone, Copy)]
pub enum End {
    Client,
    Server,
}

/// A connection was received whose addresses a header named; the server sees them in this family.
pub fn received(fd: i32, client: &Address, destination: &Endpoint, family: u16) {
    let Some(record) = record() else { return };
    let destination = Address { bytes: destination.address, len: u32::from(destination.len) };
    let translation = Translation {
        client: endpoint(&client.shown_as(family)),
        destination: endpoint(&destination.shown_as(family)),
    };
    if !record.insert(raw::socket_cookie(fd), pid(), &translation, raw::is_gone) {
        counts::lose_addresses();
    }
}

/// A connection is about to be closed.
#[inline]
pub fn closing(fd: i32) {
    if let Some(record) = record() {
        record.closed(raw::socket_cookie(fd), pid());
    }
}

/// The address that a header named for an end of the connection at a descriptor.
#[inline]
pub fn address(fd: i32, end: End) -> Option<Address> {
    let record = record()?;
    let translation = record.get(raw::socket_cookie(fd))?;
    let Endpoint { len, address } = match end {
        End::Client => translation.client,
        End::Server => translation.destination,
    };
    Some(Address { bytes: address, len: u32::from(len) })
}
