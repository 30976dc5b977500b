//! Clients of a service whose workers are replaced one after the other: every request has to be answered.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use socket2::{Domain, Socket, Type};

use super::{Daemon, eventually, seconds};

/// How clients ask.
#[derive(Debug, Clone, Copy)]
pub enum Connections {
    /// One request each, ended by the server.
    Short,
    /// So many requests each, ended by the client.
    KeepAlive(usize),
}

/// Clients, each with an address of its own (for `ip-hash`), that ask until `act` has returned; returns the number of
/// requests that were answered.
#[track_caller]
pub fn served_meanwhile(port: u16, clients: u8, connections: Connections, act: impl FnOnce()) -> usize {
    let (over, served, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (over, served, failed) = (&over, &served, &failed);
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    match ask(port, client, connections) {
                        Ok(count) => drop(served.fetch_add(count, SeqCst)),
                        Err(error) => failed.lock().unwrap().push(error.to_string()),
                    }
                }
            });
        }
        // Also when it fails the clients end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        over.store(true, SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} lost: {:?}", failed.len(), failed.first());
    served.into_inner()
}

/// Waits until so many workers have been recycled.
#[track_caller]
pub fn wait_recycled(daemon: &Daemon, count: u64) {
    eventually(&format!("{count} workers recycled"), seconds(60), || {
        let recycled = &daemon.ls()["services"][0]["recycled"];
        let number = |cause: &str| recycled[cause].as_u64().unwrap();
        (number("age") + number("served") >= count).then_some(())
    });
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// Whether an answer is complete: the bodies of these servers are one line, in one chunk or with a length.
fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
    body.is_some_and(|body| body.ends_with('\n') && (body.ends_with("\r\n\r\n") || !body.ends_with("\r\n")))
}

fn ask(port: u16, client: u8, connections: Connections) -> io::Result<usize> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let from = std::net::SocketAddr::from(([127, 0, 1, 1 + client], 0));
    socket.bind(&from.into())?;
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(seconds(20)))?;
    match connections {
        Connections::Short => {
            let body = super::http_get(&mut stream)?;
            if body.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(1) }
        }
        Connections::KeepAlive(requests) => {
            for request in 0..requests {
                let mut text = Vec::new();
                while !is_whole(&text) {
                    let mut buffer = [0; 2048];
                    let asked = if text.is_empty() { stream.write_all(REQUEST) } else { Ok(()) };
                    match asked.and_then(|()| stream.read(&mut buffer)) {
                        Ok(count @ 1..) => text.extend(&buffer[..count]),
                        // A server may close a connection that is idle, and a client that asks just then asks again on
                        // another one.
                        _ if request > 0 && text.is_empty() => return Ok(request),
                        Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok(requests)
        }
    }
}
