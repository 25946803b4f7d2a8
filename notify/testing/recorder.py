"""A recorder of what a broker delivers, on which a test can wait."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from notify.messages import Message
from notify.topics import Topic


class Recorder:
    """Hand ``deliver`` and ``lost`` to a broker; ``wait`` for what comes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.lost_topics: list[Topic] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def deliver(self, message: Message) -> None:
        """Keep a message."""
        self.messages.append(message)
        self._wake()

    def lost(self, topic: Topic) -> None:
        """Keep a topic whose continuity was lost."""
        self.lost_topics.append(topic)
        self._wake()

    def wait(self, count: int) -> Deferred[None]:
        """Fires once that many messages and losses have come altogether. The test's own timeout bounds it."""
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
