"""What all sessions of a server share: the parts that they call, and who is connected."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Protocol

from notify.core.dispatcher import Dispatcher
from notify.core.live import Live
from notify.core.presence import PresenceWatch
from notify.core.revocations import Revocations
from notify.core.signals import Signals
from notify.core.timers import Wheel
from notify.core.witness import Witness
from notify.ids import Id
from notify.interfaces import IConnection, IRegistry
from notify.observe.metrics import Metrics
from notify.topics import Topic
from notify.wire.frames import FEATURES, SIGNALS


class Subscriber(Protocol):
    """A client that has been in a chat, or asks for one."""

    def renew(self) -> None:
        """Another authenticator is in force: its chats are asked about again."""

    def bar(self, chat_id: Id) -> bool:
        """It is to be in this chat no more, nor to get in by what was answered before; whether it was, or was about to."""


def _nobody() -> None:
    """In place of whoever wants to know."""


class Hub:
    """See above. ``live`` holds the authenticator and the limits; ``now`` is Unix time, for dates: durations are the wheel's."""

    def __init__(
        self,
        live: Live,
        dispatcher: Dispatcher,
        registry: IRegistry,
        presence: PresenceWatch,
        signals: Signals,
        metrics: Metrics,
        wheel: Wheel,
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self.live = live
        self.dispatcher = dispatcher
        self.registry = registry
        self.presence = presence
        self.signals = signals
        self.metrics = metrics
        self.wheel = wheel
        self.now = now
        self.random = random
        self.revocations = Revocations(now, metrics.revocations.set)
        #: every open connection, and who is told that its client has arrived: has shown a good token once. None: it has
        self.connections: dict[IConnection, Callable[[], None] | None] = {}
        #: the clients that have been in a chat, or ask for one
        self.subscribers: dict[IConnection, Subscriber] = {}
        #: those that have not
        self.arriving = 0
        #: by user's own topic, those who have shown a good token and wait to be told whether there is a place for them
        self.waiting: dict[Topic, set[IConnection]] = {}
        #: whom what happens with clients is told to, while somebody traces it
        self.witness: Witness | None = None

    @property
    def features(self) -> frozenset[str]:
        """What a client may be granted here."""
        return FEATURES if self.signals.carried else FEATURES - {SIGNALS}

    def enter(self, connection: IConnection, arrived: Callable[[], None] | None = None) -> bool:
        """A client connects; whether there is room for it among those on their way in."""
        self.connections[connection] = arrived or _nobody
        self.arriving += 1
        self.metrics.connections.inc()
        self.metrics.accepted.inc()
        return not 0 < self.live.now.limits.max_arriving < self.arriving

    def arrive(self, connection: IConnection) -> None:
        """Its client has shown a good token."""
        arrived, self.connections[connection] = self.connections[connection], None
        self.arriving -= 1
        if arrived is not None:
            arrived()

    def leave(self, connection: IConnection) -> bool:
        """A connection is gone; False: it was already."""
        if connection not in self.connections:
            return False
        if self.connections.pop(connection) is not None:
            self.arriving -= 1
        self.metrics.connections.dec()
        return True

    def retry_after(self, most: float = 5.0) -> str:
        """A close reason that tells a client when to come back: a time of its own, up to ``most`` seconds."""
        return json.dumps({"retry_after_ms": 500 + int(self.random.random() * most * 1000)})
