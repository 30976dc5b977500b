//! What workers in Node listen on and speak; `node.rs` runs it with each version.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::process::Command;

use crate::support::{
    App, answers, certificate, free_port, get, install_dir, read_all, seconds, servers, unsaid, write_file,
};

/// An ES module with HTTP and WebSockets on one port and HTTP/2 on another.
pub fn speaks_all_protocols(node: &str) {
    let source = "
import http from 'node:http';
import http2 from 'node:http2';
import cluster from 'node:cluster';
import { createRequire } from 'node:module';
const { WebSocketServer } = createRequire(process.env.NODE_PATH + '/x.js')('ws');
const who = () => `worker ${cluster.worker.id} slot ${process.env.ROUNDSMAN_SLOT}`;
const server = http.createServer((request, response) => response.end(who()));
new WebSocketServer({ server }).on('connection', socket => socket.on('message', text => socket.send(`${text} ${who()}`)));
server.listen(process.env.PORT_OF_APP);
http2.createServer((request, response) => response.end(who())).listen(Number(process.env.SECOND));
";
    let second = free_port();
    let variable = format!("SECOND={second}");
    let mut app = App::start(node, "app.mjs", source, &["--env", &variable]).online(2);
    let both = || BTreeSet::from([0, 1].map(|slot| format!("worker {} slot {slot}", slot + 1)));
    answers(&both(), || get(app.port).unwrap());
    let h2 = || {
        let url = format!("http://127.0.0.1:{second}/");
        let output = Command::new("curl").args(["-sS", "--http2-prior-knowledge", &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    answers(&both(), h2);
    let client = "
const WebSocket = require('ws'), socket = new WebSocket(`ws://127.0.0.1:${process.argv[1]}`);
socket.on('open', () => socket.send('hello')).on('message', text => { console.log(String(text)); socket.close() });";
    let ws = || {
        let mut command = Command::new("node");
        command.args(["-e", client, &app.port.to_string()]).env("NODE_PATH", servers().join("node_modules"));
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let wanted: BTreeSet<_> = both().into_iter().map(|who| format!("hello {who}")).collect();
    answers(&wanted, ws);
    assert_eq!(app.daemon.stop().code(), 0);
}

/// Two servers on port 0, a Unix path, UDP, and a port in use.
pub fn listens_on_everything(node: &str) {
    let source = "
const cluster = require('cluster'), net = require('net'), dgram = require('dgram');
const id = process.env.ROUNDSMAN_SLOT;
const say = (name) => function () { console.log(`${name} ${id} ${this.address().port || this.address()}`) };
net.createServer(c => c.end(`first ${id}`)).listen(0, '127.0.0.1', say('first'));
net.createServer(c => c.end(`second ${id}`)).listen(0, '127.0.0.1', say('second'));
net.createServer(c => c.end(`path ${id}`)).listen('app.sock', () => console.log(`path ${id} up`));
const udp = dgram.createSocket('udp4');
udp.on('message', (m, peer) => udp.send(`udp ${id}`, peer.port, peer.address));
udp.bind(Number(process.env.PORT_OF_APP), '127.0.0.1', () => console.log(`udp ${id} up`));
const taken = net.createServer();
taken.on('error', error => console.log(`error ${error.code}`));
taken.listen(Number(process.env.TAKEN), '127.0.0.1', () => console.log('it should not listen'));
if (!cluster.isWorker) console.log('no worker');
";
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("TAKEN={}", holder.local_addr().unwrap().port());
    let mut app = App::start(node, "app.js", source, &["--env", &taken]).online(2);
    let out = app.says_times("error EADDRINUSE", 2);
    assert!(!out.contains("it should not") && !out.contains("no worker"), "{out}");
    app.says_times("udp", 2);
    let out = app.says_times("up", 4);
    let ports = |name: &str| -> BTreeSet<u16> {
        let lines = out.lines().filter(|line| line.contains(&format!("| {name} ")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
    };
    let (first, second) = (ports("first"), ports("second"));
    assert!(first.len() == 1 && second.len() == 1 && first != second, "{first:?} {second:?} {out}");
    for (name, port) in [("first", first), ("second", second)] {
        let port = *port.first().unwrap();
        let read =
            || String::from_utf8(read_all(&mut TcpStream::connect(("127.0.0.1", port)).unwrap()).unwrap()).unwrap();
        answers(&[0, 1].map(|slot| format!("{name} {slot}")).into(), read);
    }
    let path = app.dir.path().join("app.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(String::from_utf8(read_all(&mut stream).unwrap()).unwrap().starts_with("path "));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(seconds(5))).unwrap();
    udp.send_to(b"hello", ("127.0.0.1", app.port)).unwrap();
    let mut buffer = [0; 100];
    let n = udp.recv(&mut buffer).unwrap();
    assert!(buffer[..n].starts_with(b"udp "));
    // The same ports, path and errors for the next generation.
    app.reload();
    let after = app.says_times("error EADDRINUSE", 4);
    assert_eq!(
        after
            .lines()
            .filter(|line| line.contains("| first "))
            .filter_map(|line| line.rsplit(' ').next())
            .collect::<BTreeSet<_>>()
            .len(),
        1,
        "{after}"
    );
    assert_eq!(app.daemon.stop().code(), 0);
    assert!(!path.exists(), "the path goes with the daemon");
}

/// A client's session goes on with any worker, of any generation.
pub fn resumes_tls_sessions(node: &str) {
    let dir = install_dir();
    certificate(dir.path());
    let source = "
const https = require('https'), fs = require('fs');
https.createServer({ key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') }, (request, response) => {
  response.end(`slot ${process.env.ROUNDSMAN_SLOT}`);
}).listen(process.env.PORT_OF_APP, '127.0.0.1');";
    write_file(dir.path(), "app.js", source);
    let client = "
const tls = require('tls'), fs = require('fs');
const [port, times] = process.argv.slice(2).map(Number);
let session = fs.existsSync('session') ? fs.readFileSync('session') : undefined;
function connect(left) {
  if (!left) { fs.writeFileSync('session', session); return }
  const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, session, maxVersion: 'TLSv1.2' }, () => {
    const reused = socket.isSessionReused();
    session = socket.getSession();
    socket.write('GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n');
    let all = '';
    socket.on('data', d => all += d);
    socket.on('close', () => { console.log(reused, all.split('\\r\\n\\r\\n')[1].trim()); connect(left - 1) });
  });
}
connect(times);";
    write_file(dir.path(), "client.js", client);
    let mut app = App::in_dir(dir, node, "app.js", &["--min-uptime", "200ms"]).online(2);
    let run = |times: &str| {
        let output =
            Command::new("node").args(["client.js", &app.port.to_string(), times]).current_dir(app.dir.path()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = run("12");
    let lines: Vec<_> = first.lines().collect();
    assert!(lines[0].starts_with("false") && lines[1..].iter().all(|line| line.starts_with("true")), "{first}");
    assert!(first.contains("slot 0") && first.contains("slot 1"), "{first}");
    app.reload();
    let after = run("4");
    assert!(after.lines().count() == 4 && after.lines().all(|line| line.starts_with("true")), "{after}");
    unsaid(&app.daemon.log(), &["ticketKeys"]);
    assert_eq!(app.daemon.stop().code(), 0);
}
