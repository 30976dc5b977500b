"""What `--drain-idle move` costs while nothing is replaced: connections are watched, or relayed bytes followed."""
import random, socket, statistics, time

from harness import peers
from harness.bench import Rejected
from harness.peers import Peer, free_port
from scenarios.relay import BODIES, cost

# Short turns in random order: what counts is the median of ratios of turns that follow each other.
TURNS = 2
ROWS = {"close": [], "close, again": [], "move": ["--drain-idle", "move"]}
LIMIT = 1.05
GB = 1 << 30

# Bodies of 1 GiB with a length, and in chunks of a size.
ORIGIN = """
import socket, sys, threading
def chunk(size):
    return b'%x\\r\\n' % size + b'x' * size + b'\\r\\n'
KINDS = {b'/length': (b'Content-Length: %d' % (1 << 30), b'x' * (1 << 20), b'')}
for size in (65536, 8192):
    KINDS[b'/chunks-%d' % size] = b'Transfer-Encoding: chunked', chunk(size) * ((1 << 20) // size), b'0\\r\\n\\r\\n'
def serve(client):
    data = b''
    while got := client.recv(65536):
        data += got
        while b'\\r\\n\\r\\n' in data:
            head, _, data = data.partition(b'\\r\\n\\r\\n')
            field, part, end = KINDS[head.split(b' ')[1]]
            client.sendall(b'HTTP/1.1 200 OK\\r\\n' + field + b'\\r\\n\\r\\n')
            for _ in range(1024):
                client.sendall(part)
            client.sendall(end)
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=100)
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"""


def compared(bench, scenario, title, running, measure, unit):
    turns, seconds, bench.seconds = bench.rounds * TURNS, bench.seconds, 1
    order, cells = random.Random(1), {}
    running = list(running)
    for _ in range(turns):
        order.shuffle(running)
        for name, metrics in bench.interleave(running, measure, 1).items():
            for metric, values in metrics.items():
                cells.setdefault(name, {}).setdefault(metric, []).extend(values)
    bench.seconds = seconds
    cells = {name: cells[name] for name in ROWS}
    close = cells["close"]["cost"]
    for name in list(ROWS)[1:]:
        if len(cells[name]["cost"]) != len(close):
            raise Rejected(f"{name}: turns are missing")
        ratios = [one / other for one, other in zip(cells[name]["cost"], close)]
        cells[name]["ratio"] = [statistics.median(ratios)]
        cells[name]["error"] = [1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5]
    heading, factor, rate = unit
    bench.table(scenario, title, {"cost": (heading, 3 if factor == 1 else 2, factor), "ratio": ("to that of close, median of pairs", 3, 1),
                                  "error": ("standard error of that", 3, 1), "rate": (rate, 2 if factor == 1 else 0, 1)}, cells,
                f"{turns} turns in random order, the whole tree. \"close, again\" is the same program a second time: what it differs "
                "by is the machine's.")
    bench.target(scenario, f"{scenario}: CPU with `move` to that with `close`", cells["move"]["ratio"][0], LIMIT)


def requests(bench, scenario, title, running, path):
    for suffix, what, headers in (("kept", "keep-alive requests", []), ("short", "one request per connection", ["Connection: close"])):
        compared(bench, f"{scenario}-{suffix}", f"{title}, {what}", running, lambda peer: cost(bench, peer, path, 50, *headers),
                 ("CPU µs per request", 1e6, "requests/s"))


def rows(bench, arguments):
    """A daemon for each row; `arguments(port)`: what else it gets, before and after the options."""
    running = []
    for name, options in ROWS.items():
        port = free_port()
        before, after = arguments(port)
        running.append(peers.roundsman(bench, name, [*before, *options, *after], port))
    return running


def nginx(bench, port):
    body = ("http { access_log off; keepalive_requests 1000000000; server { "
            f"listen 127.0.0.1:{port} backlog=8192; location / {{ return 200 'ok'; }} }} }}")
    text = (f"worker_processes 1; worker_rlimit_nofile 20000; daemon off; error_log /dev/null;\npid {bench.tmp}/{port}.pid;\n"
            f"events {{ worker_connections 18000; }}\n{body}\n")
    return ["nginx", "-c", peers.write(bench, f"nginx{port}.conf", text)]


def move(bench):
    direct = ["-i", "2", "--via", "direct"]
    script = peers.node_app(bench)
    requests(bench, "move-node", "Node, direct", rows(bench, lambda port: (direct, ["--", "node", script, str(port)])), "")
    bench.stop_all()
    single = ["-i", "1", "--via", "direct", "--stop-signal", "QUIT"]
    requests(bench, "move-nginx", "nginx, direct", rows(bench, lambda port: (single, ["--", *nginx(bench, port)])), "")
    bench.stop_all()
    origin = peers.origin(bench, BODIES)
    relay = lambda port: (["-l", f"127.0.0.1:{port}", "-i", "2"], ["-u", f"127.0.0.1:{origin.port}"])
    requests(bench, "move-relay", "Relay", rows(bench, relay), "small")


def received(peer, path):
    """One answer, whose body the kernel throws away unread."""
    size = GB
    if path != "length":
        chunk = int(path.split("-")[1])
        size += GB // chunk * len(b"%x\r\n\r\n" % chunk) + len(b"0\r\n\r\n")
    with socket.create_connection(("127.0.0.1", peer.port), 20) as client:
        client.sendall(b"GET /%s HTTP/1.1\r\n\r\n" % path.encode())
        head, room = b"", bytearray(1 << 20)
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        while size:
            got = client.recv_into(room, min(size, len(room)), socket.MSG_TRUNC)
            if not got:
                raise Rejected("the answer was cut")
            size -= got


def bulk(bench):
    port = free_port()
    origin = Peer(bench, "origin", ["python3", peers.write(bench, "origin.py", ORIGIN), str(port)], port)
    relay = lambda port: (["-l", f"127.0.0.1:{port}", "-i", "1"], ["-u", f"127.0.0.1:{origin.port}"])
    running = rows(bench, relay)
    for path, what in (("length", "with a length"), ("chunks-65536", "in chunks of 64 KB"), ("chunks-8192", "in chunks of 8 KB")):
        def measure(peer):
            before, began = peer.cpu(), time.monotonic()
            received(peer, path)
            return {"cost": (peer.cpu() - before) / (GB / 1e9), "rate": GB / 1e9 / (time.monotonic() - began)}
        compared(bench, f"move-bulk-{path}", f"Relay, bodies of 1 GB {what}, one at a time", running, measure, ("CPU s per GB", 1, "GB/s"))
