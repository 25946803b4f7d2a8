"""What all sessions of a server share: the parts that they call, and the connections."""

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
from notify.interfaces import IConnection, IPlaces, IRegistry
from notify.observe.metrics import Metrics
from notify.topics import Topic
from notify.wire.frames import FEATURES, SIGNALS


class Subscriber(Protocol):
    """A client that has been in a chat, or has asked for one."""

    def renew(self) -> None:
        """Another authenticator is in force, and is asked about the client's chats again."""

    def bar(self, chat_id: Id) -> bool:
        """Remove the client from this chat, and do not let it in on an earlier answer.

        Returns whether it was in or joining.
        """


def _nobody() -> None:
    """Stands in where nobody wants to be told."""


class Hub:
    """The parts that sessions share, and who is connected.

    ``live`` holds the authenticator and the limits. ``now`` is Unix time, for dates; durations use the wheel's clock.
    """

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
        #: counts a user's connections on all nodes, if the registry can
        self.places: IPlaces | None = IPlaces(registry, None)
        self.presence = presence
        self.signals = signals
        self.metrics = metrics
        self.wheel = wheel
        self.now = now
        self.random = random
        self.revocations = Revocations(now, metrics.revocations.set)
        #: every open connection, and the callback for its client's first valid token; None: it has presented one
        self.connections: dict[IConnection, Callable[[], None] | None] = {}
        #: the clients that have been in a chat, or have asked for one
        self.subscribers: dict[IConnection, Subscriber] = {}
        #: the number of connections without a valid token yet
        self.arriving = 0
        #: connections with a valid token that wait to learn whether the user may have another, by the user's own
        #: topic
        self.waiting: dict[Topic, set[IConnection]] = {}
        #: told of what happens with clients while somebody traces it
        self.witness: Witness | None = None

    @property
    def features(self) -> frozenset[str]:
        """The features that a client may be granted here."""
        return FEATURES if self.signals.carried else FEATURES - {SIGNALS}

    def enter(self, connection: IConnection, arrived: Callable[[], None] | None = None) -> bool:
        """A client connects. Returns whether the bound on arriving clients has room for it."""
        self.connections[connection] = arrived or _nobody
        self.arriving += 1
        self.metrics.connections.inc()
        self.metrics.accepted.inc()
        return not 0 < self.live.now.limits.max_arriving < self.arriving

    def arrive(self, connection: IConnection) -> None:
        """Its client has presented a valid token."""
        arrived, self.connections[connection] = self.connections[connection], None
        self.arriving -= 1
        if arrived is not None:
            arrived()

    def leave(self, connection: IConnection) -> bool:
        """A connection is gone. False: it already was."""
        if connection not in self.connections:
            return False
        if self.connections.pop(connection) is not None:
            self.arriving -= 1
        self.metrics.connections.dec()
        return True

    def retry_after(self, most: float = 5.0) -> str:
        """A close reason that tells a client when to reconnect: a random time of up to ``most`` seconds."""
        return json.dumps({"retry_after_ms": 500 + int(self.random.random() * most * 1000)})
