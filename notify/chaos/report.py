"""Turns the ledger of a run into a report: the verdict, the counts, and the data of the plot; as text and as JSON. Without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median_low
from typing import Literal

import msgspec
from msgspec import Struct

from notify.chaos.ledger import Ledger, Wrong
from notify.chaos.plan import Fault

Verdict = Literal["held", "broken", "unproven"]

#: the exit status of a verdict
STATUS: dict[Verdict, int] = {"held": 0, "broken": 1, "unproven": 2}

_SLICES = 240
_SHOWN = 50
#: accepted latency in seconds from the acknowledgement to a client's application
_LATE = 1.0


class Happened(Struct):
    """A fault as it happened, in seconds since the load began. ``error``: its command, or its undo command, failed."""

    fault: Fault
    at: float
    healed: float
    error: str = ""


class FaultRow(Struct, frozen=True):
    """The effects of a fault. ``hit``: the clients that lost their connection before the next fault. Seconds are None if none did.

    ``caught_up``: the time from the fault's end until each of these had a connection again, every client had received everything
    acknowledged by then, and none waited for more than a second for what was acknowledged before the next fault; None: never.
    """

    fault: str
    at: float
    healed: float
    error: str
    hit: int
    noticed: float | None
    caught_up: float | None


class Slice(Struct, frozen=True):
    """A part of the run beginning at ``at``. ``median`` and ``worst``: seconds from sending to a client's application."""

    at: float
    acknowledged: int
    delivered: int
    median: float
    worst: float
    connected: int


class Counts(Struct, frozen=True):
    """The numbers of messages sent and delivered, and of broken promises."""

    published: int
    acknowledged: int
    unknown: int
    refused: int
    delivered: int
    lost: int
    doubled: int
    disordered: int
    foreign: int
    told: int


class Report(Struct, frozen=True):
    """The whole report; times are in seconds since the load began. ``doubts``: why a run without broken promises proves nothing."""

    verdict: Verdict
    doubts: list[str]
    target: str
    seed: int | None
    seconds: float
    ended: float
    clients: int
    topics: int
    counts: Counts
    reconnects: int
    closes: dict[str, int]
    others: int
    faults: list[FaultRow]
    wrongs: list[Wrong]
    slices: list[Slice]


def make(
    ledger: Ledger,
    happened: Sequence[Happened],
    *,
    target: str,
    seed: int | None,
    began: float,
    seconds: float,
    ended: float,
    doubts: Sequence[str] = (),
) -> Report:
    """Build the report of a run whose load began at ``began`` and lasted ``seconds``, and that ended at ``ended``."""
    wrongs = sorted(ledger.wrongs(), key=lambda wrong: wrong.at)
    of_a_kind = Counter(wrong.what for wrong in wrongs)
    outcomes = ledger.outcomes()
    counts = Counts(
        published=outcomes.total(),
        acknowledged=outcomes["acknowledged"],
        unknown=outcomes["unknown"] + outcomes["waiting"],
        refused=outcomes["refused"],
        delivered=sum(len(held.got) for held in ledger.held),
        lost=of_a_kind["lost"],
        doubled=of_a_kind["doubled"],
        disordered=of_a_kind["disordered"],
        foreign=of_a_kind["foreign"],
        told=sum(len(held.told) for held in ledger.held),
    )
    all_doubts = [*doubts, *_doubts(ledger, happened, counts)]
    return Report(
        verdict="broken" if wrongs else "unproven" if all_doubts else "held",
        doubts=all_doubts,
        target=target,
        seed=seed,
        seconds=seconds,
        ended=ended - began,
        clients=len({held.client for held in ledger.held}),
        topics=len({held.topic for held in ledger.held}),
        counts=counts,
        reconnects=sum(at >= began for at, _ in ledger.came),
        closes={str(code or "none"): n for code, n in _closes(ledger, began).most_common()},
        others=ledger.others,
        faults=list(_rows(ledger, happened, began)),
        wrongs=[msgspec.structs.replace(wrong, at=wrong.at - began) for wrong in wrongs],
        slices=list(_slices(ledger, began, ended)),
    )


def _closes(ledger: Ledger, began: float) -> Counter[int]:
    return Counter(code for at, _, code in ledger.left if at >= began)


def _doubts(ledger: Ledger, happened: Sequence[Happened], counts: Counts) -> Iterator[str]:
    if not counts.acknowledged:
        yield "no message was acknowledged"
    elif not counts.delivered:
        yield "no message was delivered"
    for one in happened:
        if one.error:
            yield f"the fault '{one.fault}' did not go as planned: {one.error}"
    for client, reason in ledger.ended.items():
        yield f"{client} was sent away for good: {reason}"
    away = {held.client for held in ledger.held if not held.whole} - set(ledger.ended)
    if away:
        yield f"{len(away)} of the clients had not come back in the end"
    behind = {held.client for held in ledger.behind() if held.whole}
    if behind:
        yield f"{len(behind)} of the clients had not caught up in the end"


