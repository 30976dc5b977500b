"""How evenly connections are spread over the processes of real servers, by their answers."""
from harness import apps
from harness.bench import load

WORKERS = 4
# Requests: all, and at a time. Connections that stay: all.
REQUESTS, CLIENTS, KEPT = 4_000, 32, 400


def shares(figures):
    """Busiest and idlest over the mean; a worker that answered nothing counts."""
    counts = sorted(figures["counts"].values())
    counts = [0] * (WORKERS - len(counts)) + counts
    mean = sum(counts) / WORKERS
    return counts[-1] / mean, counts[0] / mean


def even(bench):
    kinds = [apps.gunicorn(bench, threads=4, keep=True), apps.uvicorn(bench), apps.puma(bench), apps.node(bench, False)]
    cells = {}
    for app in filter(None, kinds):
        running = [app.by_itself(bench, WORKERS)]
        if app.name.startswith("Node"):
            running += [app.by_itself(bench, WORKERS, "SCHED_NONE", {"NODE_CLUSTER_SCHED_POLICY": "none"})]
        running += [app.behind(bench, WORKERS), app.behind(bench, WORKERS, policy="least-conn")]

        def measure(peer):
            busiest, idlest = shares(load("who", peer.address, "--connections", REQUESTS, "--clients", CLIENTS))
            kept, kept_idlest = shares(load("who", peer.address, "--connections", KEPT, "--clients", 1, "--keep"))
            return {"busiest": busiest, "idlest": idlest, "kept": kept, "kept_idlest": kept_idlest}
        cells.update(bench.interleave(running, measure, rounds=min(bench.rounds, 3)))
        bench.stop_all()
    bench.table("even", f"Who gets how many, {WORKERS} processes",
                {"busiest": ("requests: busiest / mean", 3, 1), "idlest": ("idlest / mean", 3, 1),
                 "kept": ("open: busiest / mean", 3, 1), "kept_idlest": ("idlest / mean", 3, 1)}, cells,
                f"{REQUESTS:,} requests with a connection each, {CLIENTS} at a time; {KEPT} connections, opened one after the other, that "
                "stay open. Counted by the process that answers.")
