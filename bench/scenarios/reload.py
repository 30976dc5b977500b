"""Rolling reloads under clients that keep their connection and post on it, and never repeat a request."""
import json, os, signal, subprocess, sys, time

from harness import apps, peers, system
from harness.peers import Peer, free_port, write

# Longer than that a reload is not waited for: those who keep their connections open then stay.
PATIENCE = 10
PAUSE_MS = 20
# What people write who replace the workers of a cluster themselves: the new one listens, then the old one is disconnected.
CLUSTER = """const http = require('http'), cluster = require('cluster');
if (cluster.isPrimary) {
  for (let n = 0; n < 2; n++) cluster.fork();
  process.on('SIGHUP', async () => {
    for (const old of Object.values(cluster.workers)) {
      await new Promise(ready => cluster.fork().once('listening', ready));
      await new Promise(gone => { old.once('exit', gone); old.disconnect(); });
    }
  });
} else http.createServer((_, answer) => answer.end('ok')).listen(Number(process.argv[2]), '127.0.0.1');
"""


def stays(pid):
    """Python's helper of multiprocessing, which is there as long as the parent is."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return "resource_tracker" in file.read()
    except OSError:
        return False


def settled(peer, signal_):
    """Sends a signal; the reload is over when none of the processes below is there any more that were."""
    def reload():
        before = [pid for pid in system.tree(peer.pid) if pid != peer.pid and not stays(pid)]
        os.kill(peer.pid, signal_)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not set(before) & set(system.tree(peer.pid)):
                return True
            time.sleep(0.02)
        return False
    return reload


def told(*command, env=None):
    """A command that ends when the reload has."""
    def reload():
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return subprocess.run(command, env={**os.environ, **(env or {})}, timeout=2 * PATIENCE, **quiet).returncode == 0
    return reload


def ours(bench, name, command, port, *options, vias=("direct",)):
    """Behind roundsman."""
    moves = [("direct", "--drain-idle", "move")] if system.knows("--drain-idle") else []
    for via, *more in [(via,) for via in vias] + moves:
        arguments = ["-i", "2", "--via", via, "--min-uptime", "200ms", "--drain-timeout", "1s", *options, *more]
        if via == "relay":
            arguments += ["-l", f"127.0.0.1:{port}"]
        title = " ".join([f"{name}: roundsman, {via}", *more])
        yield title, lambda arguments=arguments, title=title: reloaded_by_us(bench, title, [*arguments, "--", *command], port)


def reloaded_by_us(bench, title, arguments, port):
    peer = peers.roundsman(bench, title, arguments, port, {"PYTHONPATH": bench.tmp})
    return peer, told(*peers.reload_command(bench, port))


def signalled(bench, name, command, port, signal_, config=None):
    def start():
        peer = Peer(bench, name, command, port, {"PYTHONPATH": bench.tmp}, config=config)
        return peer, settled(peer, signal_)
    return name, start


def by_pm2(bench, script):
    """pm2-runtime's own process is one of a daemon's; `pm2 reload` ends when it has reloaded all."""
    port = free_port()
    env = {"PM2_HOME": os.path.join(bench.tmp, f"pm2-{port}"), "PORT": str(port)}
    peer = Peer(bench, "Node: PM2, pm2 reload", [system.pm2(), "start", script, "-i", "2"], port, env)
    return peer, told(os.path.join(os.path.dirname(system.pm2()), "pm2"), "reload", "all", env=env)


def by_haproxy(bench, script):
    """HAProxy's own reload; the servers behind it stay."""
    targets = [free_port(), free_port()]
    for target in targets:
        Peer(bench, f"Node behind HAProxy, {target}", ["node", script, str(target)], target)
    port = free_port()
    servers = "\n".join(f"    server s{n} 127.0.0.1:{target}" for n, target in enumerate(targets))
    text = f"""global
    maxconn 8500
    hard-stop-after {PATIENCE}s
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen l
    bind 127.0.0.1:{port}
{servers}
"""
    path = write(bench, f"haproxy{port}.cfg", text)
    peer = Peer(bench, "HAProxy: kill -USR2", ["haproxy", "-W", "-f", path], port, config=text)
    return peer, settled(peer, signal.SIGUSR2)


