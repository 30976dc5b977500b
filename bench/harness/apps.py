"""Servers that do one thing at a time, as people run them: by themselves with N processes, and one process per slot.

Each answers with the number of its process; /slow takes 300 ms first.
"""
import os

from . import peers, system
from .peers import Peer, free_port, write

SLOW = 0.3

WSGI = f"""import os, time
def app(environ, start):
    if environ['PATH_INFO'] == '/slow': time.sleep({SLOW})
    body = str(os.getpid()).encode()
    start('200 OK', [('Content-Length', str(len(body)))])
    return [body]
"""
# A handler that blocks, as one that calls a library without asyncio does.
ASGI = f"""import os, time
async def app(scope, receive, send):
    assert scope['type'] == 'http'
    if scope['path'] == '/slow': time.sleep({SLOW})
    body = str(os.getpid()).encode()
    await send({{'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', str(len(body)).encode())]}})
    await send({{'type': 'http.response.body', 'body': body}})
"""
RACK = f"""run lambda {{ |env|
  sleep {SLOW} if env['PATH_INFO'] == '/slow'
  body = Process.pid.to_s
  [200, {{ 'Content-Length' => body.bytesize.to_s }}, [body]]
}}
"""
# Blocks the loop without using the CPU, which on this machine the others need.
NODE_BLOCKS = f"Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, {SLOW * 1000}); answer();"
NODE_SLEEPS = f"setTimeout(answer, {SLOW * 1000});"
NODE = """const http = require('http'), cluster = require('cluster');
const [port, forks] = process.argv.slice(2).map(Number);
if (forks && cluster.isPrimary) for (let n = 0; n < forks; n++) cluster.fork();
else http.createServer((request, response) => {
  const answer = () => response.end(String(process.pid));
  if (request.url === '/slow') { SLOW } else answer();
}).listen(port, '127.0.0.1');
"""
JAVA = f"""import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
class App {{
    public static void main(String[] args) throws Exception {{
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 1024);
        byte[] body = String.valueOf(ProcessHandle.current().pid()).getBytes();
        server.createContext("/", exchange -> {{
            try {{
                if (exchange.getRequestURI().getPath().equals("/slow")) Thread.sleep({int(SLOW * 1000)});
            }} catch (InterruptedException ended) {{ }}
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        }});
        server.setExecutor(Executors.newFixedThreadPool(Integer.parseInt(args[1])));
        // At TERM: requests under way have a second.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(1)));
        server.start();
    }}
}}
"""


class App:
    """A kind of server. `alone(port, n)`: the command with its own way to N processes; `single(port)`: one process."""

    def __init__(self, name, alone, single, how):
        self.name, self.alone, self.single, self.how = name, alone, single, how

    def by_itself(self, bench, workers, variant=None, env=None):
        port = free_port()
        name = f"{self.name}: {self.how.format(n=workers)}" + (f", {variant}" if variant else "")
        return Peer(bench, name, self.alone(port, workers), port, {"PYTHONPATH": bench.tmp, **(env or {})})

    def behind(self, bench, workers, *options, policy="rr"):
        """One process per slot. `options` are ours; the row is named by them."""
        port = free_port()
        name = " ".join([f"{self.name}: roundsman {policy}", *options])
        arguments = ["-i", str(workers), "-p", policy, "--via", "direct", *options, "--", *self.single(port)]
        return peers.roundsman(bench, name, arguments, port, {"PYTHONPATH": bench.tmp})


def gunicorn(bench, threads=1, keep=False, kind="gthread"):
    """gthread: one thread serves, another accepts. sync: one process does one thing at a time."""
    write(bench, "wsgi.py", WSGI)
    more = ["--keep-alive", "75", "--worker-connections", "2000"] if keep else []

    def command(port, workers):
        return [system.python("gunicorn"), "--log-level", "error", "-k", kind, "--threads", str(threads), "-w", str(workers), *more,
                "-b", f"127.0.0.1:{port}", "wsgi:app"]
    return App(f"gunicorn {kind}", command, lambda port: command(port, 1), "-w {n}")


def uvicorn(bench):
    write(bench, "asgi.py", ASGI)

    def command(port, workers):
        return [system.python("uvicorn"), "--log-level", "error", "--no-access-log", "--host", "127.0.0.1", "--port", str(port),
                "--workers", str(workers), "asgi:app"]
    return App("uvicorn, blocking handler", command, lambda port: command(port, 1), "--workers {n}")


def puma(bench, threads=1):
    """None where Ruby cannot be had."""
    program = system.program("puma")
    rack = write(bench, "config.ru", RACK)

    def command(port, *more):
        return [program, "-q", "-t", f"{threads}:{threads}", "-b", f"tcp://127.0.0.1:{port}", *more, rack]
    return program and App(f"Puma, {threads} thread{'s' * (threads > 1)}", lambda port, n: command(port, "-w", str(n)), lambda port: command(port), "-w {n}")


def node(bench, blocks):
    script = write(bench, f"slow{int(blocks)}.js", NODE.replace("SLOW", NODE_BLOCKS if blocks else NODE_SLEEPS))
    name = "Node, handler blocks" if blocks else "Node, handler sleeps"
    return App(name, lambda port, n: ["node", script, str(port), str(n)], lambda port: ["node", script, str(port)],
               "cluster, {n} workers")


def java(bench, threads=1):
    program = system.program("java")
    source = write(bench, "App.java", JAVA)

    def command(port, pool):
        return [program, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-Xmx128m", source, str(port), str(pool)]
    return program and App(f"Java HttpServer, pool of {threads}", command, lambda port: command(port, threads), "one process, pool of {n}")
