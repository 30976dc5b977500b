"""Who the client is: clients that send nothing beside ordinary ones, and what each option costs per connection."""
import statistics

from harness import peers, system
from harness.bench import load, wrk
from harness.peers import free_port
from scenarios.relay import BODIES

SILENT, ORDINARY, PAUSE_MS = 2000, 200, 100
COSTS = {"tree": ("CPU µs per connection, whole tree", 1, 1e6), "more": ("more than without", 2, 1e6),
         "master": ("of it the master", 1, 1e6), "rate": ("connections/s", 0, 1)}

# Requests of so many clients, made once. Bytes of numbers are written out, since the script is text.
SCRIPT = """
local requests, at = {}, -1
function init(args)
  for n = 1, 1000 do
    local client = {198, 18, math.floor(n / 250), n % 250 + 1}
    local v1 = "PROXY TCP4 " .. table.concat(client, ".") .. " 203.0.113.1 56324 443\\r\\n"
    local v2 = "\\r\\n\\r\\n\\0\\r\\nQUIT\\n\\33\\17\\0\\12" .. string.char(unpack(client)) .. "\\203\\0\\113\\1\\220\\4\\1\\187"
    local header = ({none = "", v1 = v1, v2 = v2})["HEADER"]
    requests[n] = header .. wrk.format("GET", nil, {Connection = "close", Cookie = "sid=" .. n})
  end
end
function request()
  at = at + 1
  -- wrk parses the first one, and sends it never.
  if at == 0 then return wrk.format("GET") end
  at = (at - 1) % 1000 + 1
  return requests[at]
end
"""

PROXY = ["--proxy-from", "127.0.0.0/8"]
# Options, the header that clients send, and the row that they are compared with; the first one is without any.
DIRECT = {
    "nothing": ([], "none", None),
    "--allow, --deny": (["--allow", "127.0.0.0/8", "--allow", "198.18.0.0/15", "--deny", "198.18.200.0/24"], "none", "nothing"),
    "--first-byte-timeout": (["--first-byte-timeout", "5s"], "none", "nothing"),
    "--hash-on cookie": (["--policy", "hash", "--hash-on", "cookie:sid"], "none", "nothing"),
    "--proxy-from, v1": (PROXY, "v1", "nothing"),
    "--proxy-from, v2": (PROXY, "v2", "nothing"),
    # So few that the kernel is asked: with more, a run is over before a source has as many.
    "v2, --source-conns": ([*PROXY, "--source-conns", "20"], "v2", "--proxy-from, v2"),
    "v2, --source-rate": ([*PROXY, "--source-rate", "100000/s"], "v2", "--proxy-from, v2"),
    "v2, --hash-on source": ([*PROXY, "--policy", "hash", "--hash-on", "source"], "v2", "--proxy-from, v2"),
}
RELAY = {
    "roundsman": ([], "none", None),
    "roundsman --send-proxy v1": (["--send-proxy", "v1"], "none", "roundsman"),
    "roundsman --send-proxy v2": (["--send-proxy", "v2"], "none", "roundsman"),
    "roundsman --proxy-from, v1": (PROXY, "v1", "roundsman"),
    "roundsman --proxy-from, v2": (PROXY, "v2", "roundsman"),
}
# The same of HAProxy: words of its bind and server lines.
HAPROXY = {
    "HAProxy": ("", "", "none", None),
    "HAProxy send-proxy": ("", "send-proxy", "none", "HAProxy"),
    "HAProxy send-proxy-v2": ("", "send-proxy-v2", "none", "HAProxy"),
    "HAProxy accept-proxy, v1": ("accept-proxy", "", "v1", "HAProxy"),
    "HAProxy accept-proxy, v2": ("accept-proxy", "", "v2", "HAProxy"),
}


def known(options):
    """Whether the program that is measured has all of these."""
    return all(system.knows(word) for word in options if word.startswith("--"))


def client(bench):
    silent(bench)
    direct(bench)
    relay(bench)


