"""The figures as a table, as JSON and as plots."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

Rounds = dict[str, list[dict[str, Any]]]

#: column title, key, how to print it
FAN_OUT: tuple[tuple[str, str, str], ...] = (
    ("CPU us/delivery", "cpu_us", ".2f"),
    ("against the floor", "", ""),
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
COLUMNS = {
    "pairs": PAIRS,
    "idle": IDLE,
    "pings": PINGS,
    "storm": STORM,
    "slow": SLOW,
    "never-reads": NEVER_READS,
    "encodings": ENCODED,
    "encodings-bursts": ENCODED,
}


def good(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in rounds if "error" not in each]


def values(rounds: list[dict[str, Any]], key: str) -> list[float]:
    if key == "memory_growth_mib":
        return [each["memory_growth"] / 2**20 for each in good(rounds)]
    if key == "memory_peak_mib":
        return [each["memory_peak_growth"] / 2**20 for each in good(rounds)]
    if key == "memory_kib":
        return [each["memory"] / 1024 for each in good(rounds)]
    return [each[key] for each in good(rounds) if key in each]


def median(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(values(rounds, key))


def cell(rounds: list[dict[str, Any]], key: str, form: str) -> str:
    """The median, and the spread over the rounds."""
    found = values(rounds, key)
    low, high, middle = (
        format(min(found), form),
        format(max(found), form),
        format(statistics.median(found), form),
    )
    return middle if low == high else f"{middle} ({low}-{high})"


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
        said.append(f"{thrown} rounds were thrown away and repeated")
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
    # A column that nobody has a figure for says nothing.
    columns = [
        column
        for column in COLUMNS.get(name, FAN_OUT)
        if not column[1] or any(values(rounds, column[1]) for rounds in results.values())
    ]
    floor = results.get("floor")
    lines = [
        f"### {title}",
        "",
        "| | " + " | ".join(column for column, _, _ in columns) + " | |",
        "| --- |" + " ---: |" * len(columns) + " --- |",
    ]
    key = columns[0][1]

    def order(item: tuple[str, list[dict[str, Any]]]) -> float:
        return median(item[1], key) if good(item[1]) and name != "storm" else 0

    for server, rounds in sorted(results.items(), key=order):
        if not good(rounds):
            lines.append(f"| {server} |" + " |" * len(columns) + f" not measured: {rounds[0]['error']} |")
            continue
        cells = []
        for _, key_, form in columns:
            if key_:
                cells.append(cell(rounds, key_, form) if values(rounds, key_) else "")
            elif floor and good(floor):
                cells.append(f"{median(rounds, 'cpu_us') / median(floor, 'cpu_us'):.2f}")
            else:
                cells.append("")
        label = f"**{server}**" if server.startswith("notify") else server
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {doubts(rounds)} |")
    return "\n".join(lines) + "\n"


def ratio(rounds_of: Rounds, one: str, other: str, key: str) -> float | None:
    """The median over the rounds of what one took for each that the other took in the same round."""
    pairs = [
        a[key] / b[key]
        for a, b in zip(rounds_of.get(one, []), rounds_of.get(other, []), strict=False)
        if "error" not in a and "error" not in b and b[key]
    ]
    return statistics.median(pairs) if pairs else None


def best_peer(results: Rounds, key: str) -> str | None:
    peers = {
        name: median(rounds, key)
        for name, rounds in results.items()
        if not name.startswith(("notify", "floor", "Autobahn (")) and good(rounds)
    }
    return min(peers, key=lambda name: peers[name]) if peers else None


def targets(all_results: dict[str, Rounds]) -> str:
    """What must be reached, and what was."""
    rows: list[tuple[str, str, bool]] = []

    def against(
        work: str, other: str | None, key: str, bound: float, what: str, server: str = "notify"
    ) -> None:
        if other is None or work not in all_results:
            return
        found = ratio(all_results[work], server, other, key)
        if found is not None:
            rows.append((f"{what} {other} ({server})", f"{found:.2f}", found <= bound))

    for server in ("notify", "notify (batch)"):
        if server in all_results.get("chat-1000", {}):
            against("chat-1000", "floor", "cpu_us", 1.2, "chat of 1,000: at most 1.2 times", server)
            best = best_peer(all_results["chat-1000"], "cpu_us")
            against("chat-1000", best, "cpu_us", 1, "chat of 1,000: less than", server)
        if server in all_results.get("bursts", {}):
            best = best_peer(all_results["bursts"], "cpu_us")
            against("bursts", best, "cpu_us", 0.5, "bursts: at most 0.5 times", server)
    if "tens" in all_results:
        against("tens", best_peer(all_results["tens"], "cpu_us"), "cpu_us", 1, "chats of ten: less than")
    if "idle" in all_results:
        found = all_results["idle"]
        against("idle", best_peer(found, "memory"), "memory", 1, "memory of an idle connection: less than")
        if good(found.get("notify", [])):
            kib = median(found["notify"], "memory") / 1024
            rows.append(("memory of an idle connection: under 10 KiB", f"{kib:.2f} KiB", kib < 10))
        against("idle", "Autobahn (handshake)", "accept_us", 1, "accept, authenticate, subscribe: less than")
        against("idle", "Node ws", "accept_us", 1.5, "accept, authenticate, subscribe: at most 1.5 times")
    if "storm" in all_results and good(all_results["storm"].get("notify", [])):
        p99 = median(all_results["storm"]["notify"], "p99_ms")
        rows.append(("storm of 10,000: p99 of live traffic under 250 ms", f"{p99:.0f} ms", p99 < 250))
    if "never-reads" in all_results and good(all_results["never-reads"].get("notify", [])):
        grown = median(all_results["never-reads"]["notify"], "memory_peak_mib")
        what = "a client that never reads: memory within its bound of 1 MiB over a minute"
        rows.append((what, f"+{grown:.2f} MiB", grown <= 1.5))
    lines = ["| target | measured | |", "| --- | ---: | --- |"]
    lines += [f"| {what} | {value} | {'reached' if ok else '**not reached**'} |" for what, value, ok in rows]
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
        "## Targets",
        "",
        targets(results),
        "## Figures",
        "",
        *(table(name, titles[name], each) for name, each in results.items()),
    ]
    (folder / "results.md").write_text("\n".join(text))
    plots(folder, titles, results)


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
        colours = [
            "#1b7f5c" if server.startswith("notify") else "#999999" if server == "floor" else "#7a9cc6"
            for server, _ in rows
        ]
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

    for name in results:
        if name == "idle":
            bars(name, "accept_us", "CPU per accepted client, us", "-accept")
            bars(name, "memory_kib", "memory per connection, KiB", "-memory")
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
