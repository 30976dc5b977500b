//! The servers that direct delivery is tested with. Each answers with its slot and the client's port as it saw it.

use std::path::{Path, PathBuf};

use crate::support::write_file;

pub const NODE: &str = "
require('http').createServer((request, response) => {
  if (request.url == '/block') { const end = Date.now() + 300; while (Date.now() < end); }
  response.end(`slot ${process.env.ROUNDSMAN_SLOT} peer ${request.socket.remotePort}`);
}).listen(Number(process.env.PORT || process.argv[2]), '127.0.0.1');
";

pub const PYTHON: &str = "
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f'slot {os.environ[\"ROUNDSMAN_SLOT\"]} peer {self.client_address[1]}'.encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *rest): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ.get('PORT') or sys.argv[1])), Handler).serve_forever()
";

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

fn nginx_conf(dir: &Path, port: u16) -> PathBuf {
    write_file(
        dir,
        &format!("{port}.conf"),
        &format!(
            "daemon off; worker_processes 2; error_log stderr; pid {0}/{port}.pid; env ROUNDSMAN_SLOT;
             events {{ worker_connections 1000; }}
             http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
               uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
               server {{ listen 127.0.0.1:{port}; location / {{ return 200 'slot N peer $remote_port'; }} }} }}",
            dir.display()
        ),
    )
}

/// The servers of the table: name, command.
pub fn table(dir: &Path, port: u16) -> Vec<(&'static str, Vec<String>)> {
    let script = |name: &str, text: &str| write_file(dir, name, text).to_str().unwrap().to_owned();
    let port_word = port.to_string();
    let python = |name: &str, text: &str| vec!["python3".to_owned(), script(name, text), port_word.clone()];
    vec![
        ("node", vec!["node".to_owned(), script("app.js", NODE), port_word.clone()]),
        ("python threads per connection", python("a.py", PYTHON)),
        ("python asyncio", python("b.py", ASYNCIO)),
        ("accept, poll and select in threads", python("c.py", THREADS)),
        ("a process per connection", python("d.py", FORKING)),
        ("nginx", vec!["nginx".to_owned(), "-c".to_owned(), nginx_conf(dir, port).to_str().unwrap().to_owned()]),
    ]
}
