//! Requests by a blocking socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What has no answer by then is an error.
pub const TIMEOUT: Duration = Duration::from_secs(10);

pub struct Answer {
    head: String,
    pub body: String,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200") || self.head.starts_with("HTTP/1.0 200")
    }

    /// Whether the server says that it closes the connection.
    pub fn says_close(&self) -> bool {
        self.head.to_ascii_lowercase().contains("connection: close")
    }
}

/// Connects and asks; the connection, and the text of the answer's body.
pub fn ask(target: SocketAddr, path: &str, keep: bool) -> io::Result<(TcpStream, String)> {
    ask_behind("", target, path, keep)
}

/// The same with these bytes in front of the request, in one write.
pub fn ask_behind(header: &str, target: SocketAddr, path: &str, keep: bool) -> io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!("{header}GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n");
    let answer = exchange(&mut stream, request.as_bytes())?;
    if answer.is_ok() { Ok((stream, answer.body)) } else { Err(io::Error::other(answer.head)) }
}

/// Writes a request and reads its answer.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Some(body) = whole(head, body, length == 0)
        {
            return Ok(Answer { head: head.to_owned(), body });
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
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
