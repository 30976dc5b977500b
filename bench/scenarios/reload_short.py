"""Rolling reloads under clients with one request per connection."""
import asyncio, os, subprocess

from harness import peers, system

HUNG = 10


async def client(port, counts, over):
    while not over.is_set():
        kind = "served"
        try:
            async with asyncio.timeout(HUNG):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answer = await reader.read()
                    if not answer.endswith(b"ok"):
                        kind = "cut"
                finally:
                    writer.close()
        except TimeoutError:
            kind = "hung"
        except ConnectionRefusedError:
            kind = "refused"
        except OSError:
            kind = "reset"
        counts[kind] = counts.get(kind, 0) + 1


async def measure(port, clients, reloads, reload):
    loop = asyncio.get_running_loop()
    counts, over = {}, asyncio.Event()
    tasks = [asyncio.create_task(client(port, counts, over)) for _ in range(clients)]
    begin = loop.time()
    for _ in range(reloads):
        process = await asyncio.create_subprocess_exec(*reload, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if await process.wait() != 0:
            counts["failed"] = counts.get("failed", 0) + 1
    counts["seconds"] = (loop.time() - begin) / reloads
    over.set()
    await asyncio.gather(*tasks)
    return {kind: [count] for kind, count in counts.items()}


def short(bench, reloads, clients):
    app, cells = peers.node_app(bench), {}
    for via in ("direct", "relay"):
        port = system.free_port()
        arguments = ["-l", f"127.0.0.1:{port}", "-i", "2", "--via", via, "--min-uptime", "200ms", "--", "node", app]
        peer = peers.roundsman(bench, f"roundsman, {via}", arguments, port)
        cells[peer.name] = asyncio.run(measure(port, clients, reloads, peers.reload_command(bench, port)))
        peer.stop()
    port, pm2 = system.free_port(), os.path.join(os.path.dirname(system.pm2()), "pm2")
    os.environ.update(PM2_HOME=os.path.join(bench.tmp, "pm2"), PORT=str(port))
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    subprocess.run([pm2, "start", app, "-i", "2"], **quiet)
    try:
        system.wait_port(port, "PM2", os.devnull)
        cells["PM2"] = asyncio.run(measure(port, clients, reloads, [pm2, "reload", "app"]))
    finally:
        subprocess.run([pm2, "kill"], **quiet)
    bench.table("short", f"{reloads} reloads, {clients} clients, one request per connection",
                {"served": ("served", 0, 1), "refused": ("refused", 0, 1), "reset": ("reset", 0, 1), "cut": ("cut", 0, 1),
                 "hung": ("hung", 0, 1), "failed": ("reloads failed", 0, 1), "seconds": ("seconds per reload", 1, 1)},
                {name: {**{kind: [0] for kind in ("refused", "reset", "cut", "hung", "failed")}, **row} for name, row in cells.items()})
