"""Whole servers, clients and a cluster of NATS in one process, on one moved clock and one seed.

See ``tests/simulation`` for how notify is tried with it, and docs/plugins.md for how a plugin is.
"""

from notify.testing.simulation.life import Outcome, play
from notify.testing.simulation.marks import MARKS
from notify.testing.simulation.plan import Plan, draw
from notify.testing.simulation.shrink import shrink

__all__ = ["MARKS", "Outcome", "Plan", "draw", "play", "shrink"]
