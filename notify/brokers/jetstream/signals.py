"""Signals as plain NATS messages outside the stream: one subscription for each workspace with chats that are listened to.

The rest of the broker does not depend on them. If NATS does not permit their subjects, or the stream covers those subjects and
would store the signals, this node runs without signals, logs that once, and tries again from time to time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from notify.errors import TooLarge
from notify.ids import Id
from notify.nats.connection import Connection, Subscription
from notify.topics import Topic

#: the pattern that the subjects of all signals match
SUBJECTS = "workspace.*.chat.*.signals"

#: seconds after which something that was not permitted is tried again
AGAIN = 60.0
#: the backlog to a slow server (messages and commands) beyond which signals are dropped
UNSENT = 1000

_OURS = re.compile(r'"workspace\.[^".]+\.chat\.[^".]+\.signals"')

log = Logger()


def about(words: str) -> bool:
    """Whether the server's words about a missing permission concern signals."""
    return _OURS.search(words) is not None


class Signals:
    """See the module docstring. ``reactor`` is an IReactorTime."""

    def __init__(self, connection: Connection, reactor: Any) -> None:
        self._connection = connection
        self._reactor = reactor
        self._topics: dict[bytes, Topic] = {}
        self._listened: dict[Id, int] = {}
        self._subscriptions: dict[Id, Subscription] = {}
        #: why nothing can be sent; an unknown stream may be one that stores signals
        self._stored = "nothing is known of the stream yet"
        self._denied = ""
        #: the problem was logged
        self._told = self._stopped = False
        self._again: Any = None
        self.heard: Callable[[Topic, bytes], None] = lambda topic, payload: None

    @property
    def problem(self) -> str:
        """Why this node has no signals, in words for operators; empty if it has."""
        return self._denied or self._stored

    def listen(self, topic: Topic) -> None:
        """A client here listens to the signals of a chat."""
        subject, workspace = topic.signals.encode(), topic.workspace_id
        if subject in self._topics:
            return
        self._topics[subject] = topic
        self._listened[workspace] = self._listened.get(workspace, 0) + 1
        if workspace not in self._subscriptions:
            self._subscribe(workspace)

    def unlisten(self, topic: Topic) -> None:
        """No client here listens to them any more."""
        workspace = topic.workspace_id
        if self._topics.pop(topic.signals.encode(), None) is None:
            return
        self._listened[workspace] -= 1
        if not self._listened[workspace]:
            del self._listened[workspace]
            self._connection.unsubscribe(self._subscriptions.pop(workspace))

    def signal(self, topic: Topic, payload: bytes) -> bool:
        """Send a signal to every node that listens. Returns whether it was sent."""
        if (
            self._stopped
            or self.problem
            or not self._connection.connected
            or self._connection.unsent > UNSENT
        ):
            return False
        try:
            self._connection.publish(topic.signals, payload)
        except TooLarge:
            return False
        return True

    def use(self, stored: bool) -> None:
        """The stream is known. ``stored`` says whether it stores what is sent to the subjects of signals."""
        problem = "the stream covers their subjects and would keep them" if stored else ""
        if problem and problem != self._stored:
            log.error(
                "signals (typing, cursors) are not sent: {problem}; take {subjects} out of its subjects",
                problem=problem,
                subjects=SUBJECTS,
            )
        self._stored = problem

    def denied(self, words: str) -> bool:
        """Handle the server's words about a missing permission. Returns whether they concern signals, which are then switched off."""
        if not about(words):
            return False
        self._denied = "NATS does not permit them"
        if not self._told:
            self._told = True
            log.error(
                "signals (typing, cursors) are not sent or not heard, and all else goes on: NATS says: {words}; grant {subjects} "
                "(docs/jetstream.md, Permissions)",
                words=words,
                subjects=SUBJECTS,
            )
        if self._again is None and not self._stopped:
            self._again = self._reactor.callLater(AGAIN, self._retry)
        return True

    def stop(self) -> None:
        """Stop all signals."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._topics.clear()

    def _retry(self) -> None:
        """Try again: the permission may have been granted. A refused subscription must be requested again."""
        self._again, self._denied = None, ""
        for workspace, subscription in list(self._subscriptions.items()):
            self._connection.unsubscribe(subscription)
            self._subscribe(workspace)

    def _subscribe(self, workspace: Id) -> None:
        subject = f"workspace.{workspace}.chat.*.signals"
        self._subscriptions[workspace] = self._connection.subscribe(subject, self._arrived)

    def _arrived(self, subject: bytes, reply: str, data: bytes, block: bytes) -> None:
        topic = self._topics.get(subject)
        if topic is not None:
            self.heard(topic, data)
