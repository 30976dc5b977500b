"""From the start of the program to the first answer."""
import os, signal, subprocess

from harness import peers, system
from harness.bench import load, median
from harness.peers import free_port


def start(bench):
    origin = peers.answering_nginx(bench, "origin", free_port(), 2).port
    makers = {
        "roundsman rr, relay": lambda: peers.relay(bench, "rr", origin),
        "roundsman rr, direct (smallest server)": lambda: direct(bench),
        "HAProxy": lambda: peers.haproxy(bench, [origin]), "nginx stream": lambda: peers.stream(bench, [origin]),
        "roundsman rr, direct (Node)": lambda: direct_node(bench),
        "Node, cluster SCHED_RR": lambda: peers.node_cluster(bench, "Node, cluster SCHED_RR", "rr"),
        "Node alone": lambda: alone(bench),
    }
    commands = {}
    for name, make in makers.items():
        peer = make()
        commands[name] = peer.argv, peer.port
        peer.stop()

    class Started:
        def __init__(self, name):
            self.name = name

    def measure(started):
        argv, port = commands[started.name]
        policy = {"NODE_CLUSTER_SCHED_POLICY": "rr"} if "cluster" in started.name else {}
        asking = subprocess.Popen([system.LOAD, "first", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, **policy})
        out = asking.communicate(timeout=60)[0]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(12)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return {"first": system.json.loads(out)["first_ms"]}
    cells = bench.interleave([Started(name) for name in makers], measure, rounds=max(bench.rounds, 5))
    bench.table("start", "From the start of the program to the first answer", {"first": ("ms", 1, 1)}, cells)
    bench.target("start", "ms to the first answer, by relay", median(cells, "roundsman rr, relay", "first"), 20)
    bench.target("start", "ms to the first answer, direct", median(cells, "roundsman rr, direct (smallest server)", "first"), 20)


def direct(bench):
    port = free_port()
    return peers.direct(bench, "roundsman rr, direct (smallest server)", peers.minimal(port), port)


def direct_node(bench):
    port = free_port()
    return peers.direct(bench, "roundsman rr, direct (Node)", ["node", peers.node_app(bench), str(port)], port)


def alone(bench):
    port = free_port()
    return peers.Peer(bench, "Node alone", ["node", peers.node_app(bench), str(port)], port)
