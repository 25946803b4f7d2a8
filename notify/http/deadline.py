"""A deadline that is moved several times a request, and costs next to nothing each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


class Deadline:
    """Calls ``over()`` once what is waited for has not come in time.

    Deadlines are mere numbers, and one timer looks at them now and then. (A timer of its own each time costs milliseconds
    a request, since asyncio's reactor searches all of its timers to make one ring earlier.) The timer rings before any
    deadline can be over: it looks at least as often as the shortest one lasts, which ``shortest()`` says.
    """

    __slots__ = ("_at", "_over", "_reactor", "_shortest", "_timer")

    def __init__(self, reactor: Any, shortest: Callable[[], float], over: Callable[[], None]) -> None:
        self._reactor = reactor
        self._shortest = shortest
        self._over = over
        self._at = math.inf
        self._timer: Any = None

    def within(self, seconds: float) -> None:
        """Let what is waited for come within so many seconds; infinity: whenever it will."""
        self._at = self._reactor.seconds() + seconds
        if self._timer is None and seconds < math.inf:
            self._watch(seconds)

    def lift(self) -> None:
        """Wait for nothing."""
        self._at = math.inf

    def stop(self) -> None:
        """Wait for nothing, ever again, and hold nobody."""
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
