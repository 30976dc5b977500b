//! The corners of the PROXY protocol's specification: the shortest and the longest headers, split anywhere, with data behind them.
//! Mostly waits: tests/run runs it beside others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use super::{CLIENT, DESTINATION, body, connect, own, v2};
use crate::support::direct::start_with;
use crate::support::{Daemon, Upstream, eventually, free_port, install_dir, read_all, seconds, write_file};

const LONGEST: &str = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

const NODE: &str = "
require('http').createServer((q, a) => a.end(q.socket.remoteAddress + ' ' + q.socket.remotePort)).listen(process.argv[2], '::');
";

fn node() -> (Daemon, u16, tempfile::TempDir) {
    let (dir, port) = (install_dir(), free_port());
    let script = write_file(dir.path(), "node.js", NODE);
    let command = ["node", script.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    (start_with(port, "2", &["--proxy-from", "127.0.0.1"], &command), port, dir)
}

fn intake(daemon: &Daemon) -> Value {
    daemon.ls()["services"][0]["intake"].clone()
}

/// Version 2 of any command and family.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &len, rest].concat()
}

fn attachment(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

/// With a CRC32C between other attachments, and a bit of it turned.
fn with_checksum(turned: u8) -> Vec<u8> {
    let more = [attachment(0x02, b"a.example"), attachment(0x03, &[0; 4]), attachment(0x04, &[0; 5])];
    let mut header = v2(CLIENT, DESTINATION, &more.concat());
    let sum = crc32c(&header).to_be_bytes();
    let at = header.len() - 8 - 4;
    header[at..at + 4].copy_from_slice(&sum);
    header[at] ^= turned;
    header
}

/// By the definition: the polynomial 0x1edc6f41, bits in reverse.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// Valid headers, their lengths, and the client that they name.
fn valid() -> Vec<(Vec<u8>, usize, Option<String>)> {
    let told = |ip: &str, port: u16| Some(format!("{ip} {port}"));
    let known = || told(&format!("::ffff:{CLIENT}"), 56_324);
    let line = |text: String| format!("PROXY {text}\r\n").into_bytes();
    let longest = v2(CLIENT, DESTINATION, &attachment(0x04, &[0; 4096 - 16 - 12 - 3]));
    vec![
        (line("UNKNOWN".into()), 15, None),
        (line("TCP4 255.255.255.255 255.255.255.255 65535 65535".into()), 56, told("::ffff:255.255.255.255", 65_535)),
        (line(format!("TCP6 {LONGEST} {LONGEST} 65535 65535")), 104, told(LONGEST, 65_535)),
        (line(format!("UNKNOWN {LONGEST} {LONGEST} 65535 65535")), 107, None),
        (binary(0x20, 0, &[]), 16, None),
        (binary(0x20, 0xff, &[7; 300]), 316, None),
        (binary(0x21, 0, &[]), 16, None),
        (binary(0x21, 0x31, &[1; 216]), 232, None),
        (with_checksum(0), 28 + 12 + 7 + 8, known()),
        (longest, 4096, known()),
    ]
}

#[test]
fn the_longest_and_the_shortest_headers_split_at_each_byte() {
    let (daemon, port, _dir) = node();
    let mut count = 0;
    for (header, len, client) in valid() {
        assert_eq!(header.len(), len);
        let parts = (1..len).step_by(1.max(len / 100));
        let mut clients: Vec<_> = parts.map(|at| (connect(port), at)).collect();
        for (stream, at) in &mut clients {
            stream.write_all(&header[..*at]).unwrap();
        }
        eventually("all wait", seconds(10), || (intake(&daemon)["waiting"] == clients.len()).then_some(()));
        for (stream, at) in &mut clients {
            stream.write_all(&[&header[*at..], REQUEST].concat()).unwrap();
        }
        for (stream, at) in &mut clients {
            let expected = client.clone().unwrap_or_else(|| format!("::ffff:127.0.0.1 {}", own(stream).port()));
            let said = body(stream).unwrap_or_else(|error| format!("{error}\n{}", daemon.log()));
            assert_eq!(said, expected, "{len} bytes, split after {at}");
        }
        count += clients.len();
    }
    let intake = intake(&daemon);
    assert_eq!((&intake["waiting"], &intake["proxy_headers"]), (&0.into(), &count.into()), "{intake}");
}

/// How a connection ends after these bytes.
fn end(port: u16, bytes: &[u8]) -> Option<ErrorKind> {
    let mut stream: TcpStream = connect(port);
    // It may be reset meanwhile.
    let _ = stream.write_all(bytes);
    stream.read_to_end(&mut Vec::new()).err().map(|error| error.kind())
}

#[test]
fn a_byte_more_or_a_wrong_checksum_is_reset_at_once() {
    let (daemon, port, _dir) = node();
    let begin = std::time::Instant::now();
    let too_long = format!("PROXY UNKNOWN {LONGEST} {LONGEST} 65535 65535 \r\n").into_bytes();
    assert_eq!(too_long.len(), 108);
    let wrong = [
        too_long.clone(),
        // Its end is not there, and cannot come.
        too_long[..107].to_vec(),
        binary(0x21, 0x11, &vec![0; 65_535])[..16].to_vec(),
        binary(0x20, 0, &vec![0; 65_535]),
        binary(0x21, 0x11, &vec![0; 4096 - 15])[..16].to_vec(),
        with_checksum(1),
        // Shorter than its addresses; attachments that end too early.
        binary(0x21, 0x11, &[0; 11]),
        v2(CLIENT, DESTINATION, &[4, 0]),
    ];
    for bytes in &wrong {
        assert_eq!(end(port, bytes), Some(ErrorKind::ConnectionReset), "{} bytes: {bytes:.40?}", bytes.len());
    }
    let took = begin.elapsed();
    let refused = intake(&daemon)["refused"].clone();
    assert_eq!((&refused["proxy-invalid"], &refused["proxy-timeout"]), (&wrong.len().into(), &0.into()), "{took:?}");
}

#[test]
fn every_byte_behind_the_header_is_the_servers() {
    let upstream = Upstream::echo();
    let daemon = Daemon::start(&["-i", "1", "--proxy-from", "127.0.0.1", "-u", &upstream.arg()]);
    daemon.wait_online(1);
    let much: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    for header in valid().into_iter().map(|(header, ..)| header) {
        // Another header is data, too.
        for data in [&much[..], &header, b"\r\n", b""] {
            let mut stream = connect(daemon.port);
            let mut writer = stream.try_clone().unwrap();
            let sent = [&header[..], data].concat();
            let writing = std::thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let came = read_all(&mut stream).unwrap();
            writing.join().unwrap();
            assert!(came == data, "{} of {} bytes behind a header of {}", came.len(), data.len(), header.len());
        }
    }
}
