//! One request on a connection of its own, by a blocking socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What has no answer by then is an error.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects and asks; the connection, and the text of the answer's body.
pub fn ask(target: SocketAddr, path: &str, keep: bool) -> io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let connection = if keep { "keep-alive" } else { "close" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        let body = text.split_once("\r\n\r\n").and_then(|(head, body)| whole(head, body, length == 0));
        match body {
            Some(_) if !text.starts_with("HTTP/1.1 200") && !text.starts_with("HTTP/1.0 200") => {
                return Err(io::Error::other(text.into_owned()));
            }
            Some(body) => return Ok((stream, body)),
            None if length == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
}

/// The body once it is there: as long as announced, one chunk, or up to the end.
fn whole(head: &str, body: &str, is_end: bool) -> Option<String> {
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    if let Some(length) = length {
        return body.get(..length).map(str::to_owned);
    }
    if head.contains("transfer-encoding: chunked") {
        let chunk = body.strip_suffix("0\r\n\r\n")?;
        return chunk.split("\r\n").nth(1).map(str::to_owned);
    }
    is_end.then(|| body.to_owned())
}
