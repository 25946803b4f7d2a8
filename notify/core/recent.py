"""The recent messages of followed topics, kept in memory; most clients that resume are answered from here.

Each topic has a :class:`Tail`. One :class:`Recents` bounds all tails together, in messages and in bytes; the oldest
message of any tail is evicted first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import repeat

from notify.messages import OVERHEAD, Message

#: what an empty tail holds: most topics are silent, and an empty deque takes 600 bytes
_NOTHING: deque[Message] = deque()


class Tail:
    """One topic's recent messages: every one after number ``start`` is here, oldest first.

    ``gone`` is the number of the newest message that was evicted; 0: unknown. No other message lies between it and
    the first one here.
    """

    __slots__ = ("_kept", "_recents", "_stale", "gone", "start")

    def __init__(self, recents: Recents, start: int) -> None:
        self._recents = recents
        self._kept = _NOTHING
        self._stale = 0  # entries of the log whose messages were dropped out of turn
        self.start = start
        self.gone = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, messages: Sequence[Message], most: int) -> None:
        """Add the topic's newest messages, and keep at most ``most``."""
        recents, kept = self._recents, self._kept
        if kept is _NOTHING:
            kept = self._kept = deque()
        for message in messages:  # nearly always one
            kept.append(message)
            recents.log.append(self)
            recents.count += 1
            recents.bytes += message.size + OVERHEAD
        if len(kept) > most:
            self.bound(most)

    def after(self, seq: int) -> list[Message]:
        """All messages after a number, oldest first. The number must be ``start`` or more."""
        newer = []
        for message in reversed(self._kept):  # a client that resumes usually needs few of many
            if message.position.seq <= seq:
                break
            newer.append(message)
        newer.reverse()
        return newer

    def before(self, seq: int | None, most: int) -> list[Message]:
        """The last messages before a number, oldest first; None: the newest ones.

        Returns at most ``most`` messages; others may be stored elsewhere.
        """
        older: list[Message] = []
        for message in reversed(self._kept):
            if len(older) == most:
                break
            if seq is None or message.position.seq < seq:
                older.append(message)
        older.reverse()
        return older

    def extend_backwards(self, start: int, messages: Sequence[Message]) -> None:
        """Add messages in front, oldest first: all that the topic has after ``start`` and up to the previous ``start``."""
        recents = self._recents
        self._own().extendleft(reversed(messages))
        self.start, self.gone = start, 0
        # A tail drops its oldest messages first. Those were asked for just now, so the whole tail counts as new.
        self._stale += len(self._kept) - len(messages)
        recents.log.extend(repeat(self, len(self._kept)))
        recents.count += len(messages)
        recents.bytes += sum(message.size + OVERHEAD for message in messages)

    def bound(self, most: int) -> None:
        """Keep no more than the newest ``most``."""
        recents, kept = self._recents, self._kept
        while len(kept) > most:
            message = kept.popleft()
            recents.bytes -= message.size + OVERHEAD
            recents.count -= 1
            self._stale += 1
            self.start = self.gone = message.position.seq
        if not kept:
            self._kept = _NOTHING

    def clear(self) -> None:
        """Keep nothing: the topic is followed no more."""
        self.bound(0)

    def _own(self) -> deque[Message]:
        if self._kept is _NOTHING:
            self._kept = deque()
        return self._kept

    def drop(self) -> None:
        """Drop the oldest message."""
        self.bound(len(self._kept) - 1)
        self._stale -= 1

    def takes_turn(self) -> bool:
        """Whether an entry of the log stands for a message that is still here. Must be asked once for each entry."""
        if self._stale:
            self._stale -= 1
            return False
        return True


class Recents:
    """All tails of a node. They hold ``count`` messages of ``bytes`` bytes."""

    __slots__ = ("bytes", "count", "log")

    def __init__(self) -> None:
        #: the tail of each message, in order of arrival; each entry stands for the oldest message of its tail
        self.log: deque[Tail] = deque()
        self.count = self.bytes = 0

    def bound(self, most: int, size: int) -> None:
        """Keep at most ``most`` messages, and at most ``size`` bytes of them."""
        log = self.log
        while self.count > most or self.bytes > size:
            tail = log.popleft()
            if tail.takes_turn():
                tail.drop()
        if len(log) > 2 * self.count + 1000:
            self.log = deque(tail for tail in log if tail.takes_turn())


class Reach:
    """How far back recent resumes reached, in sequence numbers of the history, over all topics.

    After a node has died, all clients want about the same. A client that was away for days says nothing about the
    others, so the estimate is twice what nine of ten wanted, and more after few resumes, which say little about the
    rest.
    """

    __slots__ = ("_wanted",)

    def __init__(self) -> None:
        self._wanted: deque[int] = deque(maxlen=100)

    def note(self, distance: int) -> None:
        """A client resumed from this far back. Zero does not count."""
        if distance > 0:
            self._wanted.append(distance)

    def usual(self) -> int:
        """A distance that is enough for most clients; 0 if none has resumed."""
        wanted = sorted(self._wanted)
        return wanted[(len(wanted) - 1) * 9 // 10] * (2 + 20 // len(wanted)) if wanted else 0
