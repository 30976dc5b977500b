//! `--worker-conns`: a limit per worker, and one line for all who wait. `--max-conns`: a limit per service.

mod bell;
mod limit;
mod line;
mod refused;
mod reload;
mod servers;
mod service;

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{App, Daemon, eventually, free_port, install_dir, roundsman, seconds, write_file};

/// Answers after as many milliseconds as the path says, with the most connections that it had at a time, its slot, and how
/// many it answered before. (Node reports a close to the program after it may have accepted the next one; its own count is
/// exact.) It listens on the port in ALSO, too, if there is one.
const SERVER: &str = "let most = 0, answered = 0
const server = require('http').createServer((request, response) => {
  const answer = () => response.end(`${most} ${process.env.ROUNDSMAN_SLOT} ${answered++}`)
  setTimeout(answer, Number(request.url.slice(1)))
})
server.on('connection', () => most = Math.max(most, server._connections))
server.httpAllowHalfOpen = true
server.keepAliveTimeout = 600000
server.listen(process.env.PORT, '127.0.0.1')
const also = process.env.ALSO
if (also) require('net').createServer(client => server.emit('connection', client)).listen(also, '127.0.0.1')";

/// Two workers in Node, unless the options say otherwise.
fn start(options: &[&str]) -> App {
    start_also("", options)
}

/// The same, listening on a second port, too.
fn start_also(also: &str, options: &[&str]) -> App {
    let (dir, port) = (install_dir(), free_port());
    write_file(dir.path(), "app.js", SERVER);
    let mut command = roundsman();
    command.current_dir(dir.path()).env("ALSO", also);
    let listen = format!("127.0.0.1:{port}");
    let mut all = if options.contains(&"-i") { vec![] } else { vec!["-i", "2"] };
    all.extend(["-l", &listen]);
    all.extend(options);
    all.extend(["--", "node", "app.js"]);
    let workers = all.iter().position(|&option| option == "-i").map_or(0, |at| all[at + 1].parse().unwrap());
    App { daemon: Daemon::launch(command, &all, port), port, dir }.online(workers)
}

/// A request that takes so many milliseconds.
fn ask(port: u16, ms: u32) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    // One that is refused may have been reset by now; its answer tells.
    let _ = write!(stream, "GET /{ms} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream
}

/// A request that is not to end by itself, and that the server has read. (Node keeps a connection that was reset before that for
/// as long as its answer takes: httpAllowHalfOpen, without roundsman, too.)
fn occupy(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    write!(stream, "GET /{LONG} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&answer[..read]));
    stream
}

/// A keep-alive connection that has had an answer.
fn keep(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(seconds(30))).unwrap();
    request(&mut stream);
    stream
}

fn request(stream: &mut TcpStream) {
    stream.write_all(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = [0; 512];
    assert!(stream.read(&mut answer).unwrap() > 0);
}

/// Milliseconds for a request that is not to end by itself.
const LONG: u32 = 600_000;

/// The body of the answer.
fn body(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("cut answer: {text:?}")).1.to_owned()
}

/// Clients that wait in the master.
fn held(app: &App) -> u64 {
    app.daemon.ls()["services"][0]["held"].as_u64().unwrap()
}

#[track_caller]
fn wait_held(app: &App, count: u64) {
    eventually(&format!("{count} clients wait"), seconds(20), || (held(app) == count).then_some(()));
}

fn answered(mut stream: TcpStream) -> bool {
    let mut text = String::new();
    stream.read_to_string(&mut text).is_ok() && text.contains("200 OK")
}

/// One worker with room for one, and somebody in it until the returned connection is closed.
fn occupied(options: &[&str]) -> (App, TcpStream) {
    let mut all = vec!["-i", "1", "--worker-conns", "1"];
    all.extend(options);
    let app = start(&all);
    let first = occupy(app.port);
    eventually("it is taken", seconds(10), || (app.daemon.total("connections") == 1).then_some(()));
    (app, first)
}
