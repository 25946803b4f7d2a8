"""Which rounds hold: one that the publisher or the load generator spoilt is thrown away and repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

#: the largest share of one core that the publisher and the load generator may each take: at more they set the pace
BUSY = 0.8
#: the largest share of publishes that may begin more than an interval late: messages that should come alone then come together
LATE = 0.05
#: how often a round is repeated at most
AGAIN = 2


def lateness(due: Sequence[float], began: Sequence[float], took: Sequence[float], interval: float) -> float:
    """The share of publishes that began more than an ``interval`` late by the publisher's own doing.

    All in seconds of one clock, an entry a publish: when it was due, when it began, and how long it took to hand it over. Late is
    what is behind a publisher that needs no time of its own: one that the server holds up, by not reading, is not.
    """
    late, free = 0, -math.inf
    for when, begun, lasted in zip(due, began, took, strict=True):
        ideal = max(when, free)
        late += begun - ideal > interval
        free = ideal + lasted
    return late / len(due) if due else 0.0


def spoilt(figures: dict[str, Any]) -> str:
    """Why a round does not hold; empty where it does."""
    if figures.get("publisher_late_share", 0) > LATE or figures.get("publisher_cpu_share", 0) > BUSY:
        return "the publisher was late"
    if figures.get("generator_cpu_share", 0) > BUSY:
        return "the load generator was too busy"
    return ""


def hold(run: Callable[[], dict[str, Any]], again: int = AGAIN) -> dict[str, Any]:
    """The figures of one round, repeated at most ``again`` times while they have a ``spoilt``.

    ``thrown_away`` has the reason of each that was; the last is kept as it is.
    """
    thrown: list[str] = []
    while True:
        figures = run()
        reason = figures.get("spoilt", "")
        if not reason or len(thrown) >= again:
            return {**figures, "thrown_away": thrown}
        thrown.append(reason)
