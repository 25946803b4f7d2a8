"""A deadline that is moved several times in each request, at almost no cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Deadline:
    """Calls ``over()`` if the deadline passes.

    A deadline is only a number that a single timer checks now and then. (A new timer each time would cost
    milliseconds a request, since asyncio's reactor searches all of its timers to reset one to an earlier time.) The
    timer always fires before a deadline can have passed, because its interval is at most the shortest timeout,
    ``shortest()``.
    """

    __slots__ = ("_at", "_over", "_reactor", "_shortest", "_timer")

    def __init__(self, reactor: Any, shortest: Callable[[], float], over: Callable[[], None]) -> None:
        self._reactor = reactor
        self._shortest = shortest
        self._over = over
        self._at = math.inf
        self._timer: Any = None

    def within(self, seconds: float) -> None:
        """Set the deadline this many seconds from now; infinity: none."""
        self._at = self._reactor.seconds() + seconds
        if self._timer is None and seconds < math.inf:
            self._watch(seconds)

    def lift(self) -> None:
        """Remove the deadline."""
        self._at = math.inf

    def stop(self) -> None:
        """Remove the deadline for good, and drop all references."""
        self._at = math.inf
        self._over, self._shortest = _nothing, _at_once
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _watch(self, left: float) -> None:
        self._timer = self._reactor.callLater(max(0.0, min(left, self._shortest())), self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._at - self._reactor.seconds()
        if left <= 0:
            self._at = math.inf
            self._over()
        elif left < math.inf:
            self._watch(left)


def _nothing() -> None:
    pass


def _at_once() -> float:
    return 0.0
