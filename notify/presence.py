"""Tells clients who asked for it, once and again, who is in a chat."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.frames import Encoding, PresenceList
from notify.identity import Presence
from notify.interfaces import IConnection, IRegistry
from notify.topics import Topic

log = Logger()

#: changes of one chat within this many seconds are told as one
QUIET = 0.25


class PresenceWatch:
    """The connections that watch a chat's presence. ``later(seconds, call)`` is the timer wheel's ``after``."""

    def __init__(self, registry: IRegistry, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._registry = registry
        self._later = later
        self._watchers: dict[Topic, dict[IConnection, None]] = {}
        self._told: dict[Topic, list[Presence]] = {}
        self._due: set[Topic] = set()

    def changed(self, topic: Topic) -> None:
        """The registry says that a chat's presence may have changed."""
        if topic in self._watchers and topic not in self._due:
            self._due.add(topic)
            self._later(QUIET, lambda: self._ask(topic))

    def watch(self, connection: IConnection, topic: Topic) -> None:
        """Tell a connection now, and on each change."""
        if topic not in self._watchers:
            self._watchers[topic] = {}
            self._registry.watch(topic)
        self._watchers[topic][connection] = None
        self._told.pop(topic, None)
        self.changed(topic)

    def unwatch(self, connection: IConnection, topic: Topic) -> None:
        """No more of that. Harmless when it did not watch."""
        watchers = self._watchers.get(topic)
        if watchers is not None and watchers.pop(connection, self) is None and not watchers:
            del self._watchers[topic]
            self._told.pop(topic, None)
            self._registry.unwatch(topic)

    def _ask(self, topic: Topic) -> None:
        self._due.discard(topic)
        if topic in self._watchers:
            asked = self._registry.presence(topic)
            asked.addCallback(self._tell, topic).addErrback(self._failed, topic)

    def _tell(self, users: list[Presence], topic: Topic) -> None:
        watchers = self._watchers.get(topic)
        if not watchers or self._told.get(topic) == users:
            return
        self._told[topic] = users
        frames: dict[Encoding, bytes] = {}
        for connection in list(watchers):
            encoding = connection.encoding
            if encoding not in frames:
                frames[encoding] = encoding.frame(PresenceList(topic.id, users))
            connection.write(frames[encoding])

    def _failed(self, failure: Failure, topic: Topic) -> None:
        log.warn(
            "presence of {topic} is not to be had now: {reason}", topic=topic.subject, reason=failure.value
        )
        self.changed(topic)
