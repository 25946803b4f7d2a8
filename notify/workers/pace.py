"""Keeps publishers no faster than the workers, as a single process does by being busy.

A worker that falls behind would otherwise be sent more than may be queued for it, and be given up. So messages are published once
it has caught up, and few at once. A worker that takes nothing at all is not waited for: it may be stopped or hung, and others
must not have to wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred

from notify.workers.link import Link

#: seconds between looks at what is queued, while publishers wait
LOOK = 0.02
#: seconds without taking anything after which a worker is not waited for
STUCK = 1.0
#: bytes of waiting messages that are published at one look: a part of what may be queued for a worker, with its frames
LET_GO = 2**20


class Pace:
    """Called before each message is published. ``clock`` is an ``IReactorTime``; ``links`` returns those to the workers."""

    def __init__(self, clock: Any, links: Callable[[], Iterable[Link]]) -> None:
        self._clock = clock
        self._links = links
        self._waiting: deque[tuple[Deferred[None], int]] = deque()
        self._looking = False
        #: the links that are behind: how much each had taken when last seen to take anything, and when that was
        self._behind: dict[Link, tuple[int, float]] = {}

    def __call__(self, size: int) -> Deferred[None] | None:
        """Fires when a message of ``size`` bytes may be published, in the order of the calls; None: now. May be cancelled."""
        if not self._looking:
            if not self._must_wait():
                return None
            self._looking = True
            self._clock.callLater(LOOK, self._look)
        wait: Deferred[None] = Deferred()
        self._waiting.append((wait, size))
        return wait

    def _look(self) -> None:
        if not self._must_wait():
            left = LET_GO
            while self._waiting and left > 0:
                wait, size = self._waiting.popleft()
                if not wait.called:  # otherwise it was cancelled
                    left -= size
                    wait.callback(None)
        self._looking = bool(self._waiting)
        if self._looking:
            self._clock.callLater(LOOK, self._look)

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
