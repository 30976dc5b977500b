//! Servers that know nothing of the PROXY protocol, and what each says of its client.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use super::{body, direct};
use crate::support::{read_all, servers, write_file};

/// How a server is asked for its client's address and port.
#[derive(Clone, Copy)]
enum Question {
    Http,
    Redis,
}

pub struct Server {
    pub name: &'static str,
    pub command: Vec<String>,
    question: Question,
}

impl Server {
    /// What a client sends, the last thing before it reads.
    pub fn question(&self) -> &'static [u8] {
        match self.question {
            Question::Http => b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            Question::Redis => b"CLIENT LIST\r\nQUIT\r\n",
        }
    }

    /// Reads the answer, which is to name this client; where the server says so, also where the client connected to.
    ///
    /// # Errors
    /// What it says instead.
    pub fn names(&self, stream: &mut TcpStream, client: SocketAddr, destination: SocketAddr) -> Result<(), String> {
        match self.question {
            Question::Http => {
                let said = body(stream).map_err(|error| format!("{} has no answer: {error}", self.name))?;
                // uvicorn writes chunks.
                let line = said.lines().find(|line| line.contains(' ')).unwrap_or_default();
                let known = line.split_once(' ').and_then(|(ip, port)| {
                    Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?.to_canonical(), port.trim().parse().ok()?))
                });
                if known == Some(client) { Ok(()) } else { Err(format!("{} says {said:?}, not {client}", self.name)) }
            }
            Question::Redis => {
                let said = read_all(stream).map_err(|error| format!("{} has no answer: {error}", self.name))?;
                let said = String::from_utf8_lossy(&said);
                let wanted = format!("addr={client} laddr={destination} ");
                if said.contains(&wanted) { Ok(()) } else { Err(format!("{} says {said:?}, not {wanted}", self.name)) }
            }
        }
    }
}

const JAVA: &str = "
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
class Ends {
  public static void main(String[] args) throws Exception {
    HttpServer server = HttpServer.create(new InetSocketAddress(args[1], Integer.parseInt(args[0])), 512);
    server.createContext(\"/\", exchange -> {
      InetSocketAddress client = exchange.getRemoteAddress();
      byte[] body = (client.getAddress().getHostAddress() + ' ' + client.getPort()).getBytes();
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    });
    server.start();
  }
}
";

const PHP: &str = "<?php header('Connection: close'); echo $_SERVER['REMOTE_ADDR'], ' ', $_SERVER['REMOTE_PORT'];";

const NODE: &str = "
require('http').createServer((q, a) => a.end(q.socket.remoteAddress + ' ' + q.socket.remotePort))
  .listen(process.argv[2], process.argv[3]);
";

const EXPRESS: &str = "
const app = require(`${process.env.SERVERS}/node_modules/express`)();
app.get('/', (req, res) => res.send(req.socket.remoteAddress + ' ' + req.socket.remotePort));
app.listen(process.argv[2], process.argv[3]);
";

const PYTHON_APPS: &str = "
def wsgi(environ, start):
    start('200 OK', [])
    return [(environ['REMOTE_ADDR'] + ' ' + environ['REMOTE_PORT']).encode()]
async def asgi(scope, receive, send):
    if scope['type'] != 'http': return
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'connection', b'close')]})
    await send({'type': 'http.response.body', 'body': ('%s %s' % tuple(scope['client'])).encode()})
";

/// Servers on a port of all addresses of one family.
pub fn all(dir: &Path, host: &str, port: u16) -> Vec<Server> {
    let python = |name: &str| servers().join("venv/bin").join(name).display().to_string();
    let written = |name: &str, text: &str| write_file(dir, name, text).display().to_string();
    let text = port.to_string();
    let bind = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    written("apps.py", PYTHON_APPS);
    let nginx = format!(
        "worker_processes 2; daemon off; error_log stderr; pid {0}/nginx.pid; events {{ }}
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
           uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
           server {{ listen {bind}; location / {{ return 200 '$remote_addr $remote_port'; }} }} }}",
        dir.display()
    );
    let chdir = dir.display().to_string();
    let server = |name, words: &[&str]| Server {
        name,
        command: words.iter().map(|&word| word.to_owned()).collect(),
        question: Question::Http,
    };
    let redis = ["redis-server", "--port", &text, "--bind", host, "--save", "", "--protected-mode", "no"];
    vec![
        server("node", &["node", &written("node.js", NODE), &text, host]),
        Server { question: Question::Redis, ..server("redis", &redis) },
        server("express", &["node", &written("express.js", EXPRESS), &text, host]),
        server("http.server", &["python3", &written("ends.py", direct::PYTHON_CLIENT), &text, host]),
        server("gunicorn", &[&python("gunicorn"), "-w", "2", "-b", &bind, "--chdir", &chdir, "apps:wsgi"]),
        server("uvicorn", &[&python("uvicorn"), "--host", host, "--port", &text, "--app-dir", &chdir, "apps:asgi"]),
        server("java", &["java", "-Xshare:auto", &written("Ends.java", JAVA), &text, host]),
        server("php", &["php", "-S", &bind, &written("ends.php", PHP)]),
        server("nginx", &["nginx", "-c", &written("nginx.conf", &nginx)]),
    ]
}
