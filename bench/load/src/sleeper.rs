//! A server that does one thing at a time and accepts as if it could do more: a thread takes every connection at once,
//! another serves them one after the other. So do gunicorn's gthread workers, Puma, and servers with an event loop.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::serve::listen;

pub fn serve(port: Option<u16>) -> io::Result<()> {
    let listener = TcpListener::from(listen(port, false)?);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for stream in receiver {
            // A client that has left, or is none, is nobody's loss.
            let _ = answer(stream);
        }
    });
    loop {
        if let Ok((stream, _)) = listener.accept()
            && sender.send(stream).is_err()
        {
            return Err(io::Error::other("the thread that serves has ended"));
        }
    }
}

/// Takes as long as the request says, and answers with the nanoseconds that it really took.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let begin = Instant::now();
    let mut buffer = [0; 1024];
    let length = stream.read(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let microseconds = text.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse().ok());
    thread::sleep(Duration::from_micros(microseconds.unwrap_or(0)));
    let took = begin.elapsed().as_nanos().to_string();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{took}", took.len())
}
