//! Requests and replies of the attach socket as bytes.

use std::mem::offset_of;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::attach::{AttachReply, Ended, Moved, RequestKind};
use crate::abi::attach::{
    self as abi, ADDRESS_BYTES, BACK, LATER, LISTENER, LOG, OPTION_BYTES, PASS, REPLY_BYTES, SHARED, STATUS,
    SocketOption, TRANSLATIONS, VALUE, VERSION, YOURSELF, op,
};

/// Parses a request.
///
/// # Errors
/// Why it is malformed.
pub(super) fn parse(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Result<RequestKind, String> {
    let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let version = short(offset_of!(abi::Request, version));
    if version != VERSION {
        return Err(format!("version {version}"));
    }
    let at = offset_of!(abi::Request, number);
    let number = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let address = &bytes[offset_of!(abi::Request, address)..][..ADDRESS_BYTES];
    Ok(match (short(offset_of!(abi::Request, op)), fds.pop()) {
        (op::BIND, Some(socket)) => RequestKind::Bind(socket, decode(address).ok_or("an address of no family")?),
        (op::BOUND, socket) => {
            RequestKind::Bound(socket.ok_or(number as i32), decode(address).ok_or("an address of no family")?)
        }
        (op::LISTEN, None) => RequestKind::Listen(number),
        (op::UNLISTEN, None) => RequestKind::Unlisten(number, Ended::ByClose),
        (op::SHUT, None) => RequestKind::Unlisten(number, Ended::ByShutdown),
        (op::ADOPT, None) => RequestKind::Adopt(number),
        (op::LEASE, None) => RequestKind::Lease,
        (op::SET_OPTION, None) => RequestKind::SetOption(number, option(address).ok_or("an option")?),
        (op::GET_OPTION, None) => RequestKind::GetOption(number, option(address).ok_or("an option")?),
        (op::GIVE_BACK, None) => RequestKind::GiveBack(number),
        (op::MOVES, None) => RequestKind::Moves,
        (op::MOVE, Some(socket)) => {
            let translated = address.first() == Some(&abi::TRANSLATED);
            RequestKind::Move(Moved { listener: number, socket, translated })
        }
        (op::LOG, None) => RequestKind::Log,
        (op::TRANSLATIONS, None) => RequestKind::Translations,
        (op::RECOGNIZE, Some(socket)) => RequestKind::Recognize(socket),
        (op::CONNECTS, None) => RequestKind::Connects(number, decode(address).ok_or("an address of no family")?),
        (what, _) => return Err(format!("request {what}")),
    })
}

fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => Some(SocketAddr::from((<[u8; 4]>::try_from(&bytes[4..8]).ok()?, port))),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?);
            // The kernel forgets the scope of any other address.
            let scoped = ip.is_unicast_link_local() || ip.is_multicast();
            let scope = if scoped { u32::from_ne_bytes(bytes[24..28].try_into().ok()?) } else { 0 };
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

fn option(bytes: &[u8]) -> Option<SocketOption> {
    let word = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = u32::try_from(word(8)?).ok().filter(|&len| len as usize <= OPTION_BYTES)?;
    Some(SocketOption { level: word(0)?, name: word(4)?, len, value: bytes.get(12..)?.try_into().ok()? })
}

/// A reply's bytes, and the descriptors that go with them.
pub(super) fn encode(reply: &AttachReply) -> ([u8; REPLY_BYTES], Vec<BorrowedFd<'_>>) {
    let mut bytes = [0; REPLY_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let at = offset_of!(abi::Reply, address);
    let (kind, number, fds) = match reply {
        AttachReply::Errno(errno) => (STATUS, *errno as u32, Vec::new()),
        // It is not sent.
        AttachReply::Nothing => (STATUS, 0, Vec::new()),
        AttachReply::Pass => (PASS, 0, Vec::new()),
        AttachReply::Yourself => (YOURSELF, 0, Vec::new()),
        AttachReply::Later => (LATER, 0, Vec::new()),
        AttachReply::Shared { listener, address, queue, page, keep, bell } => {
            put_address(&mut put, at, address);
            let fds = [queue, page, keep].into_iter().chain(bell).map(AsFd::as_fd).collect();
            (SHARED, *listener as u32, fds)
        }
        AttachReply::Listener(listener, socket, page) => {
            (LISTENER, *listener as u32, vec![socket.as_fd(), page.as_fd()])
        }
        AttachReply::Log(file, bell) => (LOG, 0, vec![file.as_fd(), bell.as_fd()]),
        AttachReply::Translations(file) => (TRANSLATIONS, 0, vec![file.as_fd()]),
        AttachReply::Back(socket) => (BACK, 0, vec![socket.as_fd()]),
        AttachReply::Value(option) => {
            put(at, &option.level.to_ne_bytes());
            put(at + 4, &option.name.to_ne_bytes());
            put(at + 8, &option.len.to_ne_bytes());
            put(at + 12, &option.value);
            (VALUE, 0, Vec::new())
        }
    };
    put(offset_of!(abi::Reply, version), &VERSION.to_ne_bytes());
    put(offset_of!(abi::Reply, kind), &kind.to_ne_bytes());
    put(offset_of!(abi::Reply, number), &number.to_ne_bytes());
    (bytes, fds)
}

fn put_address(put: &mut impl FnMut(usize, &[u8]), at: usize, address: &SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            put(at, &(libc::AF_INET as u16).to_ne_bytes());
            put(at + 2, &v4.port().to_be_bytes());
            put(at + 4, &v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            put(at, &(libc::AF_INET6 as u16).to_ne_bytes());
            put(at + 2, &v6.port().to_be_bytes());
            put(at + 8, &v6.ip().octets());
            put(at + 24, &v6.scope_id().to_ne_bytes());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(what: u16, address: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<abi::Request>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(abi::Request, version), &VERSION.to_ne_bytes());
        put(offset_of!(abi::Request, op), &what.to_ne_bytes());
        put(offset_of!(abi::Request, address), address);
        bytes
    }

    fn bound(address: SocketAddr) -> SocketAddr {
        let mut bytes = [0; ADDRESS_BYTES];
        put_address(&mut |at, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value), 0, &address);
        let RequestKind::Bound(Err(0), address) = parse(&request(op::BOUND, &bytes), Vec::new()).unwrap() else {
            panic!()
        };
        address
    }

    #[test]
    fn an_address_keeps_a_scope_where_the_kernel_does() {
        for same in ["127.0.0.1:80", "[::1]:80", "[fe80::1%3]:80", "[ff02::1%3]:80"] {
            let address: SocketAddr = same.parse().unwrap();
            assert_eq!(bound(address), address);
        }
        assert_eq!(bound("[::1%3]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }

    #[test]
    fn a_request_without_its_descriptor_or_of_another_version_is_refused() {
        let address = [2, 0, 0, 80];
        assert!(parse(&request(op::BIND, &address), Vec::new()).is_err());
        assert!(parse(&request(op::RECOGNIZE, &address), Vec::new()).is_err());
        assert!(parse(&request(99, &address), Vec::new()).is_err());
        let mut other = request(op::LISTEN, &address);
        assert!(matches!(parse(&other, Vec::new()), Ok(RequestKind::Listen(0))));
        other[offset_of!(abi::Request, version)] ^= 1;
        assert!(parse(&other, Vec::new()).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(parse(&request(op::LISTEN, &address), vec![file.into()]).is_err());
    }
}
