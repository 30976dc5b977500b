"""Workers that are replaced after so many connections: what their clients notice."""
import json, subprocess

from harness import apps, system
from harness.peers import Peer, free_port

WORKERS, CLIENTS, EVERY, REQUESTS = 4, 50, 250, 50_000


def recycle(bench):
    if not system.knows("--max-served"):
        return
    gthread = apps.gunicorn(bench, threads=4)
    own = ["--max-requests", str(EVERY), "--max-requests-jitter", str(EVERY // 10)]
    rows = []
    for kind in ("sync", "gthread"):
        port = free_port()
        command = gthread.alone(port, WORKERS)
        command[command.index("-k") + 1] = kind
        rows.append(Peer(bench, f"gunicorn {kind}, --max-requests {EVERY}", command[:-1] + own + command[-1:], port, {"PYTHONPATH": bench.tmp}))
    options = ("--max-served", str(EVERY), "--recycle-jitter", "10%", "--min-uptime", "100ms", "--max-surge", "2")
    rows.append(gthread.behind(bench, WORKERS, *options))

    def measure(peer):
        command = [system.LOAD, "who", peer.address, "--connections", str(REQUESTS), "--clients", str(CLIENTS)]
        figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return {"lost": figures["errors"], "workers": len(figures["counts"]) - WORKERS, "served": figures["served"]}
    cells = bench.interleave(rows, measure, rounds=1)
    bench.table("recycle", f"Workers replaced after about {EVERY} connections, {CLIENTS} clients",
                {"lost": ("requests lost", 0, 1), "workers": ("workers replaced", 0, 1), "served": ("requests served", 0, 1)}, cells,
                f"{REQUESTS:,} requests, one per connection; a request is lost when its connection ends without a whole answer.")
    ours = rows[-1].name
    bench.target("recycle", "requests lost, roundsman", cells[ours]["lost"][0], 0)
