//! The PROXY header of a trusted source: taken off, and what it says of the client noted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::refusals::{Refusal, StageStats};
use super::steps::{Desk, Look};
use super::{Arrival, StageRules};
use crate::handoff::Client;
use crate::proxy_protocol::{self, Invalid, Pair};
use crate::sys::sock::{self, PeerAddress};

/// Time for a PROXY header to come.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// Looks for a header where there is to be one. When a reload adds the option, that is from when the last worker is replaced that was
/// started without it: half of its calls would say one thing of the client, the others another.
pub(super) fn look(
    desk: &mut Desk,
    rules: &StageRules,
    stats: &StageStats,
    arrival: &mut Arrival,
    closed: bool,
) -> Look {
    if !desk.translates || !rules.proxy_from.contain(arrival.client.address.ip()) {
        return Look::Passes;
    }
    desk.buffer.resize(proxy_protocol::MAX_BYTES, 0);
    let header = match sock::peek(arrival.socket.as_fd(), &mut desk.buffer) {
        Ok(None) => None,
        Ok(Some(0)) | Err(_) => return Look::Refused(Refusal::ClientLeft),
        Ok(Some(n)) => match proxy_protocol::parse(&desk.buffer[..n]) {
            Ok(header) => header,
            Err(Invalid::NoHeader | Invalid::Malformed | Invalid::TooLong | Invalid::Checksum) => {
                return Look::Refused(Refusal::ProxyInvalid);
            }
        },
    };
    let Some(header) = header else {
        return if closed { Look::Refused(Refusal::ProxyInvalid) } else { Look::Waits };
    };
    if take(&arrival.socket, &mut desk.buffer[..header.len]).is_err() {
        return Look::Refused(Refusal::ProxyInvalid);
    }
    stats.headers.fetch_add(1, Relaxed);
    if let Some(Pair { client, destination }) = header.pair {
        let destination = Some(Box::new(PeerAddress::from(destination)));
        arrival.client = Client { address: client.into(), destination, key: None, foreign: false };
    }
    Look::Passes
}

/// Takes a header, which was seen to be there, off the socket.
fn take(socket: &OwnedFd, mut header: &mut [u8]) -> io::Result<()> {
    while !header.is_empty() {
        match sock::recv(socket.as_fd(), header) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => header = &mut header[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Urgent data in between, perhaps.
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
