"""Numbers inside the stream that no message has any more: deleted, purged, or lost by the server."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Holes:
    """A set of numbers. ``up_to``: so many are missing that every number up to there must be taken for one."""

    __slots__ = ("_numbers", "_up_to")

    def __init__(self, numbers: Iterable[int] = (), up_to: int = 0) -> None:
        self._numbers = array("Q", sorted(numbers))
        self._up_to = up_to

    def between(self, after: int, up_to: int | None = None) -> bool:
        """Whether there is one past ``after`` and not past ``up_to``; None: up to the stream's end."""
        return self.newest(after, up_to) > 0

    def newest(self, after: int, up_to: int | None = None) -> int:
        """The highest of those that :meth:`between` means; 0: there is none."""
        end = len(self._numbers) if up_to is None else bisect_right(self._numbers, up_to)
        found = self._numbers[end - 1] if end else 0
        everywhere = self._up_to if up_to is None else min(self._up_to, up_to)
        found = max(found, everywhere)
        return found if found > after else 0

    def count(self, first: int, last: int) -> int:
        """How many there are from ``first`` to ``last``, as far as they are known one by one."""
        return max(0, bisect_right(self._numbers, last) - bisect_left(self._numbers, first))
