"""System calls per connection (strace -c), ours and theirs, under load: bursts are part of it."""
import os, signal, subprocess, time

from harness import peers, system
from harness.bench import wrk
from harness.peers import free_port
from scenarios.relay import BODIES

GROUPS = {
    "accept": ["accept", "accept4"], "connect": ["socket", "connect"], "recv": ["read", "readv", "recvfrom"],
    "send": ["write", "writev", "sendto"], "hand-off": ["sendmsg", "recvmsg"], "epoll_wait": ["epoll_wait", "epoll_pwait"],
    "epoll_ctl": ["epoll_ctl"], "options": ["setsockopt", "getsockopt", "fcntl", "ioctl", "getsockname", "getpeername"],
    "shutdown": ["shutdown"], "close": ["close"],
}


def counted(bench, peer, path, pids=None):
    """Calls per connection by group; "other" is the rest."""
    out = os.path.join(bench.tmp, "strace")
    pids = pids or system.tree(peer.pid)
    strace = subprocess.Popen(["strace", "-f", "-c", "-o", out, *sum((["-p", str(pid)] for pid in pids), [])],
                              stderr=subprocess.DEVNULL)
    time.sleep(0.7)
    units = wrk(peer, path, bench.seconds, 50, "Connection: close")
    strace.send_signal(signal.SIGINT)
    strace.wait()
    rows = (line.split() for line in open(out))
    calls = {row[-1]: int(row[3]) / units for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}
    grouped = {group: [sum(calls.pop(name, 0) for name in names)] for group, names in GROUPS.items()}
    grouped["other"] = [sum(calls.values())]
    return {"all": [sum(values[0] for values in grouped.values())], **grouped}


def calls(bench):
    origin = peers.origin(bench, BODIES)
    cells = {}
    for peer in peers.relays(bench, origin.port):
        if peer.name == "roundsman rr":
            cells["roundsman rr, relay: master"] = counted(bench, peer, "small", [peer.pid])
            cells["roundsman rr, relay: workers"] = counted(bench, peer, "small", system.tree(peer.pid)[1:])
        else:
            cells[peer.name + (", relay" if "roundsman" in peer.name else "")] = counted(bench, peer, "small")
    app, ports = peers.node_app(bench), [free_port(), free_port()]
    for policy, port in zip(("rr", "none"), ports):
        peer = peers.direct(bench, f"roundsman {policy}, direct, Node", ["node", app, str(port)], port, policy)
        if policy == "rr":
            cells[peer.name + ": master"] = counted(bench, peer, "", [peer.pid])
        cells[peer.name + ": servers"] = counted(bench, peer, "", system.tree(peer.pid)[1:])
    for name, policy in (("Node, cluster SCHED_RR", "rr"), ("Node, cluster SCHED_NONE", "none")):
        peer = peers.node_cluster(bench, name, policy)
        if policy == "rr":
            cells[name + ": primary"] = counted(bench, peer, "", [peer.pid])
        cells[name + ": workers"] = counted(bench, peer, "", system.tree(peer.pid)[1:])
    bench.table("calls", "System calls per connection", {group: (group, 2, 1) for group in ("all", *GROUPS, "other")}, cells,
                "strace slows everything down, so that bursts are longer here than without it.")
