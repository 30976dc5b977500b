//! Real balancers in front of real servers: each server names the client that connected to the balancer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use super::{body, own};
use crate::support::direct::start_with;
use crate::support::{Process, free_port, install_dir, seconds, servers, write_file};

/// How a server is asked for its client's address and port.
#[derive(Clone, Copy)]
enum Question {
    Http,
    Redis,
}

struct Server {
    name: &'static str,
    command: Vec<String>,
    question: Question,
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// Servers on a port of all addresses of one family; each answers `ADDRESS PORT` of its client.
fn all(dir: &Path, host: &str, port: u16) -> Vec<Server> {
    let python = |name: &str| servers().join("venv/bin").join(name).display().to_string();
    let (written, text) =
        (|name: &str, text: &str| write_file(dir, name, text).display().to_string(), port.to_string());
    let bind = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let node = written(
        "node.js",
        "require('http').createServer((q, a) => a.end(q.socket.remoteAddress + ' ' + q.socket.remotePort))
           .listen(process.argv[2], process.argv[3]);",
    );
    let ends = written("ends.py", super::direct::PYTHON_CLIENT);
    written(
        "apps.py",
        "def wsgi(environ, start):
    start('200 OK', [])
    return [(environ['REMOTE_ADDR'] + ' ' + environ['REMOTE_PORT']).encode()]
async def asgi(scope, receive, send):
    if scope['type'] != 'http': return
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'connection', b'close')]})
    await send({'type': 'http.response.body', 'body': ('%s %s' % tuple(scope['client'])).encode()})
",
    );
    let nginx = written(
        "nginx.conf",
        &format!(
            "worker_processes 2; daemon off; error_log stderr; pid {0}/nginx.pid; events {{ }}
             http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
               uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
               server {{ listen {bind}; location / {{ return 200 '$remote_addr $remote_port'; }} }} }}",
            dir.display()
        ),
    );
    let chdir = dir.display().to_string();
    let server = |name, question, command| Server { name, command, question };
    vec![
        server("node", Question::Http, words(["node", &node, &text, host])),
        server("http.server", Question::Http, words(["python3", &ends, &text, host])),
        server(
            "gunicorn",
            Question::Http,
            words([&python("gunicorn"), "-w", "2", "-b", &bind, "--chdir", &chdir, "apps:wsgi"]),
        ),
        server(
            "uvicorn",
            Question::Http,
            words([&python("uvicorn"), "--host", host, "--port", &text, "--app-dir", &chdir, "apps:asgi"]),
        ),
        server(
            "redis",
            Question::Redis,
            words(["redis-server", "--port", &text, "--bind", host, "--save", "", "--protected-mode", "no"]),
        ),
        server("nginx", Question::Http, words(["nginx", "-c", &nginx])),
    ]
}

/// Asks over a connection to a balancer: (what the server says, what it is to say).
fn ask(balancer: SocketAddr, question: Question) -> (String, String) {
    let mut client = TcpStream::connect(balancer).unwrap();
    client.set_read_timeout(Some(seconds(20))).unwrap();
    let own = own(&client);
    match question {
        Question::Http => {
            client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let said = body(&mut client).unwrap_or_else(|error| error.to_string());
            // uvicorn writes chunks.
            let said = said.lines().find(|line| line.contains(' ')).unwrap_or(&said).to_owned();
            (said, format!("{} {}", own.ip(), own.port()))
        }
        Question::Redis => {
            client.write_all(b"CLIENT LIST\r\nQUIT\r\n").unwrap();
            let mut said = String::new();
            let _ = client.read_to_string(&mut said);
            let wanted = format!("addr={own} laddr={balancer} ");
            (said.clone(), if said.contains(&wanted) { said } else { wanted })
        }
    }
}

/// HAProxy with a listener for each form of the header, on this address.
fn haproxy(dir: &Path, host: &str, to: u16) -> (Process, Vec<u16>) {
    let forms = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2-ssl-cn",
        "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c,unique-id",
    ];
    let ports = forms.map(|_| free_port());
    let listeners: String = forms
        .iter()
        .zip(ports)
        .map(|(form, port)| format!("listen l{port}\n bind {host}:{port}\n server app {host}:{to} {form}\n"))
        .collect();
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n unique-id-format %ci\n\
         {listeners}listen alive\n bind 127.0.0.1:{0}\n server app {host}:{to}\n",
        free_port()
    );
    let file = write_file(dir, "haproxy.cfg", &text);
    let arguments = ["-db", "-f", file.to_str().unwrap()];
    let alive = text.rsplit_once("bind 127.0.0.1:").unwrap().1.split('\n').next().unwrap().parse().unwrap();
    (Process::start("haproxy", &arguments, alive), ports.to_vec())
}

/// All forms from HAProxy in front of all servers that are named.
fn behind_haproxy(names: &[&str]) {
    for (host, from) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
        let dir = install_dir();
        let port = free_port();
        let bind = if from.contains(':') { "[::1]" } else { from };
        let (_haproxy, forms) = haproxy(dir.path(), bind, port);
        for Server { name, command, question } in
            all(dir.path(), host, port).into_iter().filter(|server| names.contains(&server.name))
        {
            let daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1,::1"], &command);
            for form in &forms {
                let (said, wanted) = ask(SocketAddr::new(from.parse().unwrap(), *form), question);
                assert_eq!(said, wanted, "{name} on {host}\n{}", daemon.log());
            }
        }
    }
}

#[test]
fn haproxy_before_node_and_redis() {
    behind_haproxy(&["node", "redis"]);
}

#[test]
#[ignore = "long"]
fn haproxy_before_all_servers() {
    behind_haproxy(&["http.server", "gunicorn", "uvicorn", "nginx"]);
}

#[test]
#[ignore = "long"]
fn nginx_before_all_servers() {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    for (host, from) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
        let dir = install_dir();
        let (port, front, alive) = (free_port(), free_port(), free_port());
        let bind = if from.contains(':') { "[::1]" } else { from };
        let text = format!(
            "{load} daemon off; error_log stderr; pid {}/front.pid; events {{ }}
             stream {{ server {{ listen {bind}:{front}; proxy_pass {bind}:{port}; proxy_protocol on; }}
               server {{ listen 127.0.0.1:{alive}; proxy_pass 127.0.0.1:{port}; }} }}",
            dir.path().display()
        );
        let file = write_file(dir.path(), "front.conf", &text);
        let _nginx = Process::start("nginx", &["-c", file.to_str().unwrap()], alive);
        for Server { name, command, question } in all(dir.path(), host, port) {
            let daemon = start_with(port, "2", &["--via", "direct", "--proxy-from", "127.0.0.1,::1"], &command);
            let (said, wanted) = ask(SocketAddr::new(from.parse().unwrap(), front), question);
            assert_eq!(said, wanted, "{name} on {host}\n{}", daemon.log());
        }
    }
}
