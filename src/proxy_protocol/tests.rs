use proptest::prelude::*;

use super::*;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

fn told(client: &str, destination: &str) -> Option<Pair> {
    Some(Pair { client: client.parse().unwrap(), destination: destination.parse().unwrap() })
}

/// A header of version 2.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, rest].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

/// 192.0.2.7:56324 to 203.0.113.1:443.
const V4: [u8; 12] = [192, 0, 2, 7, 203, 0, 113, 1, 0xdc, 0x04, 1, 0xbb];

fn v6_addresses() -> Vec<u8> {
    let (client, destination): (Ipv6Addr, Ipv6Addr) = ("2001:db8::7".parse().unwrap(), "2001:db8::1".parse().unwrap());
    [&client.octets()[..], &destination.octets(), &[0xdc, 0x04, 1, 0xbb]].concat()
}

/// With a right checksum, between other attachments.
fn with_checksum() -> Vec<u8> {
    let rest = [&V4[..], &tlv(0x04, &[0; 9]), &tlv(0x03, &[0; 4]), &tlv(0x02, b"example.org")].concat();
    let mut header = v2(0x21, 0x11, &rest);
    let sum = crc32c::crc32c(&header).to_be_bytes();
    let at = FIXED + 12 + 12 + 3;
    header[at..at + 4].copy_from_slice(&sum);
    header
}

/// Valid headers with what they say.
fn valid() -> Vec<(Vec<u8>, Option<Pair>)> {
    let four = told("192.0.2.7:56324", "203.0.113.1:443");
    let six = told("[2001:db8::7]:56324", "[2001:db8::1]:443");
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let ssl = [&[1, 0, 0, 0, 0][..], &tlv(0x21, b"TLSv1.3"), &tlv(0x22, b"client.example.org")].concat();
    vec![
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN anything 1 2 \xff\r\n".to_vec(), None),
        (format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n").into_bytes(), None),
        (b"PROXY TCP4 192.0.2.7 203.0.113.1 56324 443\r\n".to_vec(), four),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 1\r\n".to_vec(), told("1.2.3.4:0", "5.6.7.8:1")),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(),
            told("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n".to_vec(), six),
        (
            format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n").into_bytes(),
            told(&format!("[{longest}]:65535"), &format!("[{longest}]:65535")),
        ),
        (v2(0x21, 0x11, &V4), four),
        (v2(0x21, 0x21, &v6_addresses()), six),
        (v2(0x21, 0x11, &[&V4[..], &tlv(0x20, &ssl), &tlv(0xea, &[1, 2])].concat()), four),
        (v2(0x21, 0x11, &[&V4[..], &tlv(0x04, &vec![0; MAX_BYTES - FIXED - 12 - 3])].concat()), four),
        (with_checksum(), four),
        (v2(0x20, 0, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x20, 0xff, &[7; 300]), None),
        (v2(0x21, 0, &[]), None),
        (v2(0x21, 0, &[9; 100]), None),
        (v2(0x21, 0x10, &V4), None),
        (v2(0x21, 0x31, &[1; UNIX_PAIR]), None),
        (v2(0x21, 0x12, &V4), None),
    ]
}

#[test]
fn the_lengths_of_the_specification_occur() {
    let lengths: Vec<usize> = valid().iter().map(|(header, _)| header.len()).collect();
    for len in [15, 56, 104, MAX_LINE - 1, MAX_BYTES] {
        assert!(lengths.contains(&len) || len == MAX_LINE - 1, "{len}: {lengths:?}");
    }
}

#[test]
fn valid_headers_split_at_each_byte_and_with_data_behind() {
    for (header, pair) in valid() {
        for len in 0..header.len() {
            assert_eq!(parse(&header[..len]), Ok(None), "{len} of {}", header.escape_ascii());
        }
        let whole = Ok(Some(Header { len: header.len(), pair }));
        assert_eq!(parse(&header), whole, "{}", header.escape_ascii());
        for data in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\r\n", b"\0", &[7; 5000], &header] {
            assert_eq!(parse(&[&header, data].concat()), whole, "{}", header.escape_ascii());
        }
    }
}

#[test]
fn a_line_has_107_bytes_at_most() {
    let line = |len: usize| [b"PROXY UNKNOWN ", vec![b'x'; len - 16].as_slice(), b"\r\n"].concat();
    assert_eq!(parse(&line(107)), Ok(Some(Header { len: 107, pair: None })));
    assert_eq!(parse(&line(108)), Err(Invalid::TooLong));
    assert_eq!(parse(&line(107)[..106]), Ok(None));
    assert_eq!(parse(&[b'x'; 200]), Err(Invalid::NoHeader));
    assert_eq!(parse(&[b"PROXY TCP4 ", &[b'1'; 200][..]].concat()), Err(Invalid::TooLong));
}

