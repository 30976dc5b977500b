//! Clients.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

/// A port that is free now, outside the range from which outgoing connections get theirs.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id() as u16).wrapping_mul(97).wrapping_add(step) % 20_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// Reads to the end.
pub fn read_all(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

/// One request per connection, read to EOF; the body.
pub fn get(port: u16) -> io::Result<String> {
    http_get(&mut TcpStream::connect(("127.0.0.1", port))?)
}

/// A GET on an open connection, which the server is to close; the body.
pub fn http_get(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let answer = String::from_utf8_lossy(&read_all(stream)?).into_owned();
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("cut answer: {answer:?}"))),
    }
}

/// Nobody listens there. (A server that takes a connection and does not answer is something else.)
pub fn refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The other side closes or resets the connection; false if it is still open at the end of the read time-out.
pub fn is_closed(stream: &mut impl Read) -> bool {
    match read_all(stream) {
        Ok(_) => true,
        Err(error) => [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&error.kind()),
    }
}

/// The slot that the demo's responder names.
pub fn slot_of(body: &str) -> usize {
    let rest = body.strip_prefix("hello from slot ").unwrap_or_else(|| panic!("unexpected body {body:?}"));
    rest.split(',').next().unwrap().parse().unwrap()
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Asks until all the answers that are wanted have come, and no others: right after its start a worker may be passed over
/// for a moment on a busy machine.
#[track_caller]
pub fn answers(wanted: &BTreeSet<String>, ask: impl Fn() -> String) {
    let mut seen = BTreeSet::new();
    super::eventually(&format!("{wanted:?}"), super::seconds(5), || {
        let answer = ask();
        assert!(wanted.contains(&answer), "{answer:?} is none of {wanted:?}");
        seen.insert(answer);
        (seen == *wanted).then_some(())
    });
}
