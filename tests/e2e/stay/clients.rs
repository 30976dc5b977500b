//! Clients that keep their connection, post on it and never repeat a request.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::support::{millis, seconds};

/// What clients noticed.
#[derive(Debug, Default, Clone)]
pub struct Noticed {
    pub answered: usize,
    /// Requests without an answer, and why.
    pub lost: Vec<String>,
    pub hung: usize,
    /// Connections made.
    pub connections: usize,
}

const BODY: &[u8] = &[b'x'; 100];

/// One request's answer: head and body, by its length or chunks.
pub fn answer(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let body = &got[end + 4..];
            let whole = match length {
                Some(length) => body.len() >= length,
                None => head.contains("chunked") && body.ends_with(b"0\r\n\r\n"),
            };
            if whole {
                return Ok(got);
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => got.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Whether the server has ended it already: nothing is lost then.
fn has_ended(stream: &TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    Ok(matches!(seen, Ok(0)))
}

fn client(port: u16, over: &AtomicBool, noticed: &Mutex<Noticed>) {
    let mut kept: Option<TcpStream> = None;
    while !over.load(SeqCst) {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                noticed.lock().unwrap().connections += 1;
                let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(seconds(20))).unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            }
        };
        if has_ended(&stream).unwrap() {
            continue;
        }
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", BODY.len());
        let sent = stream.write_all(&[head.as_bytes(), BODY].concat());
        match sent.and_then(|()| answer(&mut stream)) {
            Ok(answer) => {
                noticed.lock().unwrap().answered += 1;
                if !String::from_utf8_lossy(&answer).to_lowercase().contains("connection: close") {
                    kept = Some(stream);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                noticed.lock().unwrap().hung += 1;
            }
            Err(error) => noticed.lock().unwrap().lost.push(error.to_string()),
        }
        std::thread::sleep(millis(20));
    }
}

/// What 50 clients notice while `act` runs, which begins once all are connected.
pub fn meanwhile(port: u16, act: impl FnOnce()) -> Noticed {
    let (over, noticed) = (AtomicBool::new(false), Mutex::new(Noticed::default()));
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| client(port, &over, &noticed));
        }
        crate::support::eventually("all clients are served", seconds(20), || {
            (noticed.lock().unwrap().answered >= 100).then_some(())
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        over.store(true, SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    noticed.into_inner().unwrap()
}
