"""Disconnects clients, each with its own slot to reconnect in: one batch, or a share of a node's clients in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from twisted.logger import Logger

from notify.core.hub import Hub
from notify.interfaces import IConnection

log = Logger()

SERVICE_RESTART = 1012

#: seconds between two steps: the longest that a client waits in addition to its own handshake
STEP = 0.5


def send_away(chosen: Sequence[IConnection], spread: float, elsewhere: bool = False) -> None:
    """Close with 1012, so that the clients reconnect one after the other over ``spread`` seconds.

    ``elsewhere``: with another ``client_id``.
    """
    for index, connection in enumerate(chosen):
        advice = {"retry_after_ms": round(1000 * spread * index / len(chosen))}
        if elsewhere:
            advice["elsewhere"] = True
        connection.close(SERVICE_RESTART, msgspec.json.encode(advice).decode())


class Shed:
    """Moves a share of a node's clients to other nodes, at the rate at which a drain would disconnect all of them.

    Each client is asked to change its ``client_id``, so that a load balancer that hashes on it picks another node.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._left: list[IConnection] = []
        self._count, self._seconds, self._began = 0, 0.0, 0.0

    @property
    def running(self) -> bool:
        """Whether some of the chosen clients are still here."""
        return bool(self._left)

    def begin(self, share: float) -> tuple[int, float]:
        """Choose a share (above 0, at most 1) of the authenticated clients, and disconnect the first of them.

        The choice is random and rounded down. Returns how many there are, and the seconds over which they leave. Must
        not be called while :attr:`running`.
        """
        hub = self._hub
        # Sorted, so that a seed gives the same order each time.
        here = sorted(
            (one for one, arriving in hub.connections.items() if arriving is None), key=lambda one: one.id
        )
        # 0.29 * 100 is slightly less than 29.
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
        # How far it should be when the next step comes, because a timer may be late.
        due = hub.wheel.seconds() - self._began + STEP
        part = 1.0 if due >= self._seconds else due / self._seconds
        stay = self._count - math.ceil(self._count * part)
        chosen, self._left = self._left[stay:], self._left[:stay]
        send_away([one for one in chosen if one in hub.connections], STEP, elsewhere=True)
        if self._left:
            hub.wheel.after(STEP, self._step)
