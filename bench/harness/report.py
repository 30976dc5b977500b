"""Writes a run down: JSON, Markdown, and a plot for each table."""
import html, json, os, platform, statistics, time

from . import system


def environment():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")

    def version(*argv):
        try:
            return system.sh(*argv).strip().splitlines()[0]
        except (OSError, system.subprocess.CalledProcessError):
            return ""
    nginx = system.subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip()
    changed = bool(system.sh("git", "-C", system.ROOT, "status", "--porcelain", "src", "Cargo.toml", "Cargo.lock").strip())
    return {
        "commit": system.sh("git", "-C", system.ROOT, "rev-parse", "--short", "HEAD").strip() + (" and changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d %H:%M"), "kernel": f"Linux {platform.release()}", "cpu": f"{os.cpu_count()} × {model}",
        "haproxy": version("haproxy", "-v"), "nginx": nginx, "node": version("node", "--version"),
    }


def figure(values, decimals):
    if not values:
        return "–"
    return f"{statistics.median(values):,.{decimals}f}"


def spread(values, decimals):
    return f" ({min(values):,.{decimals}f} – {max(values):,.{decimals}f})" if len(values) > 1 else ""


def markdown(bench, about):
    lines = ["# Results of bench/run", "", ", ".join(f"{key}: {value}" for key, value in about.items()),
             f"({bench.rounds} rounds of {bench.seconds} s; medians, in brackets the least and the most)", ""]
    for table in bench.tables:
        lines += [f"## {table['title']}", "",
                  "| | " + " | ".join(heading for heading, _ in table["columns"].values()) + " |",
                  "|---" * (len(table["columns"]) + 1) + "|"]
        for name, metrics in table["rows"].items():
            shown = f"**{name}**" if "roundsman" in name else name
            cells = [figure(metrics[metric], decimals) + (spread(metrics[metric], decimals) if metric == table["main"] else "")
                     for metric, (_, decimals) in table["columns"].items()]
            lines.append(f"| {shown} | " + " | ".join(cells) + " |")
        lines += ["", table["note"], ""] if table["note"] else [""]
    lines += ["## Targets", "", "| | this run | wanted | stretch | |", "|---|---|---|---|---|"]
    for target in bench.targets:
        sign = "≥" if target["least"] else "≤"
        stretch = f"{sign} {target['stretch']}" if target["stretch"] else ""
        lines.append(f"| {target['what']} | {target['value']:.3f} | {sign} {target['limit']} | {stretch} | "
                     f"{'reached' if target['met'] else '**not reached**'} |")
    if bench.complaints:
        lines += ["", "## Thrown away", ""] + [f"- {line}" for line in bench.complaints]
    lines += ["", "## Commands and configurations", ""]
    for name, (command, config) in bench.commands.items():
        lines += [f"**{name}**", "", "    " + command, ""]
        if config:
            lines += ["    " + line for line in config.replace(bench.tmp, "TMP").strip().splitlines()] + [""]
    return "\n".join(lines) + "\n"


def svg(table):
    """Bars of the main column, with whiskers from the least to the most."""
    heading, decimals = table["columns"][table["main"]]
    rows = [(name, metrics[table["main"]]) for name, metrics in table["rows"].items() if metrics[table["main"]]]
    if not rows:
        return None
    most, left, width, step = max(max(values) for _, values in rows) or 1, 220, 440, 26
    height = 50 + step * len(rows)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" height="{height}" '
           'font-family="sans-serif" font-size="13">', '<rect width="100%" height="100%" fill="#fff"/>',
           f'<text x="10" y="22" font-weight="bold">{html.escape(table["title"])}: {html.escape(heading)}</text>']
    for at, (name, values) in enumerate(rows):
        y, middle = 38 + at * step, statistics.median(values)
        colour = "#1f6feb" if "roundsman" in name else "#9aa4af"
        x = lambda value: left + value / most * width
        out += [f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>',
                f'<rect x="{left}" y="{y}" width="{middle / most * width:.1f}" height="17" fill="{colour}"/>',
                f'<line x1="{x(min(values)):.1f}" x2="{x(max(values)):.1f}" y1="{y + 8.5}" y2="{y + 8.5}" stroke="#333"/>',
                f'<text x="{x(max(middle, max(values))) + 6:.1f}" y="{y + 13}">{middle:,.{decimals}f}</text>']
    return "\n".join(out + ["</svg>"]) + "\n"


def store(bench, directory):
    os.makedirs(directory, exist_ok=True)
    about = environment()

    def write(name, text):
        with open(os.path.join(directory, name), "w") as f:
            f.write(text)
    write("results.md", markdown(bench, about))
    rounded = [dict(table, rows={name: {metric: [float(f"{value:.5g}") for value in values] for metric, values in metrics.items()}
                                 for name, metrics in table["rows"].items()}) for table in bench.tables]
    write("results.json", json.dumps(dict(about=about, rounds=bench.rounds, seconds=bench.seconds, tables=rounded,
                                          targets=bench.targets, thrown_away=bench.complaints), indent=1, ensure_ascii=False) + "\n")
    for table in bench.tables:
        picture = svg(table)
        if picture:
            write(table["scenario"] + ".svg", picture)
