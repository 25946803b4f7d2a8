"""A recorder of what a broker delivers, so that a test can wait for it."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from notify.messages import Message
from notify.topics import Topic


class Recorder:
    """Pass ``deliver`` and ``lost`` to a broker, then ``wait`` for what arrives."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lost_topics: list[Topic] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def deliver(self, message: Message) -> None:
        """Record a message."""
        self.messages.append(message)
        self._wake()

    def lost(self, topic: Topic) -> None:
        """Record a topic whose continuity was lost."""
        self.lost_topics.append(topic)
        self._wake()

    def wait(self, count: int) -> Deferred[None]:
        """Fires once ``count`` messages and losses have arrived in total. The test's own timeout limits the wait."""
        done: Deferred[None] = Deferred()
        self._waiting.append((count, done))
        self._wake()
        return done

    def _wake(self) -> None:
        have = len(self.messages) + len(self.lost_topics)
        ready = [done for count, done in self._waiting if count <= have]
        self._waiting = [(count, done) for count, done in self._waiting if count > have]
        for done in ready:
            done.callback(None)
