"""The state of one followed topic in the tail."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred

from notify.messages import Followed
from notify.topics import Topic


class Held(NamedTuple):
    """A message that is held back: its number, and that of its predecessor in the topic; -1 if unknown."""

    seq: int
    last: int
    data: bytes
    block: bytes
    received: float

    @property
    def size(self) -> int:
        """The size in bytes. A publisher's headers may be as long as its payload."""
        return len(self.data) + len(self.block)


class State:
    """One followed topic.

    ``seq`` is the number delivered last. ``wanted`` is known to exist. ``read`` was reached by reading the stream: messages that arrive
    up to there were delivered already. Up to ``checked`` the stream has nothing newer than ``seq``.
    """

    __slots__ = (
        "accepted",
        "busy",
        "checked",
        "doubt",
        "held",
        "joining",
        "read",
        "seq",
        "subject",
        "topic",
        "wanted",
    )

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.subject = topic.subject
        self.seq = 0
        self.wanted = 0
        self.read = 0
        self.checked = 0
        #: the highest number among this node's own publishes
        self.accepted = 0
        self.held: list[Held] = []
        #: being looked up or repaired: messages that arrive are held back
        self.busy = True
        self.joining: Deferred[Followed] | None = None
        #: the source may have missed something
        self.doubt = False
