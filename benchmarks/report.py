"""The figures as a table, as JSON and as plots."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.figures import Rounds, good, median, ratios, spread, values

#: column title, key, how to print it
FAN_OUT: tuple[tuple[str, str, str], ...] = (
    ("CPU us/delivery", "cpu_us", ".2f"),
    ("against the floor", "", ".2f"),
    ("nats-server's CPU us/delivery", "store_us", ".2f"),
    ("deliveries/s", "throughput", ",.0f"),
    ("core used", "cpu_share", ".0%"),
    ("p50 ms", "p50_ms", ".2f"),
    ("p99 ms", "p99_ms", ".2f"),
    ("max ms", "max_ms", ".1f"),
)
PAIRS = (
    ("CPU us/message", "message_us", ".0f"),
    ("nats-server's CPU us/message", "store_message_us", ".0f"),
    *FAN_OUT[1:2],
    *FAN_OUT[3:],
)
SLOW = (*FAN_OUT, ("memory growth MiB", "memory_growth_mib", ".2f"))
ENCODED = (*FAN_OUT, ("bytes/delivery", "bytes_per_delivery", ".0f"))
NEVER_READS = (
    ("peak growth of memory MiB", "memory_peak_mib", ".2f"),
    ("CPU us/delivery", "cpu_us", ".2f"),
    ("p99 ms of the others", "p99_ms", ".2f"),
)
IDLE = (
    ("accept CPU us", "accept_us", ".0f"),
    ("memory KiB/connection", "memory_kib", ".2f"),
    ("accepted/s", "accepted_per_second", ",.0f"),
    ("admission p50 ms", "admission_p50_ms", ".1f"),
)
PINGS = (
    ("CPU us/s a connection", "idle_us", ".2f"),
    ("memory KiB/connection", "memory_kib", ".2f"),
    ("pings/s", "pings", ",.0f"),
)
STORM = (
    ("served", "served", ",.0f"),
    ("failed", "failed", ",.0f"),
    ("told to wait", "retries", ",.0f"),
    ("took s", "took_s", ".1f"),
    ("replayed each", "replayed_each", ".1f"),
    ("CPU us each", "cpu_us", ".0f"),
    ("nats-server's CPU us each", "store_us", ".0f"),
    ("live p99 ms before", "calm_p99_ms", ".1f"),
    ("live p50 ms", "p50_ms", ".1f"),
    ("live p99 ms", "p99_ms", ".1f"),
    ("live max ms", "max_ms", ".0f"),
)
PUBLISH = (
    ("CPU us/request", "request_us", ".1f"),
    ("against uvicorn", "", ".2f"),
    ("nats-server's CPU us/request", "store_us", ".1f"),
    ("requests/s", "requests", ",.0f"),
)
COLUMNS = {
    "publish": PUBLISH,
    "publish-alone": PUBLISH,
    "pairs": PAIRS,
    "idle": IDLE,
    "pings": PINGS,
    "storm": STORM,
    "slow": SLOW,
    "never-reads": NEVER_READS,
    "encodings": ENCODED,
    "encodings-bursts": ENCODED,
}


#: the works that the overview shows, and what it calls them
OVERVIEW = {
    "chat-1000": "a chat of 1,000,\none message at a time",
    "tens": "chats of ten,\nmessages in lists",
    "bursts": "a chat of 500,\n50 messages at once",
    "pairs": "chats of two,\none message at a time",
}


#: what the table of medians shows of each work: its name there, the figure, and how to print it
GLANCE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "chat-1000": (("chat of 1,000", "cpu_us", ".1f"),),
    "chat-10000": (("chat of 10,000", "cpu_us", ".1f"),),
    "fifty": (("50 of 200 chats each", "cpu_us", ".1f"),),
    "tens": (("chats of ten", "cpu_us", ".1f"),),
    "tens-tls": (("chats of ten, TLS", "cpu_us", ".1f"),),
    "pairs": (("pairs", "cpu_us", ".0f"),),
    "bursts": (("bursts", "cpu_us", ".2f"),),
    "idle": (("accept a client", "accept_us", ".0f"), ("KiB a client", "memory_kib", ".1f")),
    "pings": (("an idle client, a second", "idle_us", ".1f"),),
}


def thrown_away(rounds: list[dict[str, Any]]) -> int:
    """How many rounds were repeated, since publisher or load generator had spoilt them."""
    return sum(len(each.get("thrown_away", ())) for each in rounds)


def doubts(rounds: list[dict[str, Any]]) -> str:
    """What a reader must know before believing a row."""
    said = []
    ok = good(rounds)
    if any(each.get("generator_in_the_way") for each in ok):
        said.append("the load generator was in the way: latency and throughput are not the server's")
    if thrown := thrown_away(rounds):
        said.append(f"thrown away and repeated: {thrown}")
    if reasons := sorted({each["spoilt"] for each in ok if each.get("spoilt")}):
        said.append(f"kept all the same: {' and '.join(reasons)}")
    missing = sum(each.get("missing", 0) for each in ok)
    expected = sum(each.get("expected", 0) for each in ok)
    if missing > 0:
        said.append(f"{missing:,} of {expected:,} deliveries did not come in time")
    if missing < 0:
        said.append(f"{-missing:,} deliveries too many")
    if any(each.get("refused") for each in ok):
        said.append("publishes were refused")
    if any(each.get("throughput", 1) < 0.95 * each.get("offered", 0) for each in ok):
        said.append(f"did not keep up with {ok[0]['offered']:,.0f} deliveries/s")
    return "; ".join(said)


def table(name: str, title: str, results: Rounds) -> str:
    against = {"floor", "uvicorn"} & results.keys()
    measure = against.pop() if against else ""
    # A column that nobody has a figure for says nothing.
    columns = [
        column
        for column in COLUMNS.get(name, FAN_OUT)
        if (any(values(rounds, column[1]) for rounds in results.values()) if column[1] else measure)
    ]
    lines = [
        f"### {title}",
        "",
        "| | " + " | ".join(column for column, _, _ in columns) + " | |",
        "| --- |" + " ---: |" * len(columns) + " --- |",
    ]
    first = columns[0][1] if columns else ""

    def order(item: tuple[str, list[dict[str, Any]]]) -> float:
        return median(item[1], first) if good(item[1]) and name != "storm" else 0

    def cell(server: str, key: str, form: str) -> str:
        found = values(results[server], key) if key else ratios(results, server, measure, first)
        return spread(found, form) if found else ""

    for server, rounds in sorted(results.items(), key=order):
        if not good(rounds):
            lines.append(f"| {server} |" + " |" * len(columns) + f" not measured: {rounds[0]['error']} |")
            continue
        cells = [cell(server, key, form) for _, key, form in columns]
        label = f"**{server}**" if server.startswith("notify") else server
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {doubts(rounds)} |")
    return "\n".join(lines) + "\n"


def glance(results: dict[str, Rounds]) -> str:
    """One table of medians: a row for each server, a column for each work. A star marks a server that a remark is about."""
    columns = [
        (name, *column)
        for name, shown in GLANCE.items()
        for column in shown
        if any(values(rounds, column[1]) for rounds in results.get(name, {}).values())
    ]
    servers = dict.fromkeys(server for name, _, _, _ in columns for server in results[name])

    def cell(server: str, name: str, key: str, form: str) -> str:
        rounds = results[name].get(server, [])
        if not values(rounds, key):
            return ""
        return format(median(rounds, key), form) + ("*" if doubts(rounds) else "")

    lines = [
        "| | " + " | ".join(title for _, title, _, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for server in servers:
        cells = [cell(server, name, key, form) for name, _, key, form in columns]
        if any(cells):
            label = f"**{server}**" if server.startswith("notify") else server
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(folder: Path, head: dict[str, Any], titles: dict[str, str], results: dict[str, Rounds]) -> None:
    """Write ``results.json``, ``results.md`` and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"run": head, "works": results}, indent=1) + "\n")
    text = [
        "# Results",
        "",
        f"{head['date']}, {head['machine']}, Linux {head['kernel']}, {head['versions']}. "
        f"{head['rounds']} rounds of {head['seconds']} s each, servers in turns; the median, and the spread in "
        "brackets. CPU is the user and system time of the whole server process and its children, from /proc. "
        f"{sum(thrown_away(rounds) for each in results.values() for rounds in each.values())} rounds that the publisher or the "
        "load generator had spoilt were thrown away and repeated.",
        "",
        *(["![What one core delivers](overview.png)", ""] if any(capacity(results).values()) else []),
        "## At a glance",
        "",
        "Medians: microseconds of CPU for each delivery, or for what the column names. *: see the remark in the table below.",
        "",
        glance(results),
        "## Targets",
        "",
        targets.table(results),
        "## Figures",
        "",
        *(table(name, titles[name], each) for name, each in results.items()),
    ]
    (folder / "results.md").write_text("\n".join(text))
    plots(folder, titles, results)


