"""What a connection costs the master when there are many slots, or many connections open already."""
from harness import peers, system
from harness.bench import load, median, wrk
from harness.peers import free_port
from scenarios.idle import Held

SLOTS = [2, 8, 32, 128, 256]
OPEN = [10, 100, 1000, 8000]


def dispatch(bench, peer):
    """With 50 clients at a time, and with one: then every connection finds its worker asleep, however many there are."""
    figures = {}
    for clients, suffix in ((50, ""), (1, "-one")):
        before = system.own_cpu(peer.pid)
        units = wrk(peer, "", bench.seconds, clients, "Connection: close")
        figures["cost" + suffix] = (system.own_cpu(peer.pid) - before) / max(units, 1)
        figures["rate" + suffix] = units / bench.seconds
    return figures


def slots(bench):
    running = []
    for count in SLOTS:
        port = free_port()
        running.append(peers.direct(bench, f"roundsman rr, {count} slots", peers.minimal(port), port, instances=count))
    cells = bench.interleave(running, lambda peer: dispatch(bench, peer))
    bench.table("slots", "Cost of a connection by the number of slots (smallest server, direct)",
                {"cost": ("CPU µs of the master per connection", 2, 1e6), "rate": ("connections/s", 0, 1),
                 "cost-one": ("µs, one client at a time", 2, 1e6), "rate-one": ("connections/s", 0, 1)}, cells,
                "With 50 clients two workers are always awake and 256 mostly asleep: waking one is part of its hand-off.")
    for metric, how in (("cost", "50 clients"), ("cost-one", "one client")):
        few, many = (median(cells, f"roundsman rr, {count} slots", metric) for count in (SLOTS[0], SLOTS[-1]))
        bench.target("slots", f"cost per connection at 256 slots to that at 2, {how}", many / few, 1.1)


def open_connections(bench):
    port = free_port()
    keeping = peers.direct(bench, "roundsman rr", peers.minimal(port, "--keep"), port)
    cells = {}
    for count in OPEN:
        with Held(keeping, count):
            for name, metrics in bench.interleave([keeping], lambda peer: closing(bench, peer)).items():
                cells[f"{name}, {count} open"] = metrics
    bench.table("open", "Cost of a connection by the number that are open (smallest server, direct)",
                {"cost": ("CPU µs of the master per connection", 2, 1e6), "rate": ("connections/s", 0, 1)}, cells)
    few, many = (median(cells, f"roundsman rr, {count} open", "cost") for count in (OPEN[0], OPEN[-1]))
    bench.target("open", "cost per connection at 8,000 open to that at 10", many / few, 1.1)


def closing(bench, peer):
    """The client closes: the server keeps what it has."""
    before = system.own_cpu(peer.pid)
    figures = load("burst", peer.address, "--connections", 2000, "--once")
    return {"cost": (system.own_cpu(peer.pid) - before) / 2000, "rate": 2000 / figures["seconds"]}
