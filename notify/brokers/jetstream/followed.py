"""One followed topic, as the tail keeps it."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred

from notify.messages import Followed
from notify.topics import Topic


class Held(NamedTuple):
    """A message that is held back: its number, and that of the one before it in its topic; -1: not known."""

    seq: int
    last: int
    data: bytes
    block: bytes
    received: float

    @property
    def size(self) -> int:
        """Bytes. A publisher's headers may be as long as its payload."""
        return len(self.data) + len(self.block)


class State:
    """One followed topic.

    ``seq`` was delivered last. ``wanted`` is known to exist. ``read`` was reached by reading: what arrives up to
    there has been delivered already. Up to ``checked`` the stream has nothing newer than ``seq``.
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
        #: this node's own publishes reach to here
        self.accepted = 0
        self.held: list[Held] = []
        #: being looked up or mended: what arrives is held back
        self.busy = True
        self.joining: Deferred[Followed] | None = None
        #: the source may have missed something
        self.doubt = False
