"""Tells clients that ask for it, once or continuously, who is in a chat."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.identity import Presence
from notify.interfaces import IConnection, IRegistry
from notify.topics import Topic
from notify.wire.frames import Encoding, PresenceList

log = Logger()

#: changes of one chat within this many seconds are reported together
QUIET = 0.25

#: bytes a second that updates to all watchers of one chat may cost on average: larger chats get rarer updates
RATE = 8 * 2**20


class _Watch:
    """The watchers of one chat, and what they have been told."""

    __slots__ = ("changed", "due", "new", "resting", "told", "watchers")

    def __init__(self) -> None:
        self.watchers: dict[IConnection, None] = {}
        self.new: dict[IConnection, None] = {}  # watchers that have asked and have not been told yet
        self.told: list[Presence] | None = None
        self.changed = False  # presence may differ from what was last told
        self.due = False  # the registry will be asked
        self.resting = False  # an update to all was sent, and its cost is being worked off


class PresenceWatch:
    """The connections that watch a chat's presence. ``later(seconds, call)`` is the timer wheel's ``after``.

    A new watcher is answered alone. An update to all costs watchers times users, so after it the chat gets no other
    until that cost is worked off at :data:`RATE`.
    """

    def __init__(self, registry: IRegistry, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._registry = registry
        self._later = later
        self._watchers: dict[Topic, _Watch] = {}

    def changed(self, topic: Topic) -> None:
        """The registry reports that a chat's presence may have changed."""
        watch = self._watchers.get(topic)
        if watch is not None:
            watch.changed = True
            self._soon(topic, watch)

    def watch(self, connection: IConnection, topic: Topic) -> None:
        """Tell a connection now, and at each change."""
        watch = self._watchers.get(topic)
        if watch is None:
            watch = self._watchers[topic] = _Watch()
            self._registry.watch(topic)
        watch.watchers[connection] = watch.new[connection] = None
        self._soon(topic, watch)

    def unwatch(self, connection: IConnection, topic: Topic) -> None:
        """Stop telling it. Does nothing if it does not watch."""
        watch = self._watchers.get(topic)
        if watch is None or connection not in watch.watchers:
            return
        del watch.watchers[connection]
        watch.new.pop(connection, None)
        if not watch.watchers:
            del self._watchers[topic]
            self._registry.unwatch(topic)

    def _soon(self, topic: Topic, watch: _Watch) -> None:
        if not watch.due and (watch.new or (watch.changed and not watch.resting)):
            watch.due = True
            self._later(QUIET, lambda: self._ask(topic, watch))

    def _ask(self, topic: Topic, watch: _Watch) -> None:
        watch.due = False
        if self._watchers.get(topic) is watch:
            new, watch.new = watch.new, {}
            everyone = watch.changed and not watch.resting
            watch.changed = watch.changed and not everyone
            asked = self._registry.presence(topic)
            asked.addCallback(self._tell, topic, watch, new, everyone)
            asked.addErrback(self._failed, topic, watch, new, everyone)

    def _tell(
        self,
        users: list[Presence],
        topic: Topic,
        watch: _Watch,
        new: dict[IConnection, None],
        everyone: bool,
    ) -> None:
        everyone = everyone and users != watch.told
        watch.told = users if everyone or users == watch.told else None
        receivers = list(watch.watchers) if everyone else [one for one in new if one in watch.watchers]
        frames: dict[Encoding, bytes] = {}
        cost = 0
        for connection in receivers:
            encoding = connection.encoding
            if encoding not in frames:
                frames[encoding] = encoding.frame(PresenceList(topic.id, users))
            connection.write(frames[encoding])
            cost += len(frames[encoding])
        if everyone and cost > RATE * QUIET:
            watch.resting = True
            self._later(cost / RATE, lambda: self._wake(topic, watch))

    def _wake(self, topic: Topic, watch: _Watch) -> None:
        watch.resting = False
        if self._watchers.get(topic) is watch:
            self._soon(topic, watch)

    def _failed(
        self, failure: Failure, topic: Topic, watch: _Watch, new: dict[IConnection, None], everyone: bool
    ) -> None:
        log.warn(
            "presence of {topic} is not to be had now: {reason}", topic=topic.subject, reason=failure.value
        )
        if self._watchers.get(topic) is watch:
            watch.new.update((one, None) for one in new if one in watch.watchers)
            watch.changed = watch.changed or everyone
            self._soon(topic, watch)
