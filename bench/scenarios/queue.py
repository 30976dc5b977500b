"""Nobody waits behind a busy worker while another is free: fast requests beside slow ones, and the queue beside an ideal one."""
from harness import apps, peers, system
from harness.bench import load, median
from harness.peers import free_port

WORKERS = 2
FAST_MS = 10
# The quality of the queue: servers, mean service time, share of the time that they are busy, arrivals.
SERVERS, MEAN_MS, LOAD, ARRIVALS = 8, 20, 0.8, 20_000
SLACK_MS = 2


def queue(bench):
    """One client on a path of 300 ms, four on a fast one, closed loops, one request per connection."""
    limited = ("--worker-conns", "1")
    kinds = [apps.gunicorn(bench), apps.uvicorn(bench), apps.puma(bench), apps.node(bench, True), apps.node(bench, False),
             apps.java(bench)]
    cells, notes = {}, []
    for name, app in zip(("gunicorn", "uvicorn", "Puma", "Node", "Node", "Java"), kinds):
        if not app:
            notes.append(f"{name} is left out: it cannot be installed here.")
            continue
        running = [app.by_itself(bench, WORKERS), app.behind(bench, WORKERS)]
        running += [app.behind(bench, WORKERS, *limited)] if system.knows("--worker-conns") else []

        def measure(peer):
            figures = load("beside", peer.address, "--slow", 1, "--fast", 4, "--seconds", bench.seconds)
            return {"p99": figures["p99_us"], "p50": figures["p50_us"], "rate": figures["rate"], "slow": figures["slow_p50_us"]}
        cells.update(bench.interleave(running, measure, rounds=min(bench.rounds, 3)))
        bench.stop_all()
    bench.table("queue", f"Fast requests beside slow ones, {WORKERS} processes that do one thing at a time",
                {"p99": ("ms at p99, fast", 1, 1e-3), "p50": ("ms at p50", 2, 1e-3), "rate": ("fast requests/s", 0, 1),
                 "slow": ("ms at p50, slow", 0, 1e-3)}, cells,
                "One client asks for a path that takes 300 ms, four for one that takes nothing, each one after the other, with a "
                "connection per request. " + " ".join(notes))
    for name in cells:
        if "roundsman" in name:
            bench.target("queue", f"{name}: ms at p99 of fast requests", median(cells, name, "p99") / 1e3, FAST_MS)


def fifo(bench):
    """Eight servers that sleep, beside an ideal queue with the same arrivals and the same service times."""
    behind = [free_port() for _ in range(SERVERS)]
    for port in behind:
        peers.Peer(bench, f"server {port}", peers.minimal(port, "--sleep"), port)
        bench.commands.pop(f"server {port}")

    def ours(policy, *options):
        port = free_port()
        arguments = ["-i", str(SERVERS), "-p", policy, "--via", "direct", *options, "--", *peers.minimal(port, "--sleep")]
        return peers.roundsman(bench, " ".join([f"roundsman {policy}", *options]), arguments, port)
    limited = [ours("rr", "--worker-conns", "1")] if system.knows("--worker-conns") else []
    running = [
        *limited, ours("rr"), ours("least-conn"), ours("none"),
        peers.haproxy(bench, behind, "HAProxy roundrobin"), peers.haproxy(bench, behind, "HAProxy leastconn", balance="leastconn"),
        peers.haproxy(bench, behind, "HAProxy leastconn, maxconn 1", balance="leastconn", server="maxconn 1"),
    ]

    def measure(peer):
        return load("poisson", peer.address, "--connections", ARRIVALS, "--servers", SERVERS, "--mean-ms", MEAN_MS, "--load", LOAD,
                    "--seed", 16)
    cells = bench.interleave(running, measure, rounds=1)
    bench.table("fifo", f"Waiting time beside an ideal queue: {SERVERS} servers, {ARRIVALS:,} random arrivals, {LOAD:.0%} busy",
                {"mean_ms": ("ms waited, mean", 2, 1), "ideal_mean_ms": ("ideal", 2, 1), "p99_ms": ("ms waited, p99", 1, 1),
                 "ideal_p99_ms": ("ideal p99", 1, 1)}, cells,
                f"Service times are random (exponential, mean {MEAN_MS} ms); each server serves one request at a time and accepts as if "
                "it could serve more. The ideal queue is a simulation with the recorded arrivals and service times of the same run: "
                "first come, first served, a free server takes the first one at once.")
    for peer in limited:
        for metric, what in (("mean_ms", "mean"), ("p99_ms", "p99")):
            over = median(cells, peer.name, metric) - median(cells, peer.name, f"ideal_{metric}")
            bench.target("fifo", f"--worker-conns 1: ms waited beyond the ideal queue, {what}", over, SLACK_MS)
