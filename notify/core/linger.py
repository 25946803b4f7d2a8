"""Topics without clients on this node that stay followed for a while, because clients that leave often come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from notify.topics import Topic

#: topics that linger at once; past that, those whose last member left first are dropped
MOST = 10_000
#: the most seconds until a time that was changed by a reload takes effect
OBEY = 10.0


class Lingering:
    """Calls ``leave`` with each topic whose time is over, ``linger()`` seconds after it was added.

    The value of ``linger()`` in force at that time counts. One timer serves all topics, in the order in which they
    were added. ``later(seconds, call)`` is the timer wheel's ``after``.
    """

    def __init__(
        self,
        leave: Callable[[Topic], None],
        linger: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        seconds: Callable[[], float],
    ) -> None:
        self._leave = leave
        self._linger = linger
        self._later = later
        self._seconds = seconds
        self._since: OrderedDict[Topic, float] = OrderedDict()
        self._armed = False

    def __len__(self) -> int:
        return len(self._since)

    def add(self, topic: Topic) -> None:
        """A topic's last member left."""
        self._since[topic] = self._seconds()
        if len(self._since) > MOST:
            self._end(next(iter(self._since)))
        self._arm()

    def discard(self, topic: Topic) -> None:
        """The topic is wanted again, or gone. Does nothing if it does not linger."""
        self._since.pop(topic, None)

    def clear(self) -> None:
        """Drop all of them."""
        while self._since:
            self._end(next(iter(self._since)))

    def _left(self) -> float:
        """Seconds until the first of them is due."""
        return next(iter(self._since.values())) + self._linger() - self._seconds()

    def _arm(self) -> None:
        if self._since and not self._armed:
            self._armed = True
            self._later(min(max(0.0, self._left()), OBEY), self._look)

    def _look(self) -> None:
        self._armed = False
        while self._since and self._left() <= 0:
            self._end(next(iter(self._since)))
        self._arm()

    def _end(self, topic: Topic) -> None:
        del self._since[topic]
        self._leave(topic)
