"""Tells clients who asked for it, once and again, who is in a chat."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.identity import Presence
from notify.interfaces import IConnection, IRegistry
from notify.topics import Topic
from notify.wire.frames import Encoding, PresenceList

log = Logger()

#: changes of one chat within this many seconds are told as one
QUIET = 0.25

#: bytes a second that telling everyone in one chat may cost, on average: the larger the crowd, the rarer
RATE = 8 * 2**20


class _Watch:
    """One chat's watchers, and what they know."""

    __slots__ = ("changed", "due", "new", "resting", "told", "watchers")

    def __init__(self) -> None:
        self.watchers: dict[IConnection, None] = {}
        self.new: dict[IConnection, None] = {}  # those of them that have asked and not been told
        self.told: list[Presence] | None = None
        self.changed = False  # who is there may not be what was told
        self.due = False  # the registry will be asked
        self.resting = False  # everyone was told, at a cost


class PresenceWatch:
    """The connections that watch a chat's presence. ``later(seconds, call)`` is the timer wheel's ``after``.

    Who asks is told alone. Telling everyone costs watchers times users: after it a chat rests for as long as that
    cost is worth at :data:`RATE`.
    """

    def __init__(self, registry: IRegistry, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._registry = registry
        self._later = later
        self._watchers: dict[Topic, _Watch] = {}

    def changed(self, topic: Topic) -> None:
        """The registry says that a chat's presence may have changed."""
        watch = self._watchers.get(topic)
        if watch is not None:
            watch.changed = True
            self._soon(topic, watch)

    def watch(self, connection: IConnection, topic: Topic) -> None:
        """Tell a connection now, and on each change."""
        watch = self._watchers.get(topic)
        if watch is None:
            watch = self._watchers[topic] = _Watch()
            self._registry.watch(topic)
        watch.watchers[connection] = watch.new[connection] = None
        self._soon(topic, watch)

    def unwatch(self, connection: IConnection, topic: Topic) -> None:
        """No more of that. Harmless when it did not watch."""
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
