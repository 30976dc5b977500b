"""Whether the load is even: open connections with uneven lifetimes, a worker that is stalled, a burst."""
import json, os, signal, socket, statistics, subprocess, threading, time

from harness import peers, system
from harness.bench import load
from harness.peers import free_port

WORKERS, CONNECTIONS, RATE = 8, 10_000, 1_000


def open_by_slot(peer):
    """Open connections of each slot, as `ls` has it."""
    control = peer.argv[peer.argv.index("--control") + 1]
    state = json.loads(system.sh(system.BINARY, "ls", "--json", "--control", control))
    return [slot["open"] for slot in state["services"][0]["slots"]]


def open_by_server(bench, peer):
    """The same of HAProxy's servers, from its statistics."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{bench.tmp}/{peer.port}.stats")
        s.sendall(b"show stat\n")
        text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    head, *rows = (line.split(",") for line in text.strip().splitlines())
    at = head.index("scur")
    return [int(row[at]) for row in rows if row[1].startswith("s")]


def balance(bench):
    """The largest share over the mean, sampled all the time that connections come and go."""
    servers = [free_port() for _ in range(WORKERS)]
    for port in servers:
        peers.Peer(bench, f"server {port}", peers.minimal(port, "--keep"), port)
        bench.commands.pop(f"server {port}")
    running, ask = [], {}
    for policy in ("rr", "least-conn", "none"):
        port = free_port()
        peer = peers.direct(bench, f"roundsman {policy}", peers.minimal(port, "--keep"), port, policy, WORKERS)
        running.append(peer)
        ask[peer.name] = lambda peer=peer: open_by_slot(peer)
    for way in ("roundrobin", "leastconn"):
        peer = peers.haproxy(bench, servers, f"HAProxy {way}", balance=way)
        running.append(peer)
        ask[peer.name] = lambda peer=peer: open_by_server(bench, peer)

    def measure(peer):
        samples, done = [], threading.Event()

        def watch():
            while not done.wait(0.1):
                counts = ask[peer.name]()
                if sum(counts) > 20 * WORKERS:
                    samples.append((max(counts) / (sum(counts) / WORKERS), min(counts) / (sum(counts) / WORKERS)))
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load("lifetimes", peer.address, "--connections", CONNECTIONS, "--rate", RATE)
        finally:
            done.set()
            watcher.join()
        time.sleep(0.3)
        return {"max": statistics.mean(high for high, _ in samples), "worst": max(high for high, _ in samples),
                "min": statistics.mean(low for _, low in samples)}
    cells = bench.interleave(running, measure, rounds=2)
    bench.table("balance", f"Open connections: {CONNECTIONS:,} with uneven lifetimes over {WORKERS} workers",
                {"max": ("busiest / mean", 3, 1), "worst": ("worst moment", 2, 1), "min": ("idlest / mean", 3, 1)}, cells,
                f"{RATE:,} a second; nine of ten live up to 0.2 s, one 2 to 6 s. Sampled ten times a second while more than "
                f"{20 * WORKERS} are open; means over the samples.")


def stalled(bench):
    """Four workers, one of them stopped: what the others' clients notice."""
    ports = [free_port() for _ in range(3)]
    origins = [free_port() for _ in range(4)]
    behind = []
    for port in origins:
        behind.append(peers.Peer(bench, f"server {port}", peers.minimal(port), port))
        bench.commands.pop(f"server {port}")
    rr = peers.direct(bench, "roundsman rr", peers.minimal(ports[0]), ports[0], "rr", 4)
    least = peers.direct(bench, "roundsman least-conn", peers.minimal(ports[1]), ports[1], "least-conn", 4)
    cluster = peers.node_cluster(bench, "Node, cluster SCHED_RR", "rr", 4)
    none = peers.node_cluster(bench, "Node, cluster SCHED_NONE", "none", 4)
    proxy = peers.haproxy(bench, origins, "HAProxy roundrobin")
    victims = {peer.name: system.tree(peer.pid)[-1] for peer in (rr, least, cluster, none)}
    victims[proxy.name] = behind[-1].pid

    def measure(peer):
        os.kill(victims[peer.name], signal.SIGSTOP)
        out = None
        try:
            command = [system.LOAD, "open", peer.address, "--rate", "300", "--seconds", str(bench.seconds)]
            out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        finally:
            os.kill(victims[peer.name], signal.SIGCONT)
            time.sleep(0.3)
        total = out["served"] + out["errors"]
        return {"lost": out["errors"] / total, "p99": out["p99_us"] / 1e3, "max": out["max_us"] / 1e3}
    cells = bench.interleave([rr, least, cluster, none, proxy], measure, rounds=3)
    bench.table("stalled", "One of four workers is stopped (SIGSTOP), 300 connections a second",
                {"lost": ("% not answered within 10 s", 1, 100), "p99": ("ms at p99 of the others", 2, 1),
                 "max": ("ms at most", 1, 1)}, cells,
                "A worker that is stopped has to keep what it had received already; everything else goes to the others.")


def burst(bench):
    """4,000 clients at the same moment."""
    ports = [free_port() for _ in range(2)]
    alone = free_port()
    peers.answering_nginx(bench, "nginx alone, 2 workers", alone, 2)
    running = [
        peers.direct(bench, "roundsman rr, direct", peers.minimal(ports[0]), ports[0]),
        peers.relay(bench, "rr", alone, "roundsman rr, relay"), peers.relay(bench, "none", alone, "roundsman none, relay"),
        peers.haproxy(bench, [alone]), peers.stream(bench, [alone]),
        peers.node_cluster(bench, "Node, cluster SCHED_RR", "rr"), bench.running[0],
    ]

    def measure(peer):
        before = peer.cpu()
        figures = load("burst", peer.address, "--connections", 4000)
        time.sleep(0.2)
        return {"all": figures["seconds"], "p50": figures["p50_us"] / 1e6, "cpu": (peer.cpu() - before) / 4000}
    cells = bench.interleave(running, measure)
    bench.table("burst", "4,000 connects at once", {"all": ("s until the last answer", 3, 1), "p50": ("s until half are answered", 3, 1),
                                                    "cpu": ("CPU µs per connection", 1, 1e6)}, cells)
