"""Memory per idle connection, at 8,000 of them that have each passed one request."""
import subprocess, time

from harness import peers, system
from harness.bench import Rejected, median
from scenarios.relay import BODIES

CONNECTIONS = 8000


class Held:
    """Connections kept by our generator for as long as the block lasts."""

    def __init__(self, peer, connections):
        self.peer, self.connections = peer, connections

    def __enter__(self):
        command = [system.LOAD, "hold", self.peer.address, "--connections", str(self.connections)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise Rejected("hold: " + self.process.communicate()[1].strip())

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        # Until all of them are closed on every side.
        time.sleep(1.5)


def idle(bench):
    origin = peers.origin(bench, BODIES)
    running = [peer for peer in peers.relays(bench, origin.port) if peer.name not in ("HAProxy splice", "nginx stream reuseport")]

    def measure(peer):
        before, kernel = system.pss(peer.pid), system.kernel_memory()
        with Held(peer, CONNECTIONS):
            time.sleep(0.5)
            after, kernel_after = system.pss(peer.pid), system.kernel_memory()
        return {"rss": (after - before) / CONNECTIONS, "kernel": (kernel_after - kernel) / CONNECTIONS}
    cells = bench.interleave(running, measure, rounds=3)
    # What client and origin need is the same for all.
    with_origin = bench.interleave([origin], measure, rounds=3)["origin"]
    base = median({"o": with_origin}, "o", "kernel")
    for metrics in cells.values():
        metrics["kernel"] = [value - base for value in metrics["kernel"]]
        # The first time a process grows; what it keeps is there for the second.
        metrics["rss"] = metrics["rss"][:1]
    bench.table("idle", f"Memory per idle connection, at {CONNECTIONS:,}",
                {"rss": ("bytes of the process", 0, 1), "kernel": ("bytes of the kernel", 0, 1)}, cells,
                "The kernel's part is what it grows by beyond the same connections straight to the origin.")
    ratio = median(cells, "roundsman rr", "rss") / median(cells, "HAProxy", "rss")
    bench.target("idle", "memory of the process per idle connection, rr to HAProxy", ratio, 0.5)
