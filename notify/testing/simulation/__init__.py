"""Whole servers, clients and a cluster of NATS in one process, on one moved clock and one seed.

A plugin's author writes, in a test::

    simulate(Plugins(broker="quiet"), seeds=range(20))

``tests/simulation`` is how notify itself is tried; docs/plugins.md says more.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import structs

from notify.testing.simulation.life import Outcome, play
from notify.testing.simulation.marks import MARKS
from notify.testing.simulation.plan import OURS, Plan, Plugins, draw
from notify.testing.simulation.shrink import shrink

__all__ = ["MARKS", "OURS", "Outcome", "Plan", "Plugins", "draw", "play", "shrink", "simulate"]


def simulate(plugins: Plugins = OURS, seeds: Iterable[int] = range(10)) -> None:
    """Play the lives of some seeds on these plugins. Raises ``AssertionError`` with what was wrong in the first bad one.

    A life is some 30 simulated seconds of publishers, clients that come and go, broken connections, and processes that
    are killed, paused and restarted; then all is healed, and everything has to be whole. It takes about a quarter of a
    second. The error names the steps that it takes, and ends with the last lines of the trace.
    """
    if "jwt" not in plugins.tables and plugins.auth == "jwt":
        plugins = structs.replace(plugins, tables={**plugins.tables, **OURS.tables})
    for seed in seeds:
        if play(draw(seed, plugins)).violation is not None:
            plan = shrink(draw(seed, plugins), 20.0)
            outcome = play(plan, traced=True)
            steps = "\n  ".join(str(step) for step in plan.steps)
            trace = "\n  ".join(outcome.trace[-40:])
            raise AssertionError(
                f"seed {seed}: {outcome.violation}\n  {steps}\n the end of its trace:\n  {trace}"
            )
