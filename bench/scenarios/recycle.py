"""Workers that are replaced after so many connections: what their clients notice."""
from harness import apps, system
from harness.bench import load_with_errors
from harness.peers import Peer, free_port

WORKERS, CLIENTS, EVERY, PER_SECOND = 4, 50, 250, 5_000


def recycle(bench):
    if not system.knows("--max-served"):
        return
    requests = PER_SECOND * bench.seconds
    rows, ours = [], []
    for kind in ("sync", "gthread"):
        app, port = apps.gunicorn(bench, threads=1 if kind == "sync" else 4, kind=kind), free_port()
        *command, program = app.alone(port, WORKERS)
        own = ["--max-requests", str(EVERY), "--max-requests-jitter", str(EVERY // 10)]
        rows.append(Peer(bench, f"gunicorn {kind}, --max-requests {EVERY}", [*command, *own, program], port, {"PYTHONPATH": bench.tmp}))
        options = ("--max-served", str(EVERY), "--recycle-jitter", "10%", "--min-uptime", "100ms", "--max-surge", "2")
        ours.append(app.behind(bench, WORKERS, *options))

    def measure(peer):
        figures = load_with_errors("who", peer.address, "--connections", requests, "--clients", CLIENTS)
        return {"lost": figures["errors"], "workers": max(len(figures["counts"]) - WORKERS, 0), "served": figures["served"],
                "p50": figures["p50_us"], "p99": figures["p99_us"], "max": figures["max_us"] or 0}
    cells = bench.interleave(rows + ours, measure)
    bench.table("recycle", f"Workers replaced after about {EVERY} connections, {CLIENTS} clients",
                {"lost": ("requests lost", 0, 1), "workers": ("workers replaced", 0, 1), "served": ("requests served", 0, 1),
                 "p50": ("p50 ms", 1, 1e-3), "p99": ("p99 ms", 1, 1e-3), "max": ("longest ms", 0, 1e-3)}, cells,
                f"{requests:,} requests, one per connection, in a closed loop; a request is lost when its connection ends without a "
                "whole answer.")
    lost = [max(cells[peer.name]["lost"]) for peer in ours if peer.name in cells]
    if lost:
        bench.target("recycle", "requests lost, roundsman", max(lost), 0)
