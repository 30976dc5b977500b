//! Clients that keep their connection notice nothing of reloads.

use super::clients::meanwhile;
use super::{launch, reload};
use crate::support::{Daemon, free_port, install_dir, servers, write_file};

/// Whether a server's connections stay, or end after an answer that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connections {
    Stay,
    EndOrderly,
}

fn nothing_is_lost(daemon: &Daemon, name: &str, reloads: usize, connections: Connections) {
    let noticed = meanwhile(daemon.port, || (0..reloads).for_each(|_| reload(daemon)));
    let log = daemon.log();
    println!(
        "{name}: {} answered, {} connections, {} moved",
        noticed.answered,
        noticed.connections,
        daemon.total("moved")
    );
    assert!(noticed.lost.is_empty() && noticed.hung == 0, "{name}: {noticed:?}\n{log}");
    assert!(noticed.answered > 50 * reloads, "{name}: {noticed:?}");
    if connections == Connections::Stay {
        assert!(noticed.connections <= 51, "{name}: {} connections\n{log}", noticed.connections);
        assert!(daemon.total("moved") >= 50, "{name}");
    }
}

pub const NODE: &str =
    "require('http').createServer((q, r) => { q.resume(); q.on('end', () => r.end(`${process.pid}\\n`)); })
    .listen(Number(process.env.PORT), '127.0.0.1');";

fn node(reloads: usize) {
    let dir = install_dir();
    let script = write_file(dir.path(), "app.js", NODE);
    let daemon = launch(2, &[], &["node", script.to_str().unwrap()]);
    nothing_is_lost(&daemon, "node", reloads, Connections::Stay);
}

fn nginx(reloads: usize) {
    let (dir, port) = (install_dir(), free_port());
    let text = format!(
        "daemon off; worker_processes 2; error_log stderr; pid {0}/{port}.pid; events {{ worker_connections 1000; }}
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
           uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; keepalive_requests 1000000;
           server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}",
        dir.path().display()
    );
    let conf = write_file(dir.path(), "nginx.conf", &text);
    let listen = format!("127.0.0.1:{port}");
    let mut all = vec!["-n", "web", "-l", &listen, "-i", "2", "--min-uptime", "100ms", "--drain-idle", "move"];
    all.extend(["--stop-signal", "QUIT", "--", "nginx", "-c", conf.to_str().unwrap()]);
    let daemon = Daemon::launch(crate::support::roundsman(), &all, port);
    daemon.wait_online(2);
    nothing_is_lost(&daemon, "nginx", reloads, Connections::Stay);
}

#[test]
fn node_s_clients_notice_nothing() {
    node(2);
}

#[test]
fn nginx_s_clients_notice_nothing() {
    nginx(2);
}

/// How often by the tests that `--all` runs.
const MANY: usize = 100;

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn node_s_clients_notice_nothing_of_many_reloads() {
    node(MANY);
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn nginx_s_clients_notice_nothing_of_many_reloads() {
    nginx(MANY);
}

/// With a shell's line, in which {bin} has Python's servers and {at} is a directory with these files.
fn by_shell(name: &str, line: &str, files: &[(&str, &str)], connections: Connections) {
    let (dir, bin) = (install_dir(), servers().join("venv/bin"));
    for (file, text) in files {
        write_file(dir.path(), file, text);
    }
    let line = line.replace("{at}", dir.path().to_str().unwrap()).replace("{bin}", bin.to_str().unwrap());
    let daemon = launch(2, &[], &["sh", "-c", &line]);
    nothing_is_lost(&daemon, name, MANY, connections);
}

const APP_PY: &[(&str, &str)] = &[(
    "app.py",
    "async def app(scope, receive, send):
    while scope['type'] == 'http' and (await receive()).get('more_body'): pass
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'3')]})
    await send({'type': 'http.response.body', 'body': b'ok\\n'})
def wsgi(env, start):
    env['wsgi.input'].read()
    start('200 OK', [('Content-Length', '3')])
    return [b'ok\\n']
",
)];

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn uvicorn_s_clients_notice_nothing_of_many_reloads() {
    for (name, of_loop) in [("uvicorn", "asyncio"), ("uvicorn with uvloop", "uvloop")] {
        let line =
            format!("exec {{bin}}/uvicorn --loop {of_loop} --app-dir {{at}} app:app --port $PORT --log-level warning");
        by_shell(name, &line, APP_PY, Connections::Stay);
    }
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn no_request_to_gunicorn_s_threads_is_lost_in_many_reloads() {
    let line =
        "exec {bin}/gunicorn --chdir {at} -b 127.0.0.1:$PORT --log-level warning -k gthread --threads 60 app:wsgi";
    by_shell("gunicorn gthread", line, APP_PY, Connections::EndOrderly);
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn no_request_to_puma_is_lost_in_many_reloads() {
    let text = "run lambda { |env| env['rack.input'].read; [200, {'content-length' => '3'}, [\"ok\\n\"]] }\n";
    let line = "exec puma -q -t 60:60 -b tcp://127.0.0.1:$PORT {at}/config.ru";
    by_shell("puma", line, &[("config.ru", text)], Connections::EndOrderly);
}

#[test]
#[ignore = "takes minutes; tests/run --all"]
fn java_s_clients_notice_nothing_of_many_reloads() {
    let text = "import com.sun.net.httpserver.*; import java.net.*; import java.util.concurrent.*;
public class Server { public static void main(String[] a) throws Exception {
  HttpServer s = HttpServer.create(new InetSocketAddress(\"127.0.0.1\", Integer.parseInt(System.getenv(\"PORT\"))), 0);
  s.setExecutor(Executors.newCachedThreadPool());
  s.createContext(\"/\", x -> { x.getRequestBody().readAllBytes(); x.sendResponseHeaders(200, 2);
    x.getResponseBody().write(\"ok\".getBytes()); x.close(); });
  Runtime.getRuntime().addShutdownHook(new Thread(() -> s.stop(1))); s.start(); } }
";
    // Compiled by whichever worker is first.
    let line = "cd {at}; test -f Server.class || javac -d new-$$ Server.java && mv new-$$/Server.class . || :
        exec java -Dsun.net.httpserver.nodelay=true -cp . Server";
    by_shell("java", line, &[("Server.java", text)], Connections::Stay);
}
