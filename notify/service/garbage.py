"""When Python looks for reference cycles: seldom, for a look takes longer the more clients are connected.

A connection that is gone frees itself, cycles and all: a test holds that. What else may leave cycles behind is
picked up on a timer, in one pause of some 15 ms for each 1,000 connections. Python's own rhythm would do that
over and over just when thousands of clients come back.
"""

from __future__ import annotations

import gc

from notify.core.timers import Timer, Wheel

#: seconds between two full looks
EVERY = 600.0

#: allocations between two looks at what is young; and a full look (the third) practically never by itself
THRESHOLDS = (50_000, 20, 100_000)


class Collector:
    """Sets the rhythm while it runs."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._timer: Timer | None = None
        self._before: tuple[int, int, int] | None = None

    def start(self) -> None:
        """Begin; what is there already, modules above all, is never looked at again."""
        self._before = gc.get_threshold()
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        self._timer = self._wheel.after(EVERY, self._look)

    def stop(self) -> None:
        """Leave everything as it was."""
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None
        self._wheel.cancel(self._timer)

    def _look(self) -> None:
        gc.collect()
        self._timer = self._wheel.after(EVERY, self._look)
