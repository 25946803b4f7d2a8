"""Holes: numbers inside the stream that no longer have a message, because it was deleted, purged, or lost by the server."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Holes:
    """A set of numbers. ``up_to``: there were too many holes to list, so every number up to there counts as one."""

    __slots__ = ("_numbers", "_up_to")

    def __init__(self, numbers: Iterable[int] = (), up_to: int = 0) -> None:
        self._numbers = array("Q", sorted(numbers))
        self._up_to = up_to

    def between(self, after: int, up_to: int | None = None) -> bool:
        """Whether there is a hole after ``after`` and up to ``up_to``, or up to the stream's end (None)."""
        return self.newest(after, up_to) > 0

    def newest(self, after: int, up_to: int | None = None) -> int:
        """The highest of the holes that :meth:`between` means; 0 if there is none."""
        end = len(self._numbers) if up_to is None else bisect_right(self._numbers, up_to)
        found = self._numbers[end - 1] if end else 0
        everywhere = self._up_to if up_to is None else min(self._up_to, up_to)
        found = max(found, everywhere)
        return found if found > after else 0

    def count(self, first: int, last: int) -> int:
        """The number of holes from ``first`` to ``last``, as far as they are known individually."""
        return max(0, bisect_right(self._numbers, last) - bisect_left(self._numbers, first))