def capacity(results: dict[str, Rounds]) -> dict[str, dict[str, float]]:
    """Deliveries that a second of CPU makes, for each work of ``OVERVIEW`` and each server that was measured; in thousands."""
    return {
        name: {
            server: 1000 / median(rounds, "cpu_us")
            for server, rounds in results[name].items()
            if values(rounds, "cpu_us")
        }
        for name in OVERVIEW
        if name in results
    }


def overview(folder: Path, results: dict[str, Rounds]) -> None:
    """``overview.png``: what one core delivers in each of the works that most are like, one row a server."""
    from matplotlib import pyplot

    found = {name: made for name, made in capacity(results).items() if made}
    if not found:
        return
    first = next(iter(found.values()))
    servers = sorted(
        {server for made in found.values() for server in made}, key=lambda one: first.get(one, 0)
    )
    figure, panels = pyplot.subplots(
        1, len(found), sharey=True, squeeze=False, figsize=(2.7 * len(found) + 2, 0.36 * len(servers) + 1.6)
    )
    for axes, (name, made) in zip(panels[0], found.items(), strict=True):
        widths = [made.get(server, 0) for server in servers]
        drawn = axes.barh(servers, widths, color=[colour(server) for server in servers])
        labels = [f"{width:,.0f}" if width else "not measured" for width in widths]
        axes.bar_label(drawn, labels, padding=4, fontsize=8)
        axes.set_xlim(0, max(widths) * 1.25)
        axes.set_title(OVERVIEW[name], fontsize=10)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("Thousand deliveries that one core makes in a second: longer is better", fontsize=11)
    figure.tight_layout()
    figure.savefig(folder / "overview.png", dpi=110)
    pyplot.close(figure)


