//! Which clients are served: by address, by what their source has already, and by whether they say anything.

mod files;
mod matrix;
mod silent;
mod sources;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::{Daemon, free_port, roundsman, seconds};

/// Answers "ok", on both families, and keeps connections open.
const NODE: &str = "const server = require('http').createServer((_, answer) => answer.end('ok'))
server.keepAliveTimeout = 600000
server.listen(process.env.PORT, process.env.ANY)";

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// The server in Node on an address of this host, with these options.
fn start(host: &str, options: &[&str]) -> Daemon {
    let port = free_port();
    let listen = format!("{host}:{port}");
    let all = [&["-l", &listen], options, &["--", "node", "-e", NODE]].concat();
    let mut command = roundsman();
    if options.contains(&"direct") {
        command.env("ANY", host.trim_matches(['[', ']']));
    }
    let daemon = Daemon::launch(command, &all, port);
    daemon.wait_for("listening");
    daemon
}

/// A connection to a port of this machine, from one of its addresses.
fn from(source: &str, port: u16) -> TcpStream {
    let source: IpAddr = source.parse().unwrap();
    let to: IpAddr = if source.is_ipv4() { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
    let socket = Socket::new(Domain::for_address((source, 0).into()), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from((to, port)).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(seconds(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request behind these bytes; the connection stays open if it was answered.
fn ask(mut stream: TcpStream, before: &[u8]) -> Result<TcpStream, ErrorKind> {
    // A reset may be there before the request; what hears of it says so once.
    match stream.write_all(&[before, REQUEST].concat()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ErrorKind::ConnectionReset),
        Err(error) => Err(error.kind()),
        Ok(()) => answered(stream),
    }
}

fn answered(mut stream: TcpStream) -> Result<TcpStream, ErrorKind> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"ok") {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof),
            Ok(n) => answer.extend(&buffer[..n]),
            Err(error) => return Err(error.kind()),
        }
    }
    Ok(stream)
}

#[track_caller]
fn is_reset(what: &str, end: Result<TcpStream, ErrorKind>) {
    assert_eq!(end.err(), Some(ErrorKind::ConnectionReset), "{what}");
}

fn intake(daemon: &Daemon) -> Value {
    daemon.ls()["services"][0]["intake"].clone()
}

fn refused(daemon: &Daemon, reason: &str) -> u64 {
    intake(daemon)["refused"][reason].as_u64().unwrap()
}
