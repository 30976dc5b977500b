//! The header that we send to a server behind us.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Pair, V2};

/// Bytes of the longest header that we send: a line of version 1.
pub const MAX_SENT: usize = super::MAX_LINE;

/// `--send-proxy`: a version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Version {
    /// A line of text
    V1,
    /// Binary
    V2,
}

/// Writes the header of a connection into `to` and returns its length in bytes, at most [`MAX_SENT`]; 0 where there is no room.
/// `None`: a client that has no IP address.
pub fn write(version: Version, pair: Option<Pair>, to: &mut [u8]) -> usize {
    match version {
        Version::V1 => {
            let room = to.len();
            let mut rest = &mut *to;
            let written = match pair.map(of_one_family) {
                Some(Pair { client, destination }) => write!(
                    rest,
                    "PROXY {} {} {} {} {}\r\n",
                    if client.is_ipv4() { "TCP4" } else { "TCP6" },
                    client.ip(),
                    destination.ip(),
                    client.port(),
                    destination.port()
                ),
                None => rest.write_all(b"PROXY UNKNOWN\r\n"),
            };
            let left = rest.len();
            if written.is_ok() { room - left } else { 0 }
        }
        Version::V2 => binary(pair.map(of_one_family), to),
    }
}

fn binary(pair: Option<Pair>, to: &mut [u8]) -> usize {
    const PROXY: u8 = 0x21;
    let octets = |address: SocketAddr, to: &mut Vec<u8>| match address.ip() {
        IpAddr::V4(ip) => to.extend(ip.octets()),
        IpAddr::V6(ip) => to.extend(ip.octets()),
    };
    let mut addresses = Vec::with_capacity(36);
    if let Some(Pair { client, destination }) = pair {
        octets(client, &mut addresses);
        octets(destination, &mut addresses);
        addresses.extend(client.port().to_be_bytes());
        addresses.extend(destination.port().to_be_bytes());
    }
    let family = match pair {
        None => 0,
        Some(pair) if pair.client.is_ipv4() => 0x11,
        Some(_) => 0x21,
    };
    let fixed = [PROXY, family, 0, addresses.len() as u8];
    let header = [V2, &fixed, &addresses].concat();
    let Some(place) = to.get_mut(..header.len()) else { return 0 };
    place.copy_from_slice(&header);
    header.len()
}

/// IPv4 where both are that, also in IPv6's form; else both as IPv6.
fn of_one_family(Pair { client, destination }: Pair) -> Pair {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let long = |address: SocketAddr| {
        let ip: Ipv6Addr = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        SocketAddr::new(ip.into(), address.port())
    };
    let (client, destination) = (canonical(client), canonical(destination));
    if client.is_ipv4() == destination.is_ipv4() {
        return Pair { client, destination };
    }
    Pair { client: long(client), destination: long(destination) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Header, parse};
    use super::*;

    fn written(version: Version, pair: Option<Pair>) -> Vec<u8> {
        let mut buffer = [0; MAX_SENT];
        let len = write(version, pair, &mut buffer);
        buffer[..len].to_vec()
    }

    fn pair(client: &str, destination: &str) -> Pair {
        Pair { client: client.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_sent_is_read_as_it_was_meant() {
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        for (client, destination, read) in [
            ("192.0.2.7:56324", "203.0.113.1:443", None),
            ("[2001:db8::7]:1", "[2001:db8::1]:65535", None),
            (longest, longest, None),
            ("[::ffff:192.0.2.7]:5", "[::ffff:203.0.113.1]:443", Some(("192.0.2.7:5", "203.0.113.1:443"))),
            ("192.0.2.7:5", "[2001:db8::1]:443", Some(("[::ffff:192.0.2.7]:5", "[2001:db8::1]:443"))),
        ] {
            let (client_read, destination_read) = read.unwrap_or((client, destination));
            for version in [Version::V1, Version::V2] {
                let bytes = written(version, Some(pair(client, destination)));
                let expected = Header { len: bytes.len(), pair: Some(pair(client_read, destination_read)) };
                assert_eq!(parse(&bytes), Ok(Some(expected)), "{client} {version:?}");
            }
        }
        for version in [Version::V1, Version::V2] {
            let bytes = written(version, None);
            assert_eq!(parse(&bytes), Ok(Some(Header { len: bytes.len(), pair: None })), "{version:?}");
            assert_eq!(write(version, Some(pair(longest, longest)), &mut [0; 20]), 0);
        }
        assert_eq!(
            written(Version::V1, Some(pair("192.0.2.7:56324", "203.0.113.1:443"))),
            b"PROXY TCP4 192.0.2.7 203.0.113.1 56324 443\r\n"
        );
    }
}
