//! How workers in Node begin and end: readiness by message, stop messages, connections that are idle or busy.
//! Mostly waits: tests/run runs it beside others.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{App, eventually, get, read_all, seconds};

#[test]
fn ready_is_said_by_message_and_until_then_a_worker_gets_nothing() {
    let source = "
const http = require('http');
http.createServer((request, response) => response.end(`ready ${global.ready}`)).listen(process.env.PORT_OF_APP, () => {
  setTimeout(() => { global.ready = true; process.send('ready') }, 800);
});";
    let mut app = App::start("node", "app.js", source, &["-i", "1", "--wait-ready", "--min-uptime", "100ms"]);
    app.daemon.wait_for("server started");
    eventually("it listens", seconds(10), || TcpStream::connect(("127.0.0.1", app.port)).ok());
    assert_eq!(get(app.port).unwrap(), "ready true", "clients wait for a worker that is ready");
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let reload = scope.spawn(|| app.reload());
            while !reload.is_finished() {
                assert_eq!(get(app.port).unwrap(), "ready true");
            }
        });
    }
    let (_, said) = app.ask(&["messages"]);
    assert_eq!(said, "", "it is no message for others");
    assert_eq!(app.daemon.stop().code(), 0);
}

#[test]
fn a_stop_message_comes_before_the_signal() {
    let source = "
const server = require('http').createServer((request, response) => setTimeout(() => response.end('whole'), 300));
server.listen(process.env.PORT_OF_APP);
process.on('SIGTERM', () => { console.log('SIGTERM came'); process.exit(3) });
process.on('message', message => {
  if (message === 'shutdown') { console.log('shutdown came'); server.close(() => { console.log('closed'); process.exit(0) }) }
});";
    let mut app = App::start("node", "app.js", source, &["--stop-message", "shutdown"]).online(2);
    assert_eq!(get(app.port).unwrap(), "whole");
    assert_eq!(app.daemon.stop().code(), 0);
    let out = app.out();
    assert!(out.matches("shutdown came").count() == 2 && out.matches("closed").count() == 2, "{out}");
    assert!(!out.contains("SIGTERM came"), "{out}");
    // One that does not listen to it gets the signal all the same, in time.
    let deaf = source.replace("'shutdown')", "'something else')") + "\nsetInterval(() => {}, 1000);";
    let mut app = App::start("node", "app.js", &deaf, &["--stop-message", "shutdown"]).online(2);
    let begin = std::time::Instant::now();
    assert_eq!(app.daemon.stop().code(), 0);
    assert!(begin.elapsed() < seconds(6), "{:?}", begin.elapsed());
    assert_eq!(app.out().matches("SIGTERM came").count(), 2, "{}", app.out());
}

#[test]
fn idle_keep_alive_connections_end_at_once_in_a_reload_and_busy_ones_are_not_cut() {
    let source = "
require('http').createServer((request, response) => setTimeout(() => response.end(`pid ${process.pid}`), request.url === '/slow' ? 1500 : 0))
  .listen(process.env.PORT_OF_APP);";
    let app =
        App::start("node", "app.js", source, &["-i", "1", "--min-uptime", "100ms", "--drain-timeout", "20s"]).online(1);
    let mut idle = TcpStream::connect(("127.0.0.1", app.port)).unwrap();
    idle.set_read_timeout(Some(seconds(10))).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 1024];
    assert!(idle.read(&mut head).unwrap() > 0);
    let mut busy = TcpStream::connect(("127.0.0.1", app.port)).unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    eventually("both are open", seconds(10), || (app.daemon.total("open") == 2).then_some(()));
    let took = app.reload();
    // Before version 20 Node leaves them for its keep-alive time-out, 5 s.
    let version = std::process::Command::new("node").arg("--version").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let major: u32 = version[1..].split('.').next().unwrap().parse().unwrap();
    assert!(took < seconds(if major < 20 { 9 } else { 5 }), "{took:?}: not the whole drain timeout");
    assert_eq!(idle.read(&mut head).unwrap(), 0, "the idle one was closed");
    let answer = String::from_utf8_lossy(&read_all(&mut busy).unwrap()).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("pid "), "{answer}");
    // By itself; or, where it takes a moment for that, by the signal that follows its last connection.
    assert!(app.daemon.log().contains("old worker stopped"), "{}", app.daemon.log());
}
