"""A static Go program: served directly by seccomp user notification, by relay, and by itself on SO_REUSEPORT."""
import os

from harness import peers, system
from harness.bench import median
from harness.peers import Peer, free_port
from scenarios.relay import cost

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "static.go")


def static(bench):
    if not system.program("go"):
        system.packaged(["golang-go"])
    server = os.path.join(bench.tmp, "static")
    system.sh("go", "build", "-o", server, SOURCE, env={**os.environ, "CGO_ENABLED": "0", "GOCACHE": os.path.join(bench.tmp, "go")})
    running = []
    for name, via, policy in (("roundsman direct (seccomp)", "direct", "rr"), ("roundsman direct (seccomp), none", "direct", "none"),
                              ("roundsman relay", "relay", "rr")):
        port = free_port()
        arguments = ["-l", f"127.0.0.1:{port}", "-i", "2", "--via", via, "-p", policy, "--", server]
        running.append(peers.roundsman(bench, name, arguments, port, {"GOMAXPROCS": "1"}))
    port = free_port()
    alone = {"PORT": str(port), "SHARED": "1", "PROCESSES": "2", "GOMAXPROCS": "1"}
    running.append(Peer(bench, "two processes on SO_REUSEPORT", [server], port, alone))
    for scenario, title, headers in (("static-short", "Static Go program, one request per connection", ["Connection: close"]),
                                     ("static-keepalive", "Static Go program, keep-alive requests", [])):
        cells = bench.interleave(running, lambda peer: cost(bench, peer, "", 50, *headers))
        bench.table(scenario, title, {"cost": ("CPU µs, whole tree", 1, 1e6), "rate": ("requests/s", 0, 1)}, cells)
        of = {peer.name: median(cells, peer.name, "cost") for peer in running}
        if headers:
            ratio = of["roundsman direct (seccomp)"] / of["roundsman relay"]
            bench.target(scenario, "direct (seccomp) to relay, CPU per connection", ratio, 0.6)
        else:
            ratio = of["roundsman direct (seccomp)"] / of["two processes on SO_REUSEPORT"]
            bench.target(scenario, "direct (seccomp) to the same on SO_REUSEPORT, CPU per request", ratio, 1.05)