def colour(server: str) -> str:
    return "#1b7f5c" if server.startswith("notify") else "#999999" if server == "floor" else "#7a9cc6"


def plots(folder: Path, titles: dict[str, str], results: dict[str, Rounds]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def bars(name: str, key: str, label: str, suffix: str = "") -> None:
        rows = sorted(
            ((server, values(rounds, key)) for server, rounds in results[name].items() if good(rounds)),
            key=lambda row: statistics.median(row[1]),
            reverse=True,
        )
        if not rows:
            return
        figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.3))
        middles = [statistics.median(found) for _, found in rows]
        spread = [
            [middle - min(found) for middle, (_, found) in zip(middles, rows, strict=True)],
            [max(found) - middle for middle, (_, found) in zip(middles, rows, strict=True)],
        ]
        colours = [colour(server) for server, _ in rows]
        drawn = axes.barh(
            [server for server, _ in rows], middles, xerr=spread, color=colours, ecolor="#444444"
        )
        axes.bar_label(drawn, [f"{middle:.3g}" for middle in middles], padding=6, fontsize=8)
        axes.set_xlim(0, max(max(found) for _, found in rows) * 1.15)
        axes.set_xlabel(label)
        axes.set_title(titles[name], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / f"{name}{suffix}.png", dpi=110)
        pyplot.close(figure)

    overview(folder, results)
    for name in results:
        if name == "idle":
            bars(name, "accept_us", "CPU per accepted client, us", "-accept")
            bars(name, "memory_kib", "memory per connection, KiB", "-memory")
        elif name in ("publish", "publish-alone"):
            bars(name, "request_us", "CPU per request, us")
        elif name == "pairs":
            bars(name, "message_us", "CPU per message, us")
        elif name == "pings":
            bars(name, "idle_us", "CPU us a second and connection")
        elif name == "never-reads":
            figure, axes = pyplot.subplots(figsize=(8, 3.2))
            for server, rounds in results[name].items():
                for each in good(rounds):
                    samples = each["memory_samples_mib"]
                    axes.plot([value - samples[3] for value in samples[3:]], label=server)
            axes.set_xlabel("seconds")
            axes.set_ylabel("growth of memory, MiB")
            axes.set_title(titles[name], fontsize=10)
            axes.legend(fontsize=8)
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=110)
            pyplot.close(figure)
        elif name == "storm":
            bars(name, "p99_ms", "p99 of live traffic during the storm, ms")
        else:
            bars(name, "cpu_us", "CPU per delivery, us")
            bars(name, "p99_ms", "latency p99, ms", "-p99")
