"""What all sessions of a server share."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from notify.config import Limits
from notify.core.dispatcher import Dispatcher
from notify.core.presence import PresenceWatch
from notify.core.timers import Wheel
from notify.interfaces import IAuthenticator, IRegistry
from notify.observe.metrics import Metrics

if TYPE_CHECKING:
    from notify.core.session import Session


class Hub:
    """The parts that a session calls, and the sessions themselves. ``limits`` may be replaced while it runs; ``now`` is Unix time."""

    def __init__(
        self,
        authenticator: IAuthenticator,
        dispatcher: Dispatcher,
        registry: IRegistry,
        presence: PresenceWatch,
        metrics: Metrics,
        limits: Limits,
        wheel: Wheel,
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self.authenticator = authenticator
        self.dispatcher = dispatcher
        self.registry = registry
        self.presence = presence
        self.metrics = metrics
        self.limits = limits
        self.wheel = wheel
        self.now = now
        self.random = random
        self.sessions: dict[Session, None] = {}
        self.arriving = 0  # sessions whose client has not shown a good token yet

    def retry_after(self, most: float = 5.0) -> str:
        """A close reason that tells a client when to come back: a time of its own, up to ``most`` seconds."""
        return json.dumps({"retry_after_ms": 500 + int(self.random.random() * most * 1000)})
