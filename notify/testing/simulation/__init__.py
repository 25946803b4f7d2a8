"""Complete servers, clients and a NATS cluster in one process, driven by one simulated clock and one seed.

A plugin's author writes, in a test::

    simulate(Plugins(broker="quiet"), seeds=range(20))

``tests/simulation`` tests notify itself this way; see docs/plugins.md.
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
    """Simulate the lives of some seeds with these plugins. Raises ``AssertionError`` with the fault of the first bad one.

    A life is about 30 simulated seconds of publishers, clients that come and go, broken connections, and processes that
    are killed, paused and restarted. Then all faults are healed, and everything must recover completely. It takes about a quarter
    of a second. The error lists the steps that lead to the fault, and ends with the last lines of the trace.
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
