"""Topics that nobody here wants any more, and that are followed for a while: those who left often come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from notify.topics import Topic

#: topics that linger at once; over it, those whose members left first go
MOST = 10_000


class Lingering:
    """``leave`` is called with a topic whose time is over. ``later(seconds, call)`` is the timer wheel's ``after``.

    One timer serves all: who left first goes first.
    """

    def __init__(
        self,
        leave: Callable[[Topic], None],
        later: Callable[[float, Callable[[], None]], object],
        seconds: Callable[[], float],
    ) -> None:
        self._leave = leave
        self._later = later
        self._seconds = seconds
        self._until: OrderedDict[Topic, float] = OrderedDict()
        self._armed = False

    def __len__(self) -> int:
        return len(self._until)

    def add(self, topic: Topic, seconds: float) -> None:
        """A topic's last member left: it may stay so long."""
        self._until[topic] = self._seconds() + seconds
        if len(self._until) > MOST:
            self._end(next(iter(self._until)))
        self._arm()

    def discard(self, topic: Topic) -> None:
        """It is wanted again, or gone. Harmless when it does not linger."""
        self._until.pop(topic, None)

    def clear(self) -> None:
        """All of them go."""
        for topic in list(self._until):
            self._end(topic)

    def _arm(self) -> None:
        if self._until and not self._armed:
            self._armed = True
            self._later(max(0.0, next(iter(self._until.values())) - self._seconds()), self._look)

    def _look(self) -> None:
        self._armed = False
        now = self._seconds()
        for topic, until in list(self._until.items()):
            if until > now:
                break
            self._end(topic)
        self._arm()

    def _end(self, topic: Topic) -> None:
        del self._until[topic]
        self._leave(topic)