def rows(bench):
    """(name, start), start() gives the peer and its reload: one after the other, so that none disturbs another."""
    script, cluster = peers.node_app(bench), write(bench, "reloading.js", CLUSTER)
    port = free_port()
    yield signalled(bench, "Node: cluster, fork and disconnect", ["node", cluster, str(port)], port, signal.SIGHUP)
    yield "Node: PM2, pm2 reload", lambda: by_pm2(bench, script)
    port = free_port()
    yield from ours(bench, "Node", ["node", script, str(port)], port, vias=("direct", "relay"))
    threads = 16
    for app, signal_ in ((apps.uvicorn(bench), signal.SIGHUP), (apps.gunicorn(bench, threads=threads, keep=True), signal.SIGHUP),
                         (apps.puma(bench, threads=threads), signal.SIGUSR1)):
        if not app:
            continue
        port = free_port()
        how = {signal.SIGHUP: "kill -HUP", signal.SIGUSR1: "kill -USR1"}[signal_]
        yield signalled(bench, f"{app.name}: {how}", app.alone(port, 2), port, signal_)
        port = free_port()
        yield from ours(bench, app.name, app.single(port), port)
    port = free_port()
    text = nginx_configuration(bench, port, 2)
    yield signalled(bench, "nginx: nginx -s reload", ["nginx", "-c", write(bench, f"nginx{port}.conf", text)], port, signal.SIGHUP, text)
    port = free_port()
    yield from ours(bench, "nginx", ["nginx", "-c", write(bench, f"nginx{port}.conf", nginx_configuration(bench, port, 1))], port,
                    "--stop-signal", "QUIT")
    java = apps.java(bench, threads=threads)
    if java:
        port = free_port()
        yield from ours(bench, java.name, java.single(port), port)
    yield "HAProxy: kill -USR2", lambda: by_haproxy(bench, script)


def nginx_configuration(bench, port, workers):
    return (f"worker_processes {workers}; daemon off; error_log /dev/null;\npid {bench.tmp}/{port}.pid;\n"
            "events { worker_connections 4000; }\n"
            f"http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }} }}\n")


def kept(bench, reloads, clients):
    cells = {}
    for name, start in rows(bench):
        peer, reload = start()
        load = subprocess.Popen([system.LOAD, "keep", peer.address, "--clients", str(clients), "--pause-ms", str(PAUSE_MS)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        load.stdout.readline()
        time.sleep(1)
        took, unfinished = 0, 0
        for _ in range(reloads):
            begin = time.monotonic()
            unfinished += not reload()
            took += time.monotonic() - begin
            time.sleep(0.3)
        figures = json.loads(load.communicate("")[0])
        figures.update(seconds=took / reloads, unfinished=unfinished)
        cells[name] = {metric: [value] for metric, value in figures.items()}
        print(name, figures, file=sys.stderr)
        bench.stop_all()
    bench.table("kept", f"{reloads} reloads of two processes, {clients} clients that keep their connection",
                {"lost": ("lost", 0, 1), "refused": ("refused", 0, 1), "hung": ("hung", 0, 1), "failed": ("not 200", 0, 1),
                 "served": ("served", 0, 1), "connections": ("connections opened", 0, 1), "seconds": ("seconds per reload", 1, 1),
                 "unfinished": (f"reloads not done after {PATIENCE} s", 0, 1)}, cells,
                f"Each client posts 16 bytes, waits {PAUSE_MS} ms, and posts again on the same connection. Lost: sent, at least in part, and the "
                "connection ended without a whole answer, so that no client may repeat it. A connection that the server has closed is "
                "not used again. Hung: no answer for 10 s.")
