//! The PROXY protocol, versions 1 and 2: the header in which a balancer in front says who its client is.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. Pure: whoever calls peeks at a connection's first bytes and
//! takes exactly as many off as the header has.

pub mod balancers;
pub mod sending;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest header that is accepted, in bytes: version 2 with its attachments.
pub const MAX_BYTES: usize = 4096;

/// The longest line of version 1, with its CR LF.
const MAX_LINE: usize = 107;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2: signature, version and command, family and protocol, length of the rest.
const FIXED: usize = 16;
/// Attachment with a CRC32C of the header.
const CHECKSUM: u8 = 0x03;
/// Bytes of two Unix socket addresses.
const UNIX_PAIR: usize = 216;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes; what follows is the client's.
    pub len: usize,
    /// `None`: the connection's own addresses hold (UNKNOWN, LOCAL, no TCP).
    pub pair: Option<Pair>,
}

/// The two ends of the client's connection to the balancer, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub client: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
}

/// Why bytes are no header, whatever may follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// They begin like none.
    NoHeader,
    Malformed,
    TooLong,
    /// The CRC32C in it is another one's.
    Checksum,
}

/// The header at the beginning of `bytes`; `None`: they may become one.
///
/// # Errors
/// When they never will.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let begins = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, expected)| byte == expected);
    if begins(V2) {
        return if bytes.len() <= V2.len() { Ok(None) } else { binary(bytes) };
    }
    if begins(V1) { line(bytes) } else { Err(Invalid::NoHeader) }
}

/// Version 1: `PROXY TCP4 192.0.2.7 203.0.113.1 56324 443\r\n`.
fn line(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let head = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = head.windows(2).position(|two| two == b"\r\n") else {
        return if head.len() < MAX_LINE { Ok(None) } else { Err(Invalid::TooLong) };
    };
    let len = end + 2;
    let text = &head[V1.len().min(end)..end];
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Ok(Some(Header { len, pair: None }));
    }
    let mut words = std::str::from_utf8(text).map_err(|_| Invalid::Malformed)?.split(' ');
    let mut word = || words.next().ok_or(Invalid::Malformed);
    let (family, client, destination) = (word()?, word()?, word()?);
    let (client_port, destination_port) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() {
        return Err(Invalid::Malformed);
    }
    let (client, destination) = match family {
        "TCP4" => (ip::<Ipv4Addr>(client)?, ip::<Ipv4Addr>(destination)?),
        "TCP6" => (ip::<Ipv6Addr>(client)?, ip::<Ipv6Addr>(destination)?),
        _ => return Err(Invalid::Malformed),
    };
    let (client, destination) = (SocketAddr::new(client, client_port), SocketAddr::new(destination, destination_port));
    Ok(Some(Header { len, pair: Some(Pair { client, destination }) }))
}

fn ip<T: FromStr + Into<IpAddr>>(word: &str) -> Result<IpAddr, Invalid> {
    word.parse::<T>().map(Into::into).map_err(|_| Invalid::Malformed)
}

/// A decimal number without leading zeros.
fn port(word: &str) -> Result<u16, Invalid> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = word == "0" || !word.starts_with('0');
    word.parse().ok().filter(|_| digits && canonical).ok_or(Invalid::Malformed)
}

/// Version 2; at least one byte follows the signature.
fn binary(bytes: &[u8]) -> Result<Option<Header>, Invalid> {
    let is_local = match bytes[V2.len()] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Invalid::Malformed),
    };
    let Some((fixed, _)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let [.., family, high, low] = *fixed;
    let len = FIXED + usize::from(u16::from_be_bytes([high, low]));
    // Whatever a LOCAL header has in it is to be skipped.
    if !is_local && (family >> 4 > 3 || family & 0xf > 2) {
        return Err(Invalid::Malformed);
    }
    if len > MAX_BYTES {
        return Err(Invalid::TooLong);
    }
    let Some(header) = bytes.get(..len) else { return Ok(None) };
    let own = Ok(Some(Header { len, pair: None }));
    if is_local {
        return own;
    }
    let rest = &header[FIXED..];
    let (addresses, pair) = match family {
        0x11 => (12, rest.first_chunk().map(v4)),
        0x21 => (36, rest.first_chunk().map(v6)),
        // Datagrams have no place here; as long as the addresses are whole, they are passed over.
        0x12 => (12, None),
        0x22 => (36, None),
        0x31 | 0x32 => (UNIX_PAIR, None),
        _ => return own,
    };
    let attachments = rest.get(addresses..).ok_or(Invalid::Malformed)?;
    check(header, attachments)?;
    Ok(Some(Header { len, pair }))
}

fn v4(bytes: &[u8; 12]) -> Pair {
    let [a, b, c, d, e, f, g, h, ports @ ..] = *bytes;
    pair([a, b, c, d].into(), [e, f, g, h].into(), ports)
}

fn v6(bytes: &[u8; 36]) -> Pair {
    let at = |from: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[from..from + 16]);
        IpAddr::from(octets)
    };
    pair(at(0), at(16), [bytes[32], bytes[33], bytes[34], bytes[35]])
}

fn pair(client: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> Pair {
    Pair {
        client: SocketAddr::new(client, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    }
}

/// Whether the attachments (type, length, value) at the header's end are whole, and a checksum among them is right.
fn check(header: &[u8], mut attachments: &[u8]) -> Result<(), Invalid> {
    while !attachments.is_empty() {
        let (&[kind, high, low], rest) = attachments.split_first_chunk().ok_or(Invalid::Malformed)?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(len).ok_or(Invalid::Malformed)?;
        if kind == CHECKSUM {
            let expected = u32::from_be_bytes(value.try_into().map_err(|_| Invalid::Malformed)?);
            let (before, after) = (&header[..header.len() - rest.len() - len], rest);
            let sum = [before, &[0; 4], after].into_iter().fold(0, crc32c::crc32c_append);
            if sum != expected {
                return Err(Invalid::Checksum);
            }
        }
        attachments = rest;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tests.rs"]
mod tests;