def silent(bench):
    running, sends = [], {}
    for name, options, header in (("nothing", [], False), ("--proxy-from", PROXY, True),
                                  ("--first-byte-timeout", ["--first-byte-timeout", "5s"], False)):
        if known(options):
            port = free_port()
            arguments = ["-i", "4", "--via", "direct", *options, "--", *peers.minimal(port)]
            running.append(peers.roundsman(bench, name, arguments, port))
            sends[name] = ["--proxy"] if header else []

    def measure(peer):
        """A pair: without those that are silent, then beside them."""
        alone, beside = (load("silent", peer.address, "--silent", count, "--clients", ORDINARY, "--pause-ms", PAUSE_MS,
                              "--seconds", max(bench.seconds, 8), *sends[peer.name]) for count in (0, SILENT))
        return {"alone_us": alone["p99_us"], **{key: beside[key] for key in ("p50_us", "p99_us", "served", "silent", "closed")}}
    cells = bench.interleave(running, measure)
    columns = {"p99_us": ("µs at p99", 0, 1), "alone_us": ("without silent ones", 0, 1), "p50_us": ("p50", 0, 1),
               "served": ("served", 0, 1), "silent": ("silent at the end", 0, 1), "closed": ("silent ones closed", 0, 1)}
    bench.table("silent", f"{ORDINARY} clients beside {SILENT} that send nothing, 4 of the smallest server, direct",
                columns, cells,
                f"Each asks every {PAUSE_MS} ms on average, one request per connection. Without an option those that send nothing "
                "stay with the servers; with one they are reset when their time is over, and come again. They come over two seconds, "
                "not all at once.")
    # Whoever is silent is not to be felt, and neither is the option that is against them.
    for name in (peer.name for peer in running[1:]):
        for what, off in (("without silent ones", cells[name]["alone_us"]), ("of nothing", cells["nothing"]["p99_us"])):
            beyond = [on - 1.1 * other for on, other in zip(cells[name]["p99_us"], off)]
            bench.target("silent", f"{name}: ms at p99 beyond 1.1 times those {what}, median of pairs",
                         statistics.median(beyond) / 1e3, 1.0)


def measured(bench, headers):
    """One request per connection, behind the header of a row."""
    scripts = {header: peers.write(bench, f"{header}.lua", SCRIPT.replace("HEADER", header)) for header in ("none", "v1", "v2")}

    def measure(peer):
        before = peer.cpu(), system.own_cpu(peer.pid)
        requests = wrk(peer, "small", bench.seconds, 50, script=scripts[headers[peer.name]])
        after = peer.cpu(), system.own_cpu(peer.pid)
        tree, master = ((b - a) / requests for a, b in zip(before, after))
        return {"tree": tree, "master": master, "rate": requests / bench.seconds}
    return measure


def compared(bench, scenario, title, running, rows, note=""):
    """`rows`: by name, the header and the row that it is compared with. A round is a pair: what came before and after it
    differs less than rounds do."""
    cells = bench.interleave(running, measured(bench, {name: header for name, (header, _) in rows.items()}))
    for name, (_, against) in rows.items():
        if name in cells and against:
            cells[name]["more"] = [one - other for one, other in zip(cells[name]["tree"], cells[against]["tree"])]
    bench.table(scenario, title, COSTS, cells, note)
    return cells


def direct(bench):
    running, rows = [], {}
    for name, (options, header, against) in DIRECT.items():
        if known(options):
            port = free_port()
            arguments = ["-i", "2", "--via", "direct", *options, "--", *peers.minimal(port)]
            running.append(peers.roundsman(bench, name, arguments, port))
            rows[name] = header, against
    compared(bench, "client-direct", "Hand-off into the smallest server (2 processes), options that are about the client", running, rows,
             "The tree has the servers: the library's part is in it. Headers name 1,000 clients.")


def relay(bench):
    origin = peers.origin(bench, BODIES)
    behind = peers.origin_behind_headers(bench)
    running, rows = [], {}
    for name, (options, header, against) in RELAY.items():
        port = free_port()
        target = behind if "--send-proxy" in options else origin
        arguments = ["-l", f"127.0.0.1:{port}", "-i", "2", *options, "-u", target.address]
        running.append(peers.roundsman(bench, name, arguments, port))
        rows[name] = header, against
    for name, (bind, server, header, against) in HAPROXY.items():
        target = behind if server else origin
        running.append(peers.haproxy(bench, [target.port], name, server=server, bind=bind))
        rows[name] = header, against
    cells = compared(bench, "client-relay", "Short connections by relay, with PROXY headers in and out", running, rows)
    for ours, theirs in (("--proxy-from, v1", "accept-proxy, v1"), ("--proxy-from, v2", "accept-proxy, v2"),
                         ("--send-proxy v1", "send-proxy"), ("--send-proxy v2", "send-proxy-v2")):
        ours, theirs = f"roundsman {ours}", f"HAProxy {theirs}"
        ratio = statistics.median(cells[ours]["tree"]) / statistics.median(cells[theirs]["tree"])
        bench.target("client-relay", f"{ours} to {theirs}, CPU per connection", ratio, 1.0)
