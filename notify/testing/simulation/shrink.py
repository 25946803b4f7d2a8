"""Reduces a life in which something was wrong to the few steps that cause it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from notify.testing.simulation.life import Outcome, play
from notify.testing.simulation.plan import Plan


def shrink(plan: Plan, seconds: float, again: Callable[[Plan], Outcome] = play) -> Plan:
    """Return the plan with the fewest steps found within ``seconds`` (of real time) that still goes wrong in the same way.

    Removes ever smaller parts (delta debugging: Zeller and Hildebrandt, 2002).
    """
    wrong = again(plan).violation
    if wrong is None:
        return plan
    end = monotonic() + seconds
    kept = [step.number for step in plan.steps]
    size = max(1, len(kept) // 2)
    while size:
        start = 0
        while start < len(kept) and monotonic() < end:
            without = kept[:start] + kept[start + size :]
            found = again(plan.only(without)).violation
            if found is not None and found.kind == wrong.kind:
                kept = without
            else:
                start += size
        size //= 2
    return plan.only(kept)
