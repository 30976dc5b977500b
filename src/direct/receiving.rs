//! Requests of the attach socket, as they come: nobody's descriptors are accepted without a proof.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;

use super::attach::{AttachRequest, Refusal, Secret};
use super::guests::Guest;
use super::wire::parse;
use crate::abi::attach::{self as abi, REQUEST_BYTES, TOKEN_BYTES};
use crate::sys::closer::{self, Foreign};
use crate::sys::{scm, sock};

/// One request; `Err(None)` when the connection has ended. It is peeked at before it is received: descriptors are accepted
/// only from processes that have shown a proof.
pub(super) fn request(
    guest: &Guest,
    admits: impl FnOnce(&Secret, &Guest) -> bool,
) -> Result<Option<AttachRequest>, Option<Refusal>> {
    let nonsense = |why: String| Some(Refusal::Nonsense(why));
    let mut bytes = [0; REQUEST_BYTES + 1];
    let descriptors = match scm::peek(guest.socket.as_fd(), &mut bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            return Ok(None);
        }
        Ok((REQUEST_BYTES, descriptors)) => descriptors,
        Ok((len @ 1.., _)) => return Err(nonsense(format!("a message of {len} bytes"))),
        _ => return Err(None),
    };
    let mut secret = Secret::default();
    secret.copy_from_slice(&bytes[offset_of!(abi::Request, token)..][..TOKEN_BYTES]);
    if !admits(&secret, guest) {
        return Err(Some(Refusal::NotOurs { pid: guest.pid, uid: guest.uid }));
    }
    if descriptors && !sock::can_receive(guest.socket.as_fd()) {
        return Err(nonsense("no descriptor is free for its own".to_owned()));
    }
    if descriptors && closer::received_wait() {
        return Err(nonsense("too many descriptors to close".to_owned()));
    }
    let mut fds = Vec::new();
    let received = scm::recv_fds(guest.socket.as_fd(), &mut bytes, &mut fds);
    let sent = fds.iter().map(|fd| fd.try_clone().map(Foreign::received)).collect::<io::Result<Vec<_>>>();
    // The close of a socket flushes nothing; with its copy above it does nothing at all.
    let sent = match (received, sent) {
        (Ok(_), Ok(sent)) if fds.len() <= 1 && fds.iter().all(|fd| sock::is_socket(fd.as_fd())) => sent,
        (_, sent) => {
            fds.into_iter().map(Foreign::received).for_each(drop);
            let why = sent
                .err()
                .map_or_else(|| "a request with other descriptors than a socket".to_owned(), |e| e.to_string());
            return Err(nonsense(why));
        }
    };
    let at = offset_of!(abi::Request, pid);
    let named = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    match parse(&bytes[..REQUEST_BYTES], fds) {
        Ok(kind) => Ok(Some(AttachRequest { kind, pid: guest.pid, named, uid: guest.uid, secret, sent })),
        Err(why) => Err(nonsense(why)),
    }
}
