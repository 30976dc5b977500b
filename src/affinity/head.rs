//! The key of a connection in its first request's head, HTTP/1. The bytes stay in the socket: a server reads them, too.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use percent_encoding::percent_decode;

use super::{HashOn, digest};

/// A key is looked for in so many bytes.
pub const MAX_BYTES: usize = 16 * 1024;
/// Headers of a request, at most.
const MAX_HEADERS: usize = 128;

/// What HTTP/2 begins with.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A TLS record with a handshake begins with this byte; no request does.
const TLS: u8 = 0x16;

/// Why a connection has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// The request has no such cookie, parameter or header, or an empty one.
    Absent,
    /// The first bytes are no request of HTTP/1.
    NotHttp,
    Tls,
    Http2,
    /// The head has more than [`MAX_BYTES`] bytes or too many headers.
    TooLarge,
    /// The head did not come in time, or not as a whole.
    Incomplete,
    /// No worker has reported the session.
    UnknownSession,
}

impl NoKey {
    pub const ALL: [Self; 7] =
        [Self::Absent, Self::NotHttp, Self::Tls, Self::Http2, Self::TooLarge, Self::Incomplete, Self::UnknownSession];

    /// The reason in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::NotHttp => "not-http",
            Self::Tls => "tls",
            Self::Http2 => "http2",
            Self::TooLarge => "too-large",
            Self::Incomplete => "incomplete",
            Self::UnknownSession => "unknown-session",
        }
    }
}

/// What the first bytes of a connection show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// More bytes are needed; never with [`MAX_BYTES`] of them.
    NeedsMore,
    /// The [`digest`] of the key.
    Key(u64),
    NoKey(NoKey),
}

/// Looks for the key. More bytes behind those of an answer do not change it.
pub fn find(on: &HashOn, bytes: &[u8]) -> Found {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    match bytes.first() {
        None => return Found::NeedsMore,
        Some(&TLS) => return Found::NoKey(NoKey::Tls),
        Some(_) => {}
    }
    if bytes.starts_with(HTTP2) {
        return Found::NoKey(NoKey::Http2);
    }
    if HTTP2.starts_with(bytes) {
        return Found::NeedsMore;
    }
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut headers);
    // The version comes last in the first line.
    if let (Some(target), Some(_), true) = (request.path, request.version, in_target(on)) {
        return key(target_key(on, target).as_deref());
    }
    match parsed {
        Ok(httparse::Status::Complete(_)) => key(header_key(on, request.headers)),
        Ok(httparse::Status::Partial) if bytes.len() < MAX_BYTES => Found::NeedsMore,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Found::NoKey(NoKey::TooLarge),
        Err(_) => Found::NoKey(NoKey::NotHttp),
    }
}

fn key(value: Option<&[u8]>) -> Found {
    value.map_or(Found::NoKey(NoKey::Absent), |value| Found::Key(digest(value)))
}

/// Whether the first line is enough.
fn in_target(on: &HashOn) -> bool {
    matches!(on, HashOn::Query(_) | HashOn::SocketIo)
}

fn target_key<'a>(on: &HashOn, target: &'a str) -> Option<Cow<'a, [u8]>> {
    let (_, query) = target.split_once('?')?;
    match on {
        HashOn::Query(name) => parameter(query, name).map(Cow::Borrowed),
        // Another program's parameter of that name is no session. Its worker reports it as it is, not as clients have to write it.
        HashOn::SocketIo => {
            parameter(query, "transport").and_then(|_| parameter(query, "sid")).map(|sid| percent_decode(sid).into())
        }
        HashOn::Source | HashOn::Cookie(_) | HashOn::Header(_) => None,
    }
}

/// The first value that is not empty. Names and values are compared as they are written.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a [u8]> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(other, _)| *other == name).map(|(_, value)| value.as_bytes());
    values.find(|value| !value.is_empty())
}

fn header_key<'a>(on: &HashOn, headers: &[httparse::Header<'a>]) -> Option<&'a [u8]> {
    let (wanted, cookie_name) = match on {
        HashOn::Header(name) => (name.as_str(), None),
        HashOn::Cookie(name) => ("cookie", Some(name.as_bytes())),
        HashOn::Source | HashOn::Query(_) | HashOn::SocketIo => return None,
    };
    let values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(wanted)).map(|header| header.value);
    let mut values = values.filter_map(|value| match cookie_name {
        Some(name) => cookie(value, name),
        None => Some(value.trim_ascii()),
    });
    values.find(|value| !value.is_empty())
}

/// The first value that is not empty, without quotes around it.
fn cookie<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    header.split(|&byte| byte == b';').find_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        let value = pair[at + 1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        (pair[..at].trim_ascii() == name && !value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "head_tests.rs"]
mod tests;
