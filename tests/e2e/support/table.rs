//! The servers that direct delivery is tested with. Each answers with its slot and the client's port as it saw it.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{c_server, certificate, http_get, musl_server, servers, source, write_file};

pub const NODE: &str = "
require('http').createServer((request, response) => {
  if (request.url == '/block') { const end = Date.now() + 300; while (Date.now() < end); }
  response.end(`slot ${process.env.ROUNDSMAN_SLOT} peer ${request.socket.remotePort}`);
}).listen(Number(process.env.PORT || process.argv[2]), '127.0.0.1');
";

/// Says which slot answers and which client asked; for a script that imports http.server and os.
macro_rules! python_handler {
    () => {
        "
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {self.client_address[1]}'.encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest): pass
"
    };
}
pub(crate) use python_handler;

pub const PYTHON: &str = concat!(
    "
import http.server, os, sys",
    python_handler!(),
    "http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ.get('PORT') or sys.argv[1])), Handler).serve_forever()
"
);

/// asyncio: level-triggered epoll, non-blocking accept until EAGAIN.
const ASYNCIO: &str = "
import asyncio, os, sys
async def serve(reader, writer):
    await reader.readuntil(b'\\r\\n\\r\\n')
    body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {writer.get_extra_info(\"peername\")[1]}'.encode()
    writer.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' % len(body) + body)
    await writer.drain(); writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', int(os.environ.get('PORT') or sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
";

/// poll and select, several threads that block in accept on one descriptor.
const THREADS: &str = "
import os, socket, sys, threading, select
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ.get('PORT') or sys.argv[1]))); s.listen(100)
def serve(how):
    while True:
        if how == 'select': select.select([s], [], [])
        if how == 'poll': p = select.poll(); p.register(s, select.POLLIN); p.poll()
        c, peer = s.accept()
        head = b''
        while b'\\r\\n\\r\\n' not in head: head += c.recv(4096)
        body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {peer[1]}'.encode()
        c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body); c.close()
for how in ['accept', 'accept', 'select', 'poll']: threading.Thread(target=serve, args=[how]).start()
";

/// A process per connection, which closes the listening socket that it inherited.
const FORKING: &str = "
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', int(os.environ.get('PORT') or sys.argv[1]))); s.listen(100)
while True:
    c, peer = s.accept()
    if os.fork() == 0:
        s.close(); head = b''
        while b'\\r\\n\\r\\n' not in head: head += c.recv(4096)
        body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {peer[1]}'.encode()
        c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body); c.close(); os._exit(0)
    c.close()
";

pub fn nginx_conf(dir: &Path, port: u16, listen: &str) -> PathBuf {
    write_file(
        dir,
        &format!("{port}.conf"),
        &format!(
            "daemon off; worker_processes 2; error_log stderr; pid {0}/{port}.pid; env ROUNDSMAN_SLOT;
             events {{ worker_connections 1000; }}
             http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
               uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
               server {{ listen 127.0.0.1:{port}{listen}; location / {{ return 200 'slot N peer $remote_port'; }} }} }}",
            dir.display()
        ),
    )
}

/// How a server is talked to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// HTTP.
    Http,
    /// curl with this option.
    Curl(&'static str),
    /// A WebSocket that gets one message.
    WebSocket,
}

/// A server of the table.
pub struct Server {
    pub name: &'static str,
    pub command: Vec<String>,
    pub client: Client,
    /// Its answer names its slot.
    pub names_slot: bool,
}

/// The servers of the table.
pub fn table(dir: &Path, port: u16) -> Vec<Server> {
    let script = |name: &str, text: &str| write_file(dir, name, text).to_str().unwrap().to_owned();
    let port_word = port.to_string();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let python = |name: &str, text: &str| words(&["python3", &script(name, text), &port_word]);
    let node = |mode: &str| words(&["node", &source("app.js"), mode, &port_word, dir.to_str().unwrap()]);
    let gunicorn = |kind: &str| {
        let program = servers().join("venv/bin/gunicorn");
        let app = Path::new(&source("wsgi.py")).parent().unwrap().to_str().unwrap().to_owned();
        words(&[
            program.to_str().unwrap(),
            "--chdir",
            &app,
            "-b",
            &format!("127.0.0.1:{port}"),
            "-w",
            "2",
            "-k",
            kind,
            "--threads",
            "4",
            "--log-level",
            "warning",
            "wsgi:app",
        ])
    };
    let nginx = |listen: &str| words(&["nginx", "-c", nginx_conf(dir, port, listen).to_str().unwrap()]);
    let server = |name, command| Server { name, command, client: Client::Http, names_slot: true };
    certificate(dir);
    vec![
        server("node", node("http")),
        server("python threads per connection", python("a.py", PYTHON)),
        server("python asyncio", python("b.py", ASYNCIO)),
        server("accept, poll and select in threads", python("c.py", THREADS)),
        server("a process per connection", python("d.py", FORKING)),
        Server { names_slot: false, ..server("nginx", nginx("")) },
        Server { names_slot: false, ..server("nginx reuseport", nginx(" reuseport")) },
        server("node express", node("express")),
        Server { client: Client::WebSocket, ..server("node ws", node("ws")) },
        Server { client: Client::Curl("--http1.1"), ..server("node https", node("https")) },
        Server { client: Client::Curl("--http2"), ..server("node http2", node("http2")) },
        server("gunicorn sync", gunicorn("sync")),
        server("gunicorn gthread", gunicorn("gthread")),
        server("musl C, threads", words(&[musl_server(), "threads", &port_word])),
        server("C as Asio", words(&[c_server(), "asio", &port_word])),
        server("C threads", words(&[c_server(), "threads", &port_word])),
        server("C process per connection", words(&[c_server(), "fork", &port_word])),
    ]
}

