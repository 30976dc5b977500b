//! Behind another balancer: the PROXY protocol.

mod corners;
mod direct;
mod header;
mod lives;
mod senders;
mod sending;
mod servers;
mod travels;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::{read_all, seconds};

/// What the servers' answers are to a client of these addresses: as text in the forms that tests compare.
pub const CLIENT: &str = "192.0.2.7";
pub const DESTINATION: &str = "203.0.113.1";

/// Version 1, from port 56324 to 443.
pub fn v1(client: &str, destination: &str) -> Vec<u8> {
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    format!("PROXY {family} {client} {destination} 56324 443\r\n").into_bytes()
}

/// Version 2, from port 56324 to 443, with these bytes behind the addresses.
pub fn v2(client: &str, destination: &str, attachments: &[u8]) -> Vec<u8> {
    let octets = |text: &str| match text.parse().unwrap() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let family = if client.contains(':') { 0x21 } else { 0x11 };
    let ports = [56324_u16.to_be_bytes(), 443_u16.to_be_bytes()].concat();
    let rest = [&octets(client)[..], &octets(destination), &ports, attachments].concat();
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], &[family], &len, &rest].concat()
}

pub fn connect(port: u16) -> TcpStream {
    connect_to("127.0.0.1", port)
}

pub fn connect_to(host: &str, port: u16) -> TcpStream {
    let stream = TcpStream::connect((host, port)).unwrap();
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A GET of a path behind these bytes, in one write; the body.
pub fn ask(port: u16, header: &[u8], path: &str) -> io::Result<String> {
    let mut stream = connect(port);
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(&[header, request.as_bytes()].concat())?;
    body(&mut stream)
}

pub fn body(stream: &mut impl Read) -> io::Result<String> {
    let answer = String::from_utf8_lossy(&read_all(stream)?).into_owned();
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("cut answer: {answer:?}")))?;
    Ok(body.to_owned())
}

pub fn own(stream: &TcpStream) -> SocketAddr {
    stream.local_addr().unwrap()
}
