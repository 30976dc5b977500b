"""The programs that are compared, as they are started."""
import os, shlex, signal, subprocess

from . import system
from .system import BINARY, LOAD, ROOT, TARGET, free_port, wait_port


class Peer:
    """A running program and all below it."""

    def __init__(self, bench, name, argv, port, env=None, config=None):
        self.name, self.port, self.argv, self.config = name, port, argv, config
        path = os.path.join(bench.tmp, f"{port}.log")
        log = open(path, "w")
        self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **(env or {})})
        self.pid = self.process.pid
        bench.running.append(self)
        # As anybody can type it in a checkout.
        command = shlex.join(argv).replace(bench.tmp, "TMP").replace(TARGET, "target").replace(ROOT + "/", "")
        bench.commands[name] = (command, config)
        wait_port(port, name, path)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def cpu(self):
        return system.cpu(self.pid)

    def stop(self):
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(12)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


def write(bench, name, text):
    path = os.path.join(bench.tmp, name)
    with open(path, "w") as f:
        f.write(text)
    return path


def nginx(bench, name, port, workers, body, modules=""):
    text = (f"{modules}worker_processes {workers}; worker_rlimit_nofile 20000; daemon off; error_log /dev/null;\n"
            f"pid {bench.tmp}/{port}.pid;\nevents {{ worker_connections 18000; }}\n{body}\n")
    return Peer(bench, name, ["nginx", "-c", write(bench, f"nginx{port}.conf", text)], port, config=text)


def origin(bench, bodies):
    """nginx that serves files of these sizes: {name: bytes}. Kept alive for ever, not counted."""
    www = os.path.join(bench.tmp, "www")
    if not os.path.exists(www):
        os.makedirs(www)
        os.chmod(bench.tmp, 0o755)
    for name, size in bodies.items():
        with open(os.path.join(www, name), "wb") as f:
            f.write(b"x" * size) if size <= 1 << 20 else f.truncate(size)
    port = free_port()
    return nginx(bench, "origin", port, 2, "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; sendfile on; "
                 f"server {{ listen 127.0.0.1:{port} backlog=8192 reuseport; root {www}; }} }}")


def origin_behind_headers(bench):
    """The same files for balancers that send PROXY headers."""
    port, www = free_port(), os.path.join(bench.tmp, "www")
    return nginx(bench, "origin behind PROXY headers", port, 2, "http { access_log off; sendfile on; "
                 f"server {{ listen 127.0.0.1:{port} backlog=8192 reuseport proxy_protocol; root {www}; }} }}")


def roundsman(bench, name, arguments, port, env=None):
    control = os.path.join(bench.tmp, f"{port}.sock")
    return Peer(bench, name, [BINARY, "--name", f"bench-{port}", "--control", control, "--log-level", "warn", *arguments], port, env)


def reload_command(bench, port):
    """Reloads the roundsman at a port."""
    return [BINARY, "reload", "--control", os.path.join(bench.tmp, f"{port}.sock")]


def relay(bench, policy, target, name=None, instances=2):
    port = free_port()
    arguments = ["-l", f"127.0.0.1:{port}", "-i", str(instances), "-p", policy, "-u", f"127.0.0.1:{target}"]
    return roundsman(bench, name or f"roundsman {policy}", arguments, port)


def direct(bench, name, command, port, policy="rr", instances=2):
    return roundsman(bench, name, ["-i", str(instances), "-p", policy, "--via", "direct", "--", *command], port)


def haproxy(bench, targets, name="HAProxy", options="", balance="roundrobin", threads=2, server="", bind=""):
    port = free_port()
    servers = "\n".join(f"    server s{n} 127.0.0.1:{target} {server}".rstrip() for n, target in enumerate(targets))
    text = f"""global
    nbthread {threads}
    maxconn 8500
    maxpipes 500
    stats socket {bench.tmp}/{port}.stats
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {options}
listen l
    bind {f"127.0.0.1:{port} backlog 8192 {bind}".rstrip()}
    balance {balance}
{servers}
"""
    return Peer(bench, name, ["haproxy", "-db", "-f", write(bench, f"haproxy{port}.cfg", text)], port, config=text)


def stream(bench, targets, name="nginx stream", listen=""):
    port = free_port()
    servers = "".join(f"server 127.0.0.1:{target}; " for target in targets)
    body = (f"stream {{ upstream all {{ {servers}}} server {{ listen 127.0.0.1:{port} backlog=8192 {listen}; proxy_pass all; "
            "proxy_timeout 1h; } }")
    return nginx(bench, name, port, 2, body, "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n")


def sozu(bench, target):
    program = system.sozu()
    if not program:
        return None
    port = free_port()
    text = f"""saved_state = "{bench.tmp}/sozu.state"
log_level = "error"
log_target = "stdout"
command_socket = "{bench.tmp}/sozu.sock"
worker_count = 2
worker_automatic_restart = false
max_connections = 9000
min_buffers = 1
max_buffers = 20000
[[listeners]]
protocol = "tcp"
address = "127.0.0.1:{port}"
[clusters.c]
protocol = "tcp"
frontends = [{{ address = "127.0.0.1:{port}" }}]
backends = [{{ address = "127.0.0.1:{target}" }}]
"""
    return Peer(bench, "sozu", [program, "-c", write(bench, f"sozu{port}.toml", text), "start"], port, config=text)


def pingora(bench, target):
    program = system.pingora()
    port = free_port()
    return program and Peer(bench, "pingora", [program, f"127.0.0.1:{port}", f"127.0.0.1:{target}"], port)


def relays(bench, target):
    """All that carry bytes, in front of the same origin."""
    every = [
        relay(bench, "rr", target), relay(bench, "none", target), haproxy(bench, [target]),
        haproxy(bench, [target], "HAProxy splice", "option splice-auto"), stream(bench, [target]),
        stream(bench, [target], "nginx stream reuseport", "reuseport"), sozu(bench, target), pingora(bench, target),
    ]
    return [peer for peer in every if peer]


APP = "require('http').createServer((_, r) => r.end('ok')).listen(Number(process.env.PORT || process.argv[2]), '127.0.0.1');\n"


def node_app(bench):
    return write(bench, "app.js", APP)


def node_cluster(bench, name, policy, instances=2):
    forks = f"const c = require('cluster');\nif (c.isPrimary) {{ for (let n = 0; n < {instances}; n++) c.fork(); }}\nelse " + APP
    port = free_port()
    script = write(bench, f"cluster{instances}.js", forks)
    return Peer(bench, name, ["node", script, str(port)], port, {"NODE_CLUSTER_SCHED_POLICY": policy})


def pm2(bench, instances=2):
    port = free_port()
    env = {"PM2_HOME": os.path.join(bench.tmp, f"pm2-{port}"), "PORT": str(port)}
    return Peer(bench, "Node, PM2", [system.pm2(), "start", node_app(bench), "-i", str(instances)], port, env)


def answering_nginx(bench, name, port, workers):
    """nginx that answers "ok" by itself."""
    body = ("http { access_log off; keepalive_requests 1000000000; server { "
            f"listen 127.0.0.1:{port} backlog=8192; location / {{ return 200 'ok'; }} }} }}")
    return nginx(bench, name, port, workers, body)


def minimal(port, *more):
    """The command of the smallest server."""
    return [LOAD, "serve", "--port", str(port), *more]