/// Those that only the long run tries: tests/install --all has them.
pub fn long_table(dir: &Path, port: u16) -> Vec<Server> {
    let script = |name: &str, text: &str| write_file(dir, name, text).to_str().unwrap().to_owned();
    let port_word = port.to_string();
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let server = |name, command| Server { name, command, client: Client::Http, names_slot: true };
    let package = |path: &str| {
        let program = servers().join(path);
        assert!(program.is_file(), "{} is missing: tests/install --all", program.display());
        program.to_str().unwrap().to_owned()
    };
    let app = source("app.js");
    let node = |name, version: &str| {
        server(name, words(&[&package(&format!("node_modules/node{version}/bin/node")), &app, "http", &port_word]))
    };
    let python = Path::new(&source("wsgi.py")).parent().unwrap().to_str().unwrap().to_owned();
    let uvicorn = |name, event_loop: &str| {
        let program = package("venv/bin/uvicorn");
        let flags = ["--port", &port_word, "--loop", event_loop, "--app-dir", &python, "--log-level", "warning"];
        server(name, [words(&[&program]), words(&flags), words(&["wsgi:asgi"])].concat())
    };
    let php =
        "<?php header('Connection: close'); echo 'slot ', getenv('ROUNDSMAN_SLOT'), ' peer ', $_SERVER['REMOTE_PORT'];";
    let rack = "run ->(env) { [200, {}, [\"slot #{ENV['ROUNDSMAN_SLOT']} peer #{env['puma.socket'].peeraddr[1]}\"]] }";
    let java = |name, file: &str, pool: &str| {
        server(name, words(&["java", "-Xshare:auto", &script(file, &JAVA.replace("POOL", pool)), &port_word]))
    };
    vec![
        node("Node 16", "16"),
        node("Node 18", "18"),
        node("Node 22", "22"),
        node("Node 24", "24"),
        server("Fastify", words(&["node", &app, "fastify", &port_word])),
        server(
            "Bun",
            words(&[
                &package("node_modules/.bin/bun"),
                &script(
                    "bun.js",
                    "Bun.serve({ port: Number(process.argv[2]), hostname: '127.0.0.1', fetch(request, server) {
                       return new Response(`slot ${process.env.ROUNDSMAN_SLOT} peer ${server.requestIP(request).port}`); } });",
                ),
                &port_word,
            ]),
        ),
        server(
            "Deno",
            words(&[
                &package("node_modules/.bin/deno"),
                "run",
                "-A",
                &script(
                    "deno.js",
                    "Deno.serve({ port: Number(Deno.args[0]), hostname: '127.0.0.1' }, (request, info) =>
                       new Response(`slot ${Deno.env.get('ROUNDSMAN_SLOT')} peer ${info.remoteAddr.port}`));",
                ),
                &port_word,
            ]),
        ),
        uvicorn("uvicorn", "asyncio"),
        uvicorn("uvicorn with uvloop", "uvloop"),
        java("Java HttpServer", "Main.java", "null"),
        java("Java HttpServer, thread pool", "Pool.java", "java.util.concurrent.Executors.newFixedThreadPool(8)"),
        server(
            "Puma",
            words(&["puma", "-q", "-b", &format!("tcp://127.0.0.1:{port}"), "-t", "4:4", &script("config.ru", rack)]),
        ),
        server("PHP", words(&["php", "-q", "-S", &format!("127.0.0.1:{port}"), &script("router.php", php)])),
    ]
}

const JAVA: &str = "
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
class Main {
  public static void main(String[] args) throws Exception {
    HttpServer server = HttpServer.create(new InetSocketAddress(\"127.0.0.1\", Integer.parseInt(args[0])), 512);
    server.setExecutor(POOL);
    server.createContext(\"/\", exchange -> {
      byte[] body = (\"slot \" + System.getenv(\"ROUNDSMAN_SLOT\") + \" peer \" + exchange.getRemoteAddress().getPort()).getBytes();
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    });
    server.start();
  }
}
";

impl Client {
    /// One connection: (who answered, whether the server knew the client's port).
    pub fn ask(self, port: u16) -> (String, bool) {
        let (body, own) = match self {
            Self::Http => {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let own = stream.local_addr().unwrap().port().to_string();
                (http_get(&mut stream).unwrap(), own)
            }
            Self::Curl(version) => {
                let arguments = ["-sSk", version, "-w", "\n%{local_port}", &format!("https://127.0.0.1:{port}/")];
                let output = Command::new("curl").args(arguments).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let text = String::from_utf8(output.stdout).unwrap();
                let (body, own) = text.rsplit_once('\n').unwrap();
                (body.to_owned(), own.to_owned())
            }
            Self::WebSocket => web_socket(port),
        };
        let (slot, peer) = body.split_once(" peer ").unwrap_or_else(|| panic!("{body:?}"));
        (slot.to_owned(), peer == own)
    }
}

fn web_socket(port: u16) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let own = stream.local_addr().unwrap().port().to_string();
    let head = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut all = Vec::new();
    // The answer's head, one text frame, a close frame, which is answered by an empty masked one.
    let mut buffer = [0; 1024];
    let frame = loop {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..n]);
        let Some(at) = all.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let frame = &all[at + 4..];
        if frame.len() > 2 && frame.len() >= 2 + usize::from(frame[1]) {
            break String::from_utf8(frame[2..2 + usize::from(frame[1])].to_vec()).unwrap();
        }
    };
    stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
    stream.read_to_end(&mut all).unwrap();
    (frame, own)
}