def _rows(ledger: Ledger, happened: Sequence[Happened], began: float) -> Iterator[FaultRow]:
    late = [
        (sent.settled, got.at)
        for held in ledger.held
        for got in held.got
        if got.at - (sent := ledger.sent[held.topic][got.number - 1]).settled > _LATE
        and sent.outcome == "acknowledged"
    ]
    for index, one in enumerate(happened):
        at, healed = began + one.at, began + one.healed
        until = began + happened[index + 1].at if index + 1 < len(happened) else float("inf")
        first: dict[str, float] = {}
        for left, client, _ in ledger.left:
            if at <= left < until:
                first.setdefault(client, left)
        reached = [ledger.reached(held, healed) for held in ledger.held if held.client not in ledger.ended]
        reached += [
            next((came for came, who in ledger.came if who == client and came >= left), None)
            for client, left in first.items()
            if client not in ledger.ended
        ]
        reached += [came for settled, came in late if at <= settled < until]
        times = [time for time in reached if time is not None]
        yield FaultRow(
            fault=str(one.fault),
            at=one.at,
            healed=one.healed,
            error=one.error,
            hit=len(first),
            noticed=max(first.values()) - at if first else None,
            caught_up=max(0.0, max(times) - healed) if times and len(times) == len(reached) else None,
        )


def _slices(ledger: Ledger, began: float, ended: float) -> Iterator[Slice]:
    length = max((ended - began) / _SLICES, 0.25)
    count = max(1, round((ended - began) / length))
    latencies: list[list[float]] = [[] for _ in range(count)]
    acknowledged = [0] * count
    changes = [0] * count

    def slot(at: float) -> int:
        return min(max(int((at - began) / length), 0), count - 1)

    for sent in ledger.sent.values():
        for one in sent:
            if one.outcome == "acknowledged":
                acknowledged[slot(one.settled)] += 1
    for held in ledger.held:
        for got in held.got:
            latencies[slot(got.at)].append(got.at - ledger.sent[held.topic][got.number - 1].at)
    connected = 0
    for at, change in [*((at, 1) for at, _ in ledger.came), *((at, -1) for at, _, _ in ledger.left)]:
        if at < began:
            connected += change
        else:
            changes[slot(at)] += change
    for index, found in enumerate(latencies):
        connected += changes[index]
        yield Slice(
            at=round(index * length, 3),
            acknowledged=acknowledged[index],
            delivered=len(found),
            median=median_low(found) if found else 0.0,
            worst=max(found, default=0.0),
            connected=connected,
        )


# ------------------------------------------------------------------ for readers


def sentence(report: Report) -> str:
    """The verdict in one sentence."""
    counts = report.counts
    if report.verdict == "held":
        told = (
            f", and {counts.told} times a client was told that it may have missed some" if counts.told else ""
        )
        return f"Held: every message that was acknowledged came once and in order{told}."
    if report.verdict == "unproven":
        return f"Unproven: nothing broke, but {'; '.join(report.doubts)}."
    parts = [
        f"{number} {what}"
        for number, what in (
            (counts.lost, "lost without a word"),
            (counts.doubled, "doubled"),
            (counts.disordered, "out of order"),
            (counts.foreign, "given to a client that must not have them"),
        )
        if number
    ]
    return f"Broken: of {counts.acknowledged} messages and {counts.delivered} deliveries, {', '.join(parts)}."


def figures(report: Report) -> list[tuple[str, str]]:
    """The counts with their names."""
    counts = report.counts
    closes = ", ".join(f"{code}: {count}" for code, count in report.closes.items())
    unsettled = f"{counts.unknown} unknown, {counts.refused} refused"
    return [
        ("published", f"{counts.published}"),
        ("acknowledged", f"{counts.acknowledged} ({unsettled})"),
        ("delivered", f"{counts.delivered}, to {report.clients} clients of {report.topics} topics"),
        ("lost", f"{counts.lost}"),
        ("doubled", f"{counts.doubled}"),
        ("out of order", f"{counts.disordered}"),
        ("foreign", f"{counts.foreign}"),
        ("told", f"{counts.told}"),
        ("reconnects", f"{report.reconnects}" + (f" (close codes {closes})" if closes else "")),
    ]


def seconds(value: float | None, none: str) -> str:
    """A duration in human-readable form."""
    return none if value is None else f"{value:.2f} s"


def text(report: Report) -> str:
    """The report for a terminal."""
    lines = [sentence(report), ""]
    lines += [f"  {name:<14}{value}" for name, value in figures(report)]
    if report.others:
        lines.append(f"  {'others':<14}{report.others} messages of others came in the same topics")
    if report.faults:
        lines += ["", "  noticed   caught up   clients   fault"]
    for row in report.faults:
        noticed, caught_up = seconds(row.noticed, "-"), seconds(row.caught_up, "never")
        lines.append(f"  {noticed:>7}   {caught_up:>9}   {row.hit:>7}   {row.fault}")
        if row.error:
            lines.append(f"  {'':>31}{row.error}")
    if report.verdict == "broken":
        lines += ["", *(f"  doubt: {doubt}" for doubt in report.doubts)]
        lines += [
            f"  {wrong.what}: number {wrong.number} of {wrong.topic}, {wrong.client}, at {wrong.at:.2f} s"
            for wrong in report.wrongs[:_SHOWN]
        ]
        if len(report.wrongs) > _SHOWN:
            lines.append(f"  and {len(report.wrongs) - _SHOWN} more: --json has them all")
    if report.seed is not None:
        lines += ["", f"  the same faults again: --seed {report.seed} --seconds {report.seconds:g}s"]
    return "\n".join(lines)
