"""Topics that nobody here wants any more, and that are followed for a while: those who left often come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from notify.topics import Topic

#: topics that linger at once; over it, those whose members left first go
MOST = 10_000
#: seconds until another time that was reloaded is obeyed
OBEY = 10.0


class Lingering:
    """``leave`` is called with a topic whose time is over: ``linger()`` seconds after it was added, as is in force then.

    One timer serves all: who left first goes first. ``later(seconds, call)`` is the timer wheel's ``after``.
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
        """It is wanted again, or gone. Harmless when it does not linger."""
        self._since.pop(topic, None)

    def clear(self) -> None:
        """All of them go."""
        while self._since:
            self._end(next(iter(self._since)))

    def _left(self) -> float:
        """Seconds that the first of them has yet."""
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
