"""A connection in a topic that answers its subscription like a session, and does nothing else."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from notify.core.feed import Joined
from notify.messages import Position
from notify.testing import FakeConnection
from notify.topics import Topic, chat
from notify.wire.encodings import encoding, featured
from tests.support.world import World

TOPIC = chat(1, 10)


class Member:
    """A connection that writes the answer to its subscription, like a session."""

    def __init__(self, world: World, id: str, name: str = "notify.v1.json", events: bool = False) -> None:
        self.world = world
        made = featured(encoding(name), frozenset(("events",) if events else ()))
        self.connection = FakeConnection(1, id=id, encoding=made)
        self.joined: Joined | None = None
        self.failed: Any = None

    def subscribe(self, since: Position | None = None, topic: Topic = TOPIC) -> Member:
        joining: Deferred[Joined] = self.world.dispatcher.subscribe(self.connection, topic, since)
        joining.addCallbacks(self._join, lambda failure: setattr(self, "failed", failure.value))
        return self

    def _join(self, joined: Joined) -> None:
        self.joined = joined
        if joined.bodies:
            self.connection.write(self.connection.encoding.pack(joined.bodies))

    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.connection.take()]
