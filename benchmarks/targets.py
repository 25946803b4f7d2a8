"""What notify is held to, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.figures import Rounds, good, median, ratios, spread, values


@dataclass(frozen=True)
class Bar:
    """The most that ``server`` may take of ``key`` in ``work``: for each that ``other`` takes, or by itself."""

    what: str
    bound: float
    work: str
    key: str
    server: str
    other: str = ""
    form: str = ".2f"
    unit: str = ""

    def row(self, results: Mapping[str, Rounds]) -> tuple[str, str, str, str] | None:
        """What, measured, bar and verdict; None where the work was not part of the run."""
        if self.work not in results:
            return None
        rounds = results[self.work]
        if self.other:
            found = ratios(rounds, self.server, self.other, self.key)
        else:
            found = values(rounds.get(self.server, []), self.key)
        bar = f"{self.bound:g}{self.unit}"
        if not found:
            return self.what, "", bar, "not measured"
        reached = statistics.median(found) <= self.bound
        return self.what, spread(found, self.form) + self.unit, bar, verdict(reached)


MEMORY, JETSTREAM = "notify", "notify (JetStream)"
BARS = (
    Bar("publish: CPU against a bare uvicorn", 2.0, "publish", "request_us", MEMORY, "uvicorn"),
    Bar(
        "publish on JetStream: CPU against a bare uvicorn", 3.5, "publish", "request_us", JETSTREAM, "uvicorn"
    ),
    Bar("pairs: CPU a message", 117, "pairs", "message_us", MEMORY, form=".0f", unit=" us"),
    Bar(
        "pairs on JetStream: CPU of the node a message",
        205,
        "pairs",
        "message_us",
        JETSTREAM,
        form=".0f",
        unit=" us",
    ),
    Bar("bursts: CPU on JetStream against memory", 2, "bursts", "cpu_us", JETSTREAM, MEMORY),
    Bar("chat of 1,000: CPU against the floor in C", 1.25, "chat-1000", "cpu_us", MEMORY, "floor"),
    Bar("chats of ten, lists of 20: CPU against Nchan", 0.9, "tens", "cpu_us", MEMORY, "Nchan"),
    Bar("chats of ten: CPU on JetStream against memory", 1.2, "tens", "cpu_us", JETSTREAM, MEMORY),
)


def needed() -> dict[str, tuple[str, ...]]:
    """The servers of each work that the bars are about."""
    found: dict[str, dict[str, None]] = {}
    for bar in BARS:
        found.setdefault(bar.work, {}).update(
            dict.fromkeys((bar.other, bar.server) if bar.other else (bar.server,))
        )
    return {work: tuple(servers) for work, servers in found.items()}


def best_peer(rounds: Rounds, key: str) -> str | None:
    """Who takes least of all that are neither notify nor less than a server."""
    peers = {
        name: median(each, key)
        for name, each in rounds.items()
        if not name.startswith(("notify", "floor", "Autobahn (")) and values(each, key)
    }
    return min(peers, key=lambda name: peers[name]) if peers else None


def others(results: Mapping[str, Rounds]) -> list[tuple[str, str, str, str]]:
    """Rows whose bars hang on who else is in the run, or are no ratios of CPU."""
    rows: list[tuple[str, str, str, str]] = []

    def against(
        work: str, other: str | None, key: str, bound: float, what: str, server: str = MEMORY
    ) -> None:
        found = ratios(results.get(work, {}), server, other or "", key)
        if found:
            rows.append(
                (
                    f"{what} against {other} ({server})",
                    spread(found, ".2f"),
                    f"{bound:g}",
                    verdict(statistics.median(found) <= bound),
                )
            )

    def figure(work: str, key: str, bound: float, what: str, unit: str, form: str) -> None:
        rounds = results.get(work, {}).get(MEMORY, [])
        if good(rounds):
            found = median(rounds, key)
            rows.append((what, f"{found:{form}} {unit}", f"{bound:g} {unit}", verdict(found <= bound)))

    for server in (MEMORY, "notify (batch)"):
        best = best_peer(results.get("chat-1000", {}), "cpu_us")
        against("chat-1000", best, "cpu_us", 1, "chat of 1,000: CPU", server)
        best = best_peer(results.get("bursts", {}), "cpu_us")
        against("bursts", best, "cpu_us", 0.5, "bursts: CPU", server)
    idle = results.get("idle", {})
    against("idle", best_peer(idle, "memory"), "memory", 1, "memory of an idle connection")
    figure("idle", "memory_kib", 10, "memory of an idle connection", "KiB", ".2f")
    against("idle", "Autobahn (handshake)", "accept_us", 1, "accept, authenticate, subscribe: CPU")
    against("idle", "Node ws", "accept_us", 1.5, "accept, authenticate, subscribe: CPU")
    figure("storm", "p99_ms", 250, "storm of 10,000: p99 of live traffic", "ms", ".0f")
    what = "a client that never reads: growth over a minute, its bound of 1 MiB and some for the rest"
    figure("never-reads", "memory_peak_mib", 1.5, what, "MiB", ".2f")
    return rows


def verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def table(results: Mapping[str, Rounds]) -> str:
    """The bars of the works in a run, beside what was measured."""
    rows = [row for bar in BARS if (row := bar.row(results))]
    lines = ["| target | measured | at most | |", "| --- | ---: | ---: | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in (*rows, *others(results))]
    return "\n".join(lines) + "\n"
