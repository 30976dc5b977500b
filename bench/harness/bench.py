"""One run: peers in turn, round by round; figures that are not to be trusted are thrown away."""
import json, os, shutil, statistics, subprocess, sys, tempfile

from . import system


class Rejected(Exception):
    """A measurement with errors in it."""


class Bench:
    def __init__(self, rounds, seconds):
        self.rounds, self.seconds = rounds, seconds
        self.tmp = tempfile.mkdtemp(prefix="roundsman-bench-")
        self.running, self.commands = [], {}
        self.tables, self.targets, self.complaints = [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop_all()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def stop_all(self):
        for peer in reversed(self.running):
            peer.stop()
        self.running = []

    def interleave(self, peers, measure, rounds=None):
        """measure(peer) gives {metric: value}. {peer's name: {metric: [value of each round]}}; each begins a round in turn,
        so that what one leaves behind (TIME_WAIT) falls on all alike."""
        cells = {}
        for round_ in range(rounds or self.rounds):
            first = round_ % len(peers)
            for peer in peers[first:] + peers[:first]:
                for attempt in (1, 2):
                    try:
                        figures = self.clean(measure, peer)
                    except Rejected as why:
                        self.complaints.append(f"{peer.name}, round {round_ + 1}: {why}" + (" (again)" if attempt == 1 else ""))
                        continue
                    for metric, value in figures.items():
                        cells.setdefault(peer.name, {}).setdefault(metric, []).append(value)
                    break
        return cells

    @staticmethod
    def clean(measure, peer):
        before = system.overflows()
        figures = measure(peer)
        if system.overflows() != before:
            raise Rejected(f"{system.overflows() - before} connections dropped at a full backlog")
        return figures

    def table(self, scenario, title, columns, cells, note="", main=None):
        """columns: {metric: (heading, decimals, factor)}; the first one (or main) is plotted."""
        rows = {name: {metric: [value * factor for value in metrics.get(metric, [])]
                       for metric, (_, _, factor) in columns.items()} for name, metrics in cells.items()}
        self.tables.append(dict(scenario=scenario, title=title, note=note, main=main or next(iter(columns)), rows=rows,
                                columns={metric: (heading, decimals) for metric, (heading, decimals, _) in columns.items()}))
        print(f"\n{scenario}: {title}", file=sys.stderr)
        for name, metrics in rows.items():
            figures = [f"{heading} {statistics.median(metrics[metric]):.{decimals}f}" for metric, (heading, decimals, _)
                       in columns.items() if metrics[metric]]
            print(f"  {name:<50} " + "   ".join(figures), file=sys.stderr)

    def target(self, scenario, what, value, limit, stretch=None, least=False):
        """A ratio (or a figure) that is to be at most `limit`, or at least."""
        met = value >= limit if least else value <= limit
        self.targets.append(dict(scenario=scenario, what=what, value=value, limit=limit, stretch=stretch, least=least, met=met))
        print(f"  {'ok' if met else 'NOT REACHED'}: {what}: {value:.3f} ({'≥' if least else '≤'} {limit})", file=sys.stderr)


def median(cells, name, metric):
    return statistics.median(cells[name][metric])


def wrk(peer, path, seconds, connections, *headers, script=None):
    """Requests by wrk on one CPU; errors of any kind reject the run. `script`: a file in Lua that makes the requests."""
    out = system.sh("taskset", "-c", "0", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *(["-s", script] if script else []),
                    *sum((["-H", header] for header in headers), []), peer.url + path)
    for line in out.splitlines():
        if "Non-2xx" in line or ("Socket errors" in line and "connect 0, read 0, write 0, timeout 0" not in line):
            raise Rejected(line.strip())
    requests = next(int(line.split()[0]) for line in out.splitlines() if " requests in " in line)
    if not requests:
        raise Rejected("not one request was finished")
    return requests


def load_with_errors(*arguments):
    """Runs our own generator; its line of JSON."""
    out = subprocess.run([system.LOAD, *map(str, arguments)], capture_output=True, text=True)
    if out.returncode != 0:
        raise Rejected(f"{arguments[0]}: {out.stderr.strip()}")
    return json.loads(out.stdout)


def load(*arguments):
    """The same; errors reject the run."""
    figures = load_with_errors(*arguments)
    if figures.get("errors"):
        raise Rejected(f"{arguments[0]}: {figures['errors']} errors of {figures['errors'] + figures['served']}")
    return figures
