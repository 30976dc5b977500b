"""The access log: the same connections with and without it."""
import os

from harness import peers
from harness.bench import median
from harness.peers import free_port
from scenarios.relay import BODIES, cost

LIMIT = 3.0


def compared(bench, scenario, title, running, path):
    cells = bench.interleave(running, lambda peer: cost(bench, peer, path, 50, "Connection: close"))
    bench.table(scenario, title, {"cost": ("CPU µs per connection, whole tree", 1, 1e6), "rate": ("connections/s", 0, 1)}, cells)
    off = median(cells, "off", "cost")
    for name in (peer.name for peer in running if peer.name != "off"):
        more = (median(cells, name, "cost") - off) * 1e6
        bench.target(scenario, f"{scenario}: CPU µs per connection that the log ({name}) adds", more, LIMIT)


def logs(bench):
    """Options for each kind of log."""
    def to(name, *more):
        return ["--access-log", os.path.join(bench.tmp, f"{free_port()}-{name}.log"), "--rotate-size", "1GiB", *more]
    return {"off": [], "text": to("text"), "json": to("json", "--access-format", "json"), "1%": to("sample", "--access-sample", "1%")}


def access(bench):
    origin = peers.origin(bench, BODIES)
    running = []
    for name, options in logs(bench).items():
        port = free_port()
        arguments = ["-l", f"127.0.0.1:{port}", "-i", "2", *options, "-u", f"127.0.0.1:{origin.port}"]
        running.append(peers.roundsman(bench, name, arguments, port))
    compared(bench, "access-relay", "Short connections by relay, with and without an access log", running, "small")
    running = []
    for name, options in logs(bench).items():
        port = free_port()
        arguments = ["-i", "2", "--via", "direct", *options, "--", *peers.minimal(port)]
        running.append(peers.roundsman(bench, name, arguments, port))
    compared(bench, "access-direct", "Hand-off into the smallest server, with and without an access log", running, "")
