"""Sockets handed over: into Node, nginx, and the smallest server, which shows the ceiling of dispatching."""
from harness import peers, system
from harness.bench import median, wrk
from harness.peers import free_port

COLUMNS = {"rate": ("requests/s", 0, 1), "tree": ("CPU µs per request, whole tree", 1, 1e6),
           "dispatcher": ("of it the dispatcher", 1, 1e6)}


def measured(bench):
    """One request per connection."""
    def measure(peer):
        before = peer.cpu(), system.own_cpu(peer.pid)
        units = wrk(peer, "", bench.seconds, 50, "Connection: close")
        after = peer.cpu(), system.own_cpu(peer.pid)
        tree, own = ((b - a) / max(units, 1) for a, b in zip(before, after))
        return {"rate": units / bench.seconds, "tree": tree, "dispatcher": own}
    return measure


def node(bench):
    app = peers.node_app(bench)
    ports = [free_port(), free_port()]
    running = [
        peers.direct(bench, "roundsman rr", ["node", app, str(ports[0])], ports[0]),
        peers.direct(bench, "roundsman none", ["node", app, str(ports[1])], ports[1], "none"),
        peers.node_cluster(bench, "Node, cluster SCHED_RR", "rr"),
        peers.node_cluster(bench, "Node, cluster SCHED_NONE", "none"),
        peers.pm2(bench),
    ]
    cells = bench.interleave(running, measured(bench))
    bench.table("handoff-node", "Hand-off into Node (2 processes)", COLUMNS, cells)
    ours, primary = (median(cells, "roundsman rr", m) for m in ("rate", "dispatcher"))
    rr = "Node, cluster SCHED_RR"
    bench.target("handoff-node", "requests/s, Node behind rr to SCHED_RR", ours / median(cells, rr, "rate"), 1.6, least=True)
    bench.target("handoff-node", "requests/s, Node behind rr to PM2", ours / median(cells, "Node, PM2", "rate"), 2.5, least=True)
    bench.target("handoff-node", "CPU of our master to Node's primary", primary / median(cells, rr, "dispatcher"), 0.125)


def nginx(bench):
    ours, port = free_port(), free_port()
    alone = peers.answering_nginx(bench, "nginx alone, 2 workers", port, 2)
    text = peers.answering_nginx(bench, "nginx behind roundsman rr", ours, 1)
    text.stop()
    running = [
        peers.direct(bench, "roundsman rr, nginx with 1 worker × 2", text.argv, ours), alone,
        peers.haproxy(bench, [port], "HAProxy before that nginx"),
    ]
    cells = bench.interleave(running, measured(bench))
    bench.table("handoff-nginx", "Hand-off into nginx", COLUMNS, cells)
    ratio = median(cells, running[0].name, "rate") / median(cells, alone.name, "rate")
    bench.target("handoff-nginx", "requests/s, nginx behind rr to nginx alone", ratio, 0.97, least=True)


def minimal(bench):
    port, alone, none = free_port(), free_port(), free_port()
    running = [
        peers.direct(bench, "roundsman rr", peers.minimal(port), port),
        peers.direct(bench, "roundsman none", peers.minimal(none), none, "none"),
        peers.Peer(bench, "the server alone, 1 process", peers.minimal(alone), alone),
    ]
    cells = bench.interleave(running, measured(bench))
    bench.table("handoff-minimal", "Hand-off into the smallest server: the ceiling of dispatching", COLUMNS, cells)
