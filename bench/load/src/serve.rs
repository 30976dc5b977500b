//! The smallest server: accept, read, answer, close. It shows what dispatching alone costs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{Domain, Socket, Type};

const LISTENER: Token = Token(usize::MAX);
const CLOSING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const KEEPING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Listens on a port, or on PORT of the environment.
pub fn listen(port: Option<u16>, reuse_port: bool) -> io::Result<Socket> {
    let told = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    let port = port.or(told).ok_or_else(|| io::Error::other("no --port and no PORT"))?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    Ok(socket)
}

pub fn serve(port: Option<u16>, reuse_port: bool, keep: bool) -> io::Result<()> {
    let socket = listen(port, reuse_port)?;
    socket.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(socket.into());
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut open: Slab<TcpStream> = Slab::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => take(&poll, &mut open, stream, keep)?,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        // A client that is gone already.
                        Err(_) => {}
                    }
                }
                continue;
            }
            let Token(key) = event.token();
            if let Some(stream) = open.get_mut(key)
                && !answer(stream, keep)
            {
                open.remove(key);
            }
        }
    }
}

/// Mostly the request is there already; otherwise it is waited for.
fn take(poll: &Poll, open: &mut Slab<TcpStream>, mut stream: TcpStream, keep: bool) -> io::Result<()> {
    if answer(&mut stream, keep) {
        let entry = open.vacant_entry();
        poll.registry().register(&mut stream, Token(entry.key()), Interest::READABLE)?;
        entry.insert(stream);
    }
    Ok(())
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, keep: bool) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) if keep => {
                if stream.write(KEEPING).is_err() {
                    return false;
                }
            }
            Ok(_) => {
                let _ = stream.write(CLOSING);
                return false;
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}
