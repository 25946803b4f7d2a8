"""Keeps publishers no faster than the workers, as a single process does by being busy.

Otherwise a worker that falls behind would be sent more than may be queued for it, and be given up. So messages wait
before they are published, and workspaces take turns. A worker that takes nothing at all is not waited for: it may be
stopped or hung, and others must not have to wait for it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from twisted.internet.defer import Deferred

from notify.errors import Unavailable
from notify.messages import OVERHEAD
from notify.workers.link import Link

#: seconds between looks at what is queued, while messages wait
LOOK = 0.005
#: seconds without taking anything after which a worker is not waited for
STUCK = 3.0
#: bytes that are published in one turn of the reactor, each message with half a KiB more than its payload; what the
#: workers take of them is known only at its end
AT_ONCE = 2**18


class Pace:
    """Called before a message, or a list that is all or nothing, is published.

    ``clock`` is an ``IReactorTime``; ``links`` returns those to the workers.
    """

    def __init__(self, clock: Any, links: Callable[[], Iterable[Link]]) -> None:
        self._clock = clock
        self._links = links
        #: what waits, of each workspace whose turn comes
        self._waiting: OrderedDict[Hashable, deque[tuple[int, Deferred[None]]]] = OrderedDict()
        self._looking = False  # a look is due
        self._published = 0  # bytes in this turn
        #: the links that are behind: how much each had taken when last seen to take anything, and when that was
        self._behind: dict[Link, tuple[int, float]] = {}

    def __call__(self, workspace: Hashable, size: int) -> Deferred[None] | None:
        """Fires when these bytes may be published for a workspace; None: now.

        If it is cancelled, it fails with :class:`~notify.errors.Unavailable`.
        """
        if not self._looking:
            if self._published < AT_ONCE and not self._must_wait():
                self._count(size)
                return None
            self._look_in(LOOK)
        wait: Deferred[None] = Deferred(_give_up)
        self._waiting.setdefault(workspace, deque()).append((size, wait))
        return wait

    def _count(self, size: int) -> None:
        if not self._published:
            self._clock.callLater(0, self._end_turn)
        self._published += size + OVERHEAD

    def _end_turn(self) -> None:
        self._published = 0

    def _look_in(self, seconds: float) -> None:
        self._looking = True
        self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        must_wait = self._must_wait()
        while self._waiting and self._published < AT_ONCE and not must_wait:
            workspace, line = next(iter(self._waiting.items()))
            size, wait = line.popleft()
            if line:
                self._waiting.move_to_end(workspace)
            else:
                del self._waiting[workspace]
            if not wait.called:  # else it was given up
                self._count(size)
                wait.callback(None)
        self._looking = bool(self._waiting)
        if self._looking:
            self._look_in(LOOK if must_wait else 0)

    def _must_wait(self) -> bool:
        behind = [link for link in self._links() if link.behind]
        if not behind:  # nearly always
            self._behind.clear()
            return False
        now, before, self._behind = self._clock.seconds(), self._behind, {}
        for link in behind:
            taken, since = before.get(link, (link.taken, now))
            self._behind[link] = (link.taken, since if link.taken == taken else now)
        return any(now - since < STUCK for _, since in self._behind.values())


def _give_up(wait: Deferred[None]) -> None:
    wait.errback(Unavailable("the workers are behind"))
