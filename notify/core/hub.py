"""What all sessions of a server share: the parts that they call, and who is connected."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from notify.core.dispatcher import Dispatcher
from notify.core.live import Live
from notify.core.presence import PresenceWatch
from notify.core.timers import Wheel
from notify.interfaces import IConnection, IRegistry
from notify.observe.metrics import Metrics


class Hub:
    """See above. ``live`` holds the authenticator and the limits; ``now`` is Unix time, for dates: durations are the wheel's."""

    def __init__(
        self,
        live: Live,
        dispatcher: Dispatcher,
        registry: IRegistry,
        presence: PresenceWatch,
        metrics: Metrics,
        wheel: Wheel,
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self.live = live
        self.dispatcher = dispatcher
        self.registry = registry
        self.presence = presence
        self.metrics = metrics
        self.wheel = wheel
        self.now = now
        self.random = random
        #: every open connection, and whether its client has arrived: has shown a good token once
        self.connections: dict[IConnection, bool] = {}
        #: those that have not
        self.arriving = 0

    def enter(self, connection: IConnection) -> bool:
        """A client connects; whether there is room for it, among all and among those on their way in."""
        self.connections[connection] = False
        self.arriving += 1
        self.metrics.connections.inc()
        self.metrics.accepted.inc()
        limits = self.live.now.limits
        return not (
            0 < limits.max_connections < len(self.connections) or 0 < limits.max_arriving < self.arriving
        )

    def arrive(self, connection: IConnection) -> None:
        """Its client has shown a good token."""
        self.connections[connection] = True
        self.arriving -= 1

    def leave(self, connection: IConnection) -> bool:
        """A connection is gone; False: it was already."""
        arrived = self.connections.pop(connection, None)
        if arrived is None:
            return False
        if not arrived:
            self.arriving -= 1
        self.metrics.connections.dec()
        return True

    def retry_after(self, most: float = 5.0) -> str:
        """A close reason that tells a client when to come back: a time of its own, up to ``most`` seconds."""
        return json.dumps({"retry_after_ms": 500 + int(self.random.random() * most * 1000)})
