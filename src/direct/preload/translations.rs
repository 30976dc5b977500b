//! Connections whose addresses a PROXY header named: the server sees these in place of the kernel's, in every process of the
//! worker. Without `--proxy-from` there is no record, and all of this is one load.

use core::sync::atomic::{AtomicU32, Ordering::*};

use super::abi::attach::{ADDRESS_BYTES, TRANSLATIONS, op};
use super::abi::payload::Endpoint;
use super::abi::translations::{FILE_BYTES, Translation, Translations};
use super::address::{Address, is_ip};
use super::arch::pid;
use super::client::{self, Answer, Master, Wait};
use super::counts::{self, Shared};
use super::raw::{self, SO_DOMAIN};

/// The record's memory; not mapped: there is none.
static MEMORY: Shared<FILE_BYTES> = Shared::none();

/// What a process that has no record knows of it.
static LATE: AtomicU32 = AtomicU32::new(UNKNOWN);
const UNKNOWN: u32 = 0;
/// There is one: it is asked for when an address of a connection is wanted.
const THERE: u32 = 1;
/// There is none, or it was asked for.
const SETTLED: u32 = 2;

/// Gets the record from the master, once, if this worker's connections have one.
pub fn begin() {
    if MEMORY.is_mapped() || !counts::translates() {
        return;
    }
    if let Some(answer) = client::request(op::TRANSLATIONS, 0) {
        take(&answer);
    }
}

fn take(answer: &Answer) {
    let [file, ..] = answer.fds;
    if answer.reply.kind == TRANSLATIONS {
        MEMORY.map(file);
    }
    raw::close(file);
}

/// The record for a process that has no stand-in: a program that was started with a connection and nothing else. Any program
/// below the server may come here; so the question is put once, over a connection that does not stay, and only for a TCP socket.
#[cold]
fn late(fd: i32) -> Option<Translations<'static>> {
    if LATE.load(Relaxed) == UNKNOWN {
        let there = Master::find().is_some_and(|master| master.translates);
        LATE.store(if there { THERE } else { SETTLED }, Relaxed);
    }
    if LATE.load(Relaxed) == SETTLED || !u16::try_from(raw::socket_option(fd, SO_DOMAIN)).is_ok_and(is_ip) {
        return None;
    }
    if LATE.swap(SETTLED, Relaxed) == THERE {
        let master = Master::find()?;
        let socket = master.connect(Wait::Always)?;
        let request = master.request(op::TRANSLATIONS, 0, [0; ADDRESS_BYTES]);
        if let Some(answer) = client::exchange(socket, &request, None, Wait::Always) {
            take(&answer);
        }
        raw::close(socket);
    }
    record()
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
/// Whether they are known from now on.
pub fn received(fd: i32, client: &Address, destination: &Endpoint, family: u16) -> bool {
    let Some(record) = record() else { return false };
    let destination = Address { bytes: destination.address, len: u32::from(destination.len) };
    let translation = Translation {
        client: endpoint(&client.shown_as(family)),
        destination: endpoint(&destination.shown_as(family)),
    };
    let known = record.insert(raw::socket_cookie(fd), pid(), &translation, raw::is_gone);
    if !known {
        counts::lose_addresses();
    }
    known
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
    let record = match record() {
        Some(record) => record,
        None if LATE.load(Relaxed) == SETTLED => return None,
        None => late(fd)?,
    };
    let translation = record.get(raw::socket_cookie(fd))?;
    let Endpoint { len, address } = match end {
        End::Client => translation.client,
        End::Server => translation.destination,
    };
    Some(Address { bytes: address, len: u32::from(len) })
}
