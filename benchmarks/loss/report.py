"""The counts as tables, as JSON and as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.loss.ledger import Counts
from benchmarks.loss.peers import PEERS
from benchmarks.loss.run import Load
from benchmarks.loss.schedule import SCHEDULES, draw

#: schedule -> peer -> the counts, or why there are none
Results = dict[str, dict[str, Counts | str]]

COLUMNS = {
    "published": "published",
    "deliveries due": "due",
    "delivered": "delivered",
    "doubled": "doubled",
    "out of order": "disordered",
    "lost, told": "told",
    "lost, **silently**": "silent",
    "reconnects": "reconnects",
    "not back": "away",
    "faults took s": "lasted",
}

TOLD, SILENT = (list(COLUMNS.values()).index(field) for field in ("told", "silent"))


def table(schedule: str, row: dict[str, Counts | str], load: Load) -> str:
    faults = len(draw(schedule, load.seconds, load.seed))
    lines = [
        f"### {SCHEDULES[schedule][0][0].upper()}{SCHEDULES[schedule][0][1:]} ({faults} times)",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for peer, counts in row.items():
        if isinstance(counts, str):
            lines.append(f"| {peer} | not measured: {counts.splitlines()[0]} |" + " |" * (len(COLUMNS) - 1))
            continue
        cells = [f"{getattr(counts, field):,}" for field in COLUMNS.values()]
        if counts.silent:
            cells[SILENT] = f"**{cells[SILENT]}** ({share(counts.silent, counts)})"
        if counts.told:
            cells[TOLD] += f" ({share(counts.told, counts)})"
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def share(part: int, counts: Counts) -> str:
    return f"{100 * part / counts.due:.1f} %"


def text(head: dict[str, str], load: Load, results: Results) -> str:
    peers = list(dict.fromkeys(peer for row in results.values() for peer in row))
    return "\n".join(
        [
            f"{head['date']}, {head['machine']}, {head['versions']}. For each peer {load.clients} clients in "
            f"{load.rooms} rooms, behind the same breaking proxy on the same schedule; {load.rate:g} messages a second for "
            f"{load.seconds:g} s.",
            "",
            *(table(schedule, row, load) for schedule, row in results.items()),
            "What each ran:",
            "",
            *(f"- **{peer}**: {PEERS[peer].how}." for peer in peers),
            "",
        ]
    )


def write(folder: Path, head: dict[str, str], load: Load, results: Results) -> None:
    """Write ``loss.json``, ``loss.md`` and ``loss.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        schedule: {peer: {"error": c} if isinstance(c, str) else asdict(c) for peer, c in row.items()}
        for schedule, row in results.items()
    }
    faults = {name: [asdict(fault) for fault in draw(name, load.seconds, load.seed)] for name in results}
    everything = {"run": head, "load": asdict(load), "faults": faults, "results": rows}
    (folder / "loss.json").write_text(json.dumps(everything, indent=1) + "\n")
    (folder / "loss.md").write_text(text(head, load, results))
    plot(folder / "loss.svg", results)


def plot(path: Path, results: Results) -> None:
    """The part of the deliveries that was lost, told and silently, for each peer and schedule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(results), figsize=(3.6 * len(results) + 1.2, 3.6), sharey=True, squeeze=False
    )
    for axes, (schedule, row) in zip(panels[0], results.items(), strict=True):
        peers = [(peer, counts) for peer, counts in row.items() if isinstance(counts, Counts)][::-1]
        names = [peer for peer, _ in peers]
        silent = [100 * counts.silent / counts.due for _, counts in peers]
        told = [100 * counts.told / counts.due for _, counts in peers]
        axes.barh(names, silent, color="#b3261e", label="lost silently")
        axes.barh(names, told, left=silent, color="#e0a030", label="lost, and told")
        for index, (_, counts) in enumerate(peers):
            percent = 100 * (counts.silent + counts.told) / counts.due
            label = f" {percent:.1f} %" if percent else " nothing"
            axes.text(silent[index] + told[index], index, label, va="center", fontsize=8)
        axes.set_xlim(0, max(1.0, *(a + b for a, b in zip(silent, told, strict=True))) * 1.25)
        axes.set_title(SCHEDULES[schedule][0], fontsize=8)
        axes.set_xlabel("% of the deliveries", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "loss", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
