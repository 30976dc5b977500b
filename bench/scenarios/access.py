"""The access log: the same connections with and without it."""
import os, random, statistics

from harness import peers
from harness.bench import Rejected
from harness.peers import free_port
from scenarios.relay import BODIES, cost

LIMIT = 3.0
# Many short turns: what the log adds is the median of pairs that follow each other, since the machine drifts by more than that.
TURNS = 15


def compared(bench, scenario, title, running, path):
    turns, seconds, bench.seconds = bench.rounds * TURNS, bench.seconds, 1
    order, cells = random.Random(1), {}
    for _ in range(turns):
        order.shuffle(running)
        for name, metrics in bench.interleave(running, lambda peer: cost(bench, peer, path, 50, "Connection: close"), 1).items():
            for metric, values in metrics.items():
                cells.setdefault(name, {}).setdefault(metric, []).extend(values)
    bench.seconds = seconds
    off = cells["off"]["cost"]
    for name in (peer.name for peer in running if peer.name != "off"):
        # A turn that was thrown away twice would shift the pairs.
        if len(cells[name]["cost"]) != len(off):
            raise Rejected(f"{name}: turns are missing")
        more = [one - other for one, other in zip(cells[name]["cost"], off)]
        cells[name]["more"] = [statistics.median(more)]
        cells[name]["error"] = [1.25 * statistics.stdev(more) / len(more) ** 0.5]
    columns = {"cost": ("CPU µs per connection, whole tree", 1, 1e6), "more": ("more than off, median of pairs", 2, 1e6),
               "error": ("standard error of that", 2, 1e6), "rate": ("connections/s", 0, 1)}
    bench.table(scenario, title, columns, cells, f"{turns} turns of 1 s each, in random order. \"off, again\" is the same program a second "
                "time: what it differs by is the machine's.")
    for name in (peer.name for peer in running if not peer.name.startswith("off")):
        bench.target(scenario, f"{scenario}: CPU µs per connection that the log ({name}) adds", cells[name]["more"][0] * 1e6, LIMIT)


def logs(bench):
    """Options for each kind of log."""
    def to(name, *more):
        return ["--access-log", os.path.join(bench.tmp, f"{free_port()}-{name}.log"), "--rotate-size", "1GiB", *more]
    return {"off": [], "off, again": [], "text": to("text"), "json": to("json", "--access-format", "json"), "1%": to("sample", "--access-sample", "1%")}


def relay(bench):
    origin = peers.origin(bench, BODIES)
    running = []
    for name, options in logs(bench).items():
        port = free_port()
        arguments = ["-l", f"127.0.0.1:{port}", "-i", "2", *options, "-u", f"127.0.0.1:{origin.port}"]
        running.append(peers.roundsman(bench, name, arguments, port))
    compared(bench, "access-relay", "Short connections by relay, with and without an access log", running, "small")


def direct(bench):
    running = []
    for name, options in logs(bench).items():
        port = free_port()
        arguments = ["-i", "2", "--via", "direct", *options, "--", *peers.minimal(port)]
        running.append(peers.roundsman(bench, name, arguments, port))
    compared(bench, "access-direct", "Hand-off into the smallest server, with and without an access log", running, "")
