"""Clients that are sent away, each with its own slot to come back in: a step of them, and a share of a node's, in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from twisted.logger import Logger

from notify.core.hub import Hub
from notify.interfaces import IConnection

log = Logger()

SERVICE_RESTART = 1012

#: seconds between two steps: what a client waits at most beyond its own handshake
STEP = 0.5


def send_away(chosen: Sequence[IConnection], spread: float, elsewhere: bool = False) -> None:
    """Close with 1012, so that they come back one after the other over ``spread`` seconds; ``elsewhere``: by another ``client_id``."""
    for index, connection in enumerate(chosen):
        advice = {"retry_after_ms": round(1000 * spread * index / len(chosen))}
        if elsewhere:
            advice["elsewhere"] = True
        connection.close(SERVICE_RESTART, msgspec.json.encode(advice).decode())


class Shed:
    """Sends a share of a node's clients to others, at the rate at which its drain would send all of them away.

    A client goes elsewhere where a load balancer hashes on the ``client_id``, which it is asked to change.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._left: list[IConnection] = []
        self._count, self._seconds, self._began = 0, 0.0, 0.0

    @property
    def running(self) -> bool:
        """Whether some of those who were chosen are still here."""
        return bool(self._left)

    def begin(self, share: float) -> tuple[int, float]:
        """Choose a share (above 0, at most 1) of the authenticated clients at random, rounded down, and send the first away.

        Gives how many they are, and over how many seconds they go. Not while one is :attr:`running`.
        """
        hub = self._hub
        # Sorted, because a seed could not repeat the order otherwise.
        here = sorted(
            (one for one, arriving in hub.connections.items() if arriving is None), key=lambda one: one.id
        )
        # 0.29 * 100 is a little less than 29.
        self._left = hub.random.sample(here, math.floor(share * len(here) + 1e-9))
        self._count, self._began = len(self._left), hub.wheel.seconds()
        self._seconds = hub.live.now.drain.duration * self._count / len(here) if here else 0.0
        log.info(
            "{count} of {total} clients are sent to other nodes, over {seconds:.1f} s",
            count=self._count,
            total=len(here),
            seconds=self._seconds,
        )
        self._step()
        return self._count, self._seconds

    def _step(self) -> None:
        hub = self._hub
        # How far it should be when the next step comes, for a timer may be late.
        due = hub.wheel.seconds() - self._began + STEP
        part = 1.0 if due >= self._seconds else due / self._seconds
        stay = self._count - math.ceil(self._count * part)
        chosen, self._left = self._left[stay:], self._left[:stay]
        send_away([one for one in chosen if one in hub.connections], STEP, elsewhere=True)
        if self._left:
            hub.wheel.after(STEP, self._step)
