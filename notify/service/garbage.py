"""Schedules Python's garbage collection: rarely, because a collection takes longer the more clients are connected.

A closed connection frees itself, including its cycles, which a test checks. Any other cycles are collected by a
timer, in one pause of some 15 ms for each 1,000 connections. Python's own schedule would do that repeatedly just when
thousands of clients come back.
"""

from __future__ import annotations

import gc

from notify.core.timers import Timer, Wheel

#: seconds between two full collections
EVERY = 600.0

#: allocations between two collections of the young generation; and, by the third, practically no full ones by itself
THRESHOLDS = (50_000, 20, 100_000)


class Collector:
    """Sets the schedule while it runs."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._timer: Timer | None = None
        self._before: tuple[int, int, int] | None = None

    def start(self) -> None:
        """Start. What exists already, above all modules, is never examined again."""
        self._before = gc.get_threshold()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        self._timer = self._wheel.after(EVERY, self._look)

    def stop(self) -> None:
        """Restore the previous settings."""
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None
        self._wheel.cancel(self._timer)

    def _look(self) -> None:
        gc.collect()
        self._timer = self._wheel.after(EVERY, self._look)
