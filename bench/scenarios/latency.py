"""Latency that a balancer adds: an open loop at half and at four fifths of what the slowest peer can do."""
from harness import peers
from harness.bench import load, median, wrk
from scenarios.relay import BODIES

PARTS = {"p50": "p50_us", "p99": "p99_us", "p999": "p999_us"}


def latency(bench):
    origin = peers.origin(bench, BODIES)
    running = [
        peers.relay(bench, "rr", origin.port), peers.relay(bench, "none", origin.port), peers.haproxy(bench, [origin.port]),
        peers.stream(bench, [origin.port]),
    ]
    capacity = min(wrk(peer, "small", bench.seconds, 50, "Connection: close") / bench.seconds for peer in running)
    for part in (0.5, 0.8):
        rate = capacity * part

        def measure(peer):
            figures = load("open", peer.address, "--rate", rate, "--seconds", bench.seconds)
            return {name: figures[key] for name, key in PARTS.items()}
        cells = bench.interleave([origin, *running], measure)
        without = cells.pop("origin")
        added = {name: {metric: [value - median({"o": without}, "o", metric) for value in values]
                        for metric, values in metrics.items()} for name, metrics in cells.items()}
        percent = round(part * 100)
        bench.table(f"latency-{percent}", f"Latency added at {percent} % of the slowest one's capacity",
                    {"p99": ("µs added at p99", 0, 1), "p50": ("p50", 0, 1), "p999": ("p99.9", 0, 1)}, added,
                    f"{rate:.0f} new connections per second, counted from when each should have begun. Without a balancer: "
                    + ", ".join(f"{name} {median({'o': without}, 'o', name):.0f} µs" for name in PARTS) + ".")
        ratio = median(added, "roundsman rr", "p99") / median(added, "HAProxy", "p99")
        bench.target(f"latency-{percent}", f"p99 added at {percent} %, rr to HAProxy", ratio, 0.8)
