"""What it costs to be looked at: nothing, the page in a browser, `roundsman top`, an access log."""
import os, pty, subprocess, threading, time, urllib.request

from harness import peers, system
from harness.bench import median
from harness.peers import free_port
from scenarios.relay import cost

SLOTS = 4


class Page:
    """The stream of events that an open page reads."""

    def __init__(self, url):
        self.stream = urllib.request.urlopen(url, timeout=10)
        self.bytes = 0
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            while line := self.stream.readline():
                self.bytes += len(line)
        except (OSError, ValueError):
            pass


class Top:
    """`roundsman top` in a terminal of its own."""

    def __init__(self, control):
        ours, theirs = pty.openpty()
        self.bytes, self.terminal = 0, ours
        self.process = subprocess.Popen([system.BINARY, "top", "--control", control], stdin=theirs, stdout=theirs, stderr=theirs,
                                        env={**os.environ, "TERM": "xterm-256color"}, start_new_session=True)
        os.close(theirs)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            while shown := os.read(self.terminal, 65536):
                self.bytes += len(shown)
        except OSError:
            pass

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def watched(bench):
    log, admin = os.path.join(bench.tmp, "watched.log"), free_port()
    running, viewers = [], []
    for name, options in (("nothing", []), ("page open", ["--admin", f"127.0.0.1:{admin}"]), ("top", []),
                          ("access log", ["--access-log", log, "--rotate-size", "1GiB"])):
        port = free_port()
        arguments = ["-i", str(SLOTS), "--via", "direct", *options, "--", *peers.minimal(port)]
        running.append(peers.roundsman(bench, name, arguments, port))
        if name == "page open":
            viewers.append(Page(f"http://127.0.0.1:{admin}/events"))
        elif name == "top":
            viewers.append(Top(os.path.join(bench.tmp, f"{port}.sock")))
    time.sleep(3)
    if not all(viewer.bytes for viewer in viewers):
        raise RuntimeError("the page or top shows nothing")

    def measure(peer):
        before = peer.cpu()
        time.sleep(bench.seconds)
        idle = (peer.cpu() - before) / bench.seconds
        return {**cost(bench, peer, "", 50, "Connection: close"), "idle": idle}
    cells = bench.interleave(running, measure)
    viewers[1].stop()
    bench.table("watched", f"Looked at, {SLOTS} of the smallest server, direct",
                {"cost": ("CPU µs per connection, whole tree", 1, 1e6), "rate": ("connections/s", 0, 1),
                 "idle": ("CPU ms per second while idle", 2, 1e3)}, cells,
                "The page's reader and `top` itself are not counted: what they cost the daemon and its servers is.")
    nothing = median(cells, "nothing", "cost")
    # The access log's limit is a number of microseconds: see access.py.
    for peer in running[1:3]:
        bench.target("watched", f"{peer.name}: cost per connection to that of nothing", median(cells, peer.name, "cost") / nothing, 1.1)
