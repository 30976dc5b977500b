"""Bytes carried: short connections, keep-alive requests, bulk, and a sweep over sizes."""
from harness import peers
from harness.bench import median, wrk

BULK = 64 << 20
SIZES = [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
BODIES = {"small": 128, "bulk": BULK, **{f"s{size}": size for size in SIZES}}


def started(bench):
    origin = peers.origin(bench, BODIES)
    return peers.relays(bench, origin.port)


def cost(bench, peer, path, connections, *headers, unit=1):
    """CPU seconds of the peer per unit, and units per second."""
    before = peer.cpu()
    requests = wrk(peer, path, bench.seconds, connections, *headers)
    units = max(requests * unit, 1e-9)
    return {"cost": (peer.cpu() - before) / units, "rate": units / bench.seconds}


def better(cells, metric, *names):
    return min(median(cells, name, metric) for name in names if name in cells)


HAPROXY, NGINX = ("HAProxy", "HAProxy splice"), ("nginx stream", "nginx stream reuseport")


def short(bench):
    cells = bench.interleave(started(bench), lambda peer: cost(bench, peer, "small", 50, "Connection: close"))
    bench.table("short", "Short connections by relay, one request each",
                {"cost": ("CPU µs per connection", 1, 1e6), "rate": ("connections/s", 0, 1)}, cells)
    rival = better(cells, "cost", *HAPROXY, *NGINX)
    for policy, limit, stretch in (("rr", 1.0, 0.85), ("none", 0.95, 0.80)):
        ratio = median(cells, f"roundsman {policy}", "cost") / rival
        bench.target("short", f"relay per connection, {policy}, to the better of HAProxy and nginx", ratio, limit, stretch)


def keepalive(bench):
    cells = bench.interleave(started(bench), lambda peer: cost(bench, peer, "small", 50))
    bench.table("keepalive", "Keep-alive requests by relay",
                {"cost": ("CPU µs per request", 2, 1e6), "rate": ("requests/s", 0, 1)}, cells)
    ratio = median(cells, "roundsman rr", "cost") / better(cells, "cost", *HAPROXY, *NGINX)
    bench.target("keepalive", "relay per keep-alive request, rr, to the better of HAProxy and nginx", ratio, 0.85, 0.75)


def bulk(bench):
    running = started(bench)
    for streams in (1, 16):
        cells = bench.interleave(running, lambda peer: cost(bench, peer, "bulk", streams, unit=BULK / 1e9))
        bench.table(f"bulk-{streams}", f"Bodies of 64 MB, {streams} at a time",
                    {"cost": ("CPU s per GB", 3, 1), "rate": ("GB/s", 2, 1)}, cells)
        ratio = median(cells, "roundsman rr", "cost") / better(cells, "cost", *HAPROXY, *NGINX)
        bench.target(f"bulk-{streams}", f"bulk, {streams} streams, rr, to the better of HAProxy and nginx", ratio, 0.5)


def sweep(bench):
    origin = peers.origin(bench, BODIES).port
    only = [
        peers.relay(bench, "rr", origin),
        peers.haproxy(bench, [origin]),
        peers.haproxy(bench, [origin], "HAProxy splice", "option splice-auto"),
    ]
    by_size = {size: bench.interleave(only, lambda peer: cost(bench, peer, f"s{size}", 16, unit=size)) for size in SIZES}
    cells = {peer.name: {str(size): by_size[size][peer.name]["cost"] for size in SIZES} for peer in only}

    def label(size):
        return f"{size} B" if size < 1 << 10 else f"{size >> 10} KB" if size < 1 << 20 else "1 MB"
    bench.table("sweep", "CPU ns per byte by the size of answers (keep-alive)",
                {str(size): (label(size), 3 if size > 4096 else 1, 1e9) for size in SIZES}, cells, main=str(SIZES[4]))
    for size in SIZES:
        rival = better(by_size[size], "cost", *(peer.name for peer in only[1:]))
        ratio = median(by_size[size], "roundsman rr", "cost") / rival
        bench.target("sweep", f"{label(size)}: rr to the better of HAProxy with and without splice", ratio, 1.05)