#[test]
fn what_is_too_long_is_seen_before_it_is_there() {
    for len in [MAX_BYTES - FIXED + 1, 65_535] {
        let header = v2(0x21, 0x11, &vec![0; len]);
        assert_eq!(parse(&header[..FIXED]), Err(Invalid::TooLong), "{len}");
        assert_eq!(parse(&v2(0x20, 0, &vec![0; len])[..FIXED]), Err(Invalid::TooLong), "{len}");
    }
}

#[test]
fn wrong_lines() {
    for line in [
        "PROXY TCP4 192.0.2.7 203.0.113.1 56324 443 \r\n",
        "PROXY TCP4 192.0.2.7  203.0.113.1 56324 443\r\n",
        "PROXY  TCP4 192.0.2.7 203.0.113.1 56324 443\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 56324\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 56324 443 1\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 56324 65536\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 -1 443\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 +1 443\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 01 443\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1  443\r\n",
        "PROXY TCP4 192.0.2.07 203.0.113.1 1 443\r\n",
        "PROXY TCP4 192.0.2 203.0.113.1 1 443\r\n",
        "PROXY TCP4 2001:db8::7 203.0.113.1 1 443\r\n",
        "PROXY TCP6 192.0.2.7 203.0.113.1 1 443\r\n",
        "PROXY TCP6 fe80::1%1 2001:db8::1 1 443\r\n",
        "PROXY TCP6 [2001:db8::7] 2001:db8::1 1 443\r\n",
        "PROXY UDP4 192.0.2.7 203.0.113.1 1 443\r\n",
        "PROXY tcp4 192.0.2.7 203.0.113.1 1 443\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 192.0.2.7\t203.0.113.1 1 443\r\n",
        "PROXY TCP4 192.0.2.7 203.0.113.1 1 443\n\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(Invalid::Malformed), "{line:?}");
    }
    for first in ["GET / HTTP/1.1\r\n", "PROXX", "proxy TCP4", "\r\n\r\nX", "PROXY\r\n", "\0", "Q"] {
        assert_eq!(parse(first.as_bytes()), Err(Invalid::NoHeader), "{first:?}");
    }
}

#[test]
fn wrong_binary_headers() {
    let mut checksum = with_checksum();
    *checksum.last_mut().unwrap() ^= 1;
    assert_eq!(parse(&checksum), Err(Invalid::Checksum));
    let mut checksum = with_checksum();
    checksum[FIXED + 1] ^= 1;
    assert_eq!(parse(&checksum), Err(Invalid::Checksum));
    let short = |family, len| v2(0x21, family, &vec![0; len]);
    for header in [
        v2(0x11, 0x11, &V4),
        v2(0x22, 0x11, &V4),
        v2(0x2f, 0x11, &V4),
        v2(0x21, 0x41, &V4),
        v2(0x21, 0x13, &V4),
        short(0x11, 11),
        short(0x12, 11),
        short(0x21, 35),
        short(0x31, UNIX_PAIR - 1),
        // Attachments that end too early.
        v2(0x21, 0x11, &[&V4[..], &[4]].concat()),
        v2(0x21, 0x11, &[&V4[..], &[4, 0]].concat()),
        v2(0x21, 0x11, &[&V4[..], &[4, 0, 1]].concat()),
        v2(0x21, 0x11, &[&V4[..], &[4, 0xff, 0xff, 0]].concat()),
        v2(0x21, 0x11, &[&V4[..], &tlv(0x03, &[0; 3])].concat()),
        v2(0x21, 0x11, &[&V4[..], &tlv(0x03, &[0; 5])].concat()),
    ] {
        assert_eq!(parse(&header), Err(Invalid::Malformed), "{}", header.escape_ascii());
    }
    // The version is judged as soon as it is there.
    assert_eq!(parse(&[&SIGNATURE[..], &[0x30]].concat()), Err(Invalid::Malformed));
}

proptest! {
    /// Once bytes are no header, or have one, no byte behind them changes that; and what is incomplete is shorter than the
    /// longest header.
    #[test]
    fn judgements_are_final(
        at in 0..valid().len(),
        spoilt in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
        behind in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let (mut bytes, _) = valid().swap_remove(at);
        if let Some((place, byte)) = spoilt {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.extend(behind);
        let mut judged = None;
        for len in 0..=bytes.len() {
            let now = parse(&bytes[..len]);
            match judged {
                None if now == Ok(None) => prop_assert!(len < MAX_BYTES),
                None => judged = Some(now),
                Some(before) => prop_assert_eq!(before, now),
            }
            if let Ok(Some(header)) = now {
                prop_assert!(header.len <= len);
            }
        }
    }
}
