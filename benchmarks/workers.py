"""One server of one, two and four processes for its clients: ``python -m benchmarks.workers [--quick]``.

What more processes cost: deliveries a CPU-second over all processes of the server, in turns at the same pace, against one
process that does everything; and how evenly the clients are spread. Each work has two paces: ``busy``, at which one process
fills between a quarter and two thirds of a core, and ``calm``, at which it is idle most of the time, so that with every message each process
reaches for memory that it has not used for a while. Where the machine has cores for more workers, for the
first process and for the load besides, also what they gain: the pace is raised until the server does not keep up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import urllib.request
from dataclasses import replace
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.load import Unmeasurable, compile_generator
from benchmarks.servers import Notify, Server
from benchmarks.work import FanOut, one_chat

COUNTS = (1, 2, 4)

#: a title, the work at its calm pace, and how many times as fast it is at the busy one
WORKS = {
    "chat-1000": ("one chat of 1,000", FanOut(1000, 1, one_chat, batch=1, per_second=20), 5),
    "chat-5000": ("one chat of 5,000", FanOut(5000, 1, one_chat, batch=1, per_second=4), 5),
    "bursts": ("one chat of 500, 50 at once", FanOut(500, 1, one_chat, batch=50, per_second=10), 8),
    "fifty": (
        "1,000 users in 50 of 200 chats each, 4 at once",
        FanOut(
            1000,
            200,
            lambda user: tuple((user * 7 + step * 4) % 200 + 1 for step in range(50)),
            batch=4,
            per_second=20,
        ),
        3,
    ),
    "tens": (
        "2,000 clients in 200 chats of ten, 40 at once",
        FanOut(2000, 200, lambda user: (user // 10 + 1,), batch=40, per_second=20),
        5,
    ),
}
PACES = ("busy", "calm")

#: cores for the load generator and the publisher
OTHERS = 2
#: a server keeps up that delivers so much of what is offered
KEEPS_UP = 0.95


class Cores(Notify):
    """notify with so many processes for its clients."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers
        self.extra = f"workers = {workers}\n[limits]\nmax_arriving = 0"

    def start(self) -> None:
        """Start it, and wait until all workers serve: the ports answer before."""
        super().start()
        self.await_ready()

    def spread(self) -> float:
        """The most clients of a worker less the fewest, as a part of what each would have."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.publish_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found = [
            float(line.rpartition(" ")[2]) for line in lines if line.startswith("notify_worker_connections{")
        ]
        return (max(found) - min(found)) / statistics.mean(found) if found else 0.0


class Spread:
    """A work that also says how the clients were spread."""

    def __init__(self, work: FanOut) -> None:
        self._work = work

    def __call__(self, server: Cores, seconds: float) -> dict[str, Any]:
        found: list[float] = []

        class Looking(FanOut):
            def _measure(self, server: Server, *arguments: Any) -> dict[str, Any]:
                assert isinstance(server, Cores)
                found.append(server.spread())
                return super()._measure(server, *arguments)

        work = Looking(**{name: getattr(self._work, name) for name in self._work.__dataclass_fields__})
        figures = work(server, seconds)
        return {**figures, "spread": found[0] if found else 0.0}


def measure(work: FanOut, workers: int, seconds: float) -> dict[str, Any]:
    """One round."""
    try:
        with Cores(workers) as server:
            return Spread(work)(server, seconds)
    except Unmeasurable as error:
        return {"error": str(error)}


def compare(name: str, pace: str, rounds: int, seconds: float) -> bool:
    """Print one work's table; whether each count reached 0.9 of one process, and the spread is within 20 %."""
    title, work, times = WORKS[name]
    if pace == "busy":
        work = replace(work, per_second=work.per_second * times)
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
    for number in range(rounds):
        for count in COUNTS:
            figures = measure(work, count, seconds)
            found[count].append(figures)
            told = (
                figures.get("error") or f"{figures['cpu_us']:.2f} us a delivery, missing {figures['missing']}"
            )
            print(f"  {name}, {pace} {number + 1}/{rounds}, {count}: {told}", file=sys.stderr, flush=True)
    good = [turn for turn in zip(*found.values(), strict=True) if not any("error" in each for each in turn)]
    print(f"\n### {title}, {work.batch * work.per_second:,.0f} messages/s ({pace})\n")
    print("| workers | deliveries a CPU-second | against one | p50 ms | p99 ms | spread of clients |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    reached = bool(good)
    for index, count in enumerate(COUNTS):
        mine = [turn[index] for turn in good]
        if not mine:
            print(f"| {count} | not measured: {found[count][0].get('error', '')} |")
            continue
        rate = statistics.median(1e6 / each["cpu_us"] for each in mine)
        against = statistics.median(turn[0]["cpu_us"] / turn[index]["cpu_us"] for turn in good)
        spread = max(each["spread"] for each in mine)
        p50, p99 = (statistics.median(each[key] for each in mine) for key in ("p50_ms", "p99_ms"))
        print(f"| {count} | {rate:,.0f} | {against:.2f} | {p50:.2f} | {p99:.2f} | {spread:.1%} |")
        reached = reached and against >= 0.9 and spread <= 0.2
    missing = sum(each["missing"] for turn in good for each in turn)
    if missing:
        print(f"\n{missing:,} deliveries did not come in time.")
    return reached


def knee(seconds: float) -> None:
    """Print up to which pace each count keeps up, where there are cores for it."""
    cores = len(os.sched_getaffinity(0))
    counts = [count for count in COUNTS if count + (count > 1) + OTHERS <= cores]
    if len(counts) < 2:
        print(
            f"\nThe knee is not measured: this machine has {cores} cores, and two workers beside the first process and the "
            f"load need {2 + 1 + OTHERS}."
        )
        return
    print("\n### The knee: one chat of 1,000, up to which pace the server keeps up\n")
    print("| workers | messages/s | deliveries/s |\n| ---: | ---: | ---: |")
    for count in counts:
        pace, best = 50.0, (0.0, 0.0)
        while True:
            figures = measure(replace(WORKS["chat-1000"][1], per_second=pace), count, seconds)
            if "error" in figures or figures["throughput"] < KEEPS_UP * figures["offered"]:
                break
            best = pace, figures["throughput"]
            pace *= 1.25
        print(f"| {count} | {best[0]:,.0f} | {best[1]:,.0f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.workers", description=__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--paces", nargs="+", choices=PACES, default=list(PACES), metavar="PACE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="two rounds of 3 s: figures to develop by")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 3.0
    compile_generator()
    print(f"{machine()}; {options.rounds} rounds of {options.seconds} s, in turns; the median")
    reached = [
        compare(name, pace, options.rounds, options.seconds)
        for name in options.works
        for pace in options.paces
    ]
    knee(options.seconds)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
