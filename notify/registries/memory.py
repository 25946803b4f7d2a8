"""The memory registry: the members of this node. It is a complete registry for one process; other registries build on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from notify.components import Context
from notify.config import Settings
from notify.identity import Presence, by_user
from notify.interfaces import IConnection, IRegistry
from notify.topics import Topic


class MemorySettings(Settings, frozen=True):
    """``[registry.memory]`` has no keys."""


# Dictionaries, not sets: the order must not depend on Python's hashing.
_NOBODY: dict[IConnection, None] = {}
_NOWHERE: dict[Topic, None] = {}


@implementer(IRegistry)
class MemoryRegistry:
    """See :class:`~notify.interfaces.IRegistry`."""

    Settings = MemorySettings
    #: with several processes the first one runs the registry for all
    alone = True

    def __init__(self, settings: MemorySettings, context: Context) -> None:
        self._members: dict[Topic, dict[IConnection, None]] = {}
        self._topics: dict[IConnection, dict[Topic, None]] = {}
        self._watched: dict[Topic, None] = {}
        self._changed: Callable[[Topic], None] = lambda topic: None

    def start(self, changed: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._changed = changed
        return succeed(None)

    def join(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`."""
        members = self._members.get(topic)
        first = members is None
        if members is None:
            members = self._members[topic] = {}
        if connection not in members:
            members[connection] = None
            self._topics.setdefault(connection, {})[topic] = None
            self._touch(topic)
        return first

    def leave(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`."""
        topics = self._topics.get(connection)
        if topics is None or topic not in topics:
            return False
        del topics[topic]
        if not topics:
            del self._topics[connection]
        return self._remove(connection, topic)

    def forget(self, connection: IConnection) -> list[Topic]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return [topic for topic in self._topics.pop(connection, ()) if self._remove(connection, topic)]

    def members(self, topic: Topic) -> Collection[IConnection]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._members.get(topic, _NOBODY)

    def topics(self, connection: IConnection) -> Collection[Topic]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._topics.get(connection, _NOWHERE)

    def presence(self, topic: Topic) -> Deferred[list[Presence]]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return succeed(self.present(topic))

    def present(self, topic: Topic) -> list[Presence]:
        """The users in a topic on this node, sorted by user."""
        users = Counter(connection.identity.user_id for connection in self.members(topic))
        return by_user(Presence(user, connections) for user, connections in users.items())

    def watch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watched[topic] = None

    def unwatch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watched.pop(topic, None)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return succeed(None)

    def _remove(self, connection: IConnection, topic: Topic) -> bool:
        members = self._members[topic]
        del members[connection]
        if not members:
            del self._members[topic]
        self._touch(topic)
        return not members

    def _touch(self, topic: Topic) -> None:
        if topic in self._watched:
            self._changed(topic)
