//! A server that does one thing at a time and accepts as if it could do more: a thread takes every connection at once,
//! another serves them one after the other. So do gunicorn's gthread workers, Puma, and servers with an event loop.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::clock;
use super::serve::listen;

pub fn serve(port: Option<u16>) -> io::Result<()> {
    let listener = TcpListener::from(listen(port, false)?);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut free = clock::now();
        for (stream, accepted) in receiver {
            // A client that has left, or is none, is nobody's loss.
            let _ = answer(stream, free.max(accepted));
            free = clock::now();
        }
    });
    loop {
        if let Ok((stream, _)) = listener.accept()
            && sender.send((stream, clock::now())).is_err()
        {
            return Err(io::Error::other("the thread that serves has ended"));
        }
    }
}

/// Takes as long as the request says, and answers with the time at which it began, when the server had this connection and no
/// other one before it (so that the wake-up of its own thread is its own time), and the nanoseconds that it really took.
fn answer(mut stream: TcpStream, begin: u64) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let length = stream.read(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let microseconds = text.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse().ok());
    thread::sleep(Duration::from_micros(microseconds.unwrap_or(0)));
    let times = format!("{begin} {}", clock::now() - begin);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{times}", times.len())
}
