"""A model of one JetStream stream: its messages, and the copies on the other servers of its cluster.

The leader's copy is the stream. A replica is described by what it lacks: the messages of the last moments, everything
since it was frozen, and holes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

NANO = 10**9


@lru_cache(65536)
def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS pattern matches a subject."""
    ours, theirs = pattern.split("."), subject.split(".")
    for index, part in enumerate(ours):
        if part == ">":
            return len(theirs) > index
        if index >= len(theirs) or part not in ("*", theirs[index]):
            return False
    return len(ours) == len(theirs)


class Stored:
    """One message. ``order`` counts all messages ever stored by this stream and by its predecessors of the same name."""

    __slots__ = ("at", "block", "data", "order", "seq", "subject", "ttl")

    def __init__(
        self, seq: int, subject: str, data: bytes, block: bytes, at: float, order: int, ttl: float
    ) -> None:
        self.seq, self.subject, self.data, self.block = seq, subject, data, block
        self.at, self.order, self.ttl = at, order, ttl

    @property
    def time(self) -> str:
        """Its time as the server writes it."""
        return stamp(self.at)


def stamp(at: float) -> str:
    """A Unix time as the server writes it."""
    seconds, fraction = divmod(round(at * NANO), NANO)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{fraction:09}Z"


class Replica:
    """What a server's copy lacks: the last ``lag`` seconds, messages newer than ``frozen``, and ``holes``."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.frozen: int | None = None
        self.holes: set[int] = set()

    def has(self, one: Stored, now: float) -> bool:
        """Whether the copy has this message."""
        return (
            one.seq not in self.holes
            and (self.frozen is None or one.order <= self.frozen)
            and one.at + self.lag <= now
        )


class Stream:
    """See the module docstring. ``gone(stored, why)`` is called for each removed message: ``limit``, ``operator`` or ``rollback``."""

    def __init__(
        self, config: dict[str, Any], now: float, orders: Iterator[int], gone: Callable[[Stored, str], None]
    ) -> None:
        self.config = config
        self.created = stamp(now)
        #: the first number of each of its histories, the newest last, and a unique value for that history
        self._histories = [(0, next(orders))]
        self._orders, self._gone = orders, gone
        self.messages: dict[int, Stored] = {}
        self.by_subject: dict[str, list[int]] = {}
        self.last_seq = 0
        self._empty_from = 0
        self.dedupe: dict[str, tuple[int, float]] = {}
        #: the id of the message stored last; empty if it had none
        self.last_id = ""
        #: by the name of the server that has the copy; the leader's copy lacks nothing
        self.replicas: dict[str, Replica] = {}
        self.leader = ""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.config["name"])

    @property
    def generation(self) -> int:
        """Its present history."""
        return self._histories[-1][1]

    def history_of(self, seq: int) -> int:
        """The history in which a number was given: messages that survive when the stream goes back stay in their old history."""
        return next(history for start, history in reversed(self._histories) if start <= seq)

    @property
    def first_seq(self) -> int:
        """The oldest number; the one after the newest if there are no messages."""
        return next(iter(self.messages), self.last_seq + 1 if self.last_seq or self._empty_from else 0)

    def covers(self, subject: str) -> bool:
        """Whether a subject belongs to the stream."""
        return any(matches(pattern, subject) for pattern in self.config["subjects"])

    def last_of(self, subject: str) -> int:
        """The newest number of a subject; 0 if none."""
        numbers = self.by_subject.get(subject)
        return numbers[-1] if numbers else 0

    def store(self, subject: str, data: bytes, block: bytes, now: float, ttl: float = 0.0) -> Stored:
        """Store one message, and remove what exceeds a limit."""
        self.last_seq += 1
        one = Stored(self.last_seq, subject, data, block, now, next(self._orders), ttl)
        self.messages[one.seq] = one
        self.by_subject.setdefault(subject, []).append(one.seq)
        most = self.config.get("max_msgs_per_subject", -1)
        if most > 0:
            while len(self.by_subject[subject]) > most:
                self.remove(self.by_subject[subject][0], "limit")
        most = self.config.get("max_msgs", -1)
        while 0 < most < len(self.messages):
            self.remove(next(iter(self.messages)), "limit")
        self.expire(now)
        return one

    def expire(self, now: float) -> None:
        """Remove messages that are too old."""
        age = self.config.get("max_age", 0) / NANO
        while age and self.messages:
            oldest = next(iter(self.messages.values()))
            if oldest.at + age > now:
                break
            self.remove(oldest.seq, "limit")

    def remove(self, seq: int, why: str) -> bool:
        """Remove one message. Returns whether it was there."""
        one = self.messages.pop(seq, None)
        if one is None:
            return False
        numbers = self.by_subject[one.subject]
        numbers.remove(seq)
        if not numbers:
            del self.by_subject[one.subject]
        self._empty_from = self.last_seq + 1
        self._gone(one, why)
        return True

    def purge(self, pattern: str, before: int, keep: int) -> int:
        """Remove the matching messages. Returns how many."""
        chosen = [
            one.seq
            for one in self.messages.values()
            if (not pattern or matches(pattern, one.subject)) and (not before or one.seq < before)
        ]
        chosen = chosen[: len(chosen) - keep]
        for seq in chosen:
            self.remove(seq, "operator")
        return len(chosen)

    def go_back(self, count: int) -> int:
        """Lose the newest messages, as after a power failure; their numbers are used again."""
        lost = list(self.messages)[-count:] if count else []
        for seq in lost:
            self.remove(seq, "rollback")
        if lost:
            self.last_seq = lost[0] - 1
            self._histories = [one for one in self._histories if one[0] <= self.last_seq]
            self._histories.append((self.last_seq + 1, next(self._orders)))
            self.dedupe = {key: value for key, value in self.dedupe.items() if value[0] <= self.last_seq}
            self.last_id = next((id for id, value in self.dedupe.items() if value[0] == self.last_seq), "")
        return len(lost)

    def visible(self, server: str, now: float) -> Callable[[Stored], bool]:
        """Returns a predicate: whether a server's copy has a message."""
        replica = self.replicas.get(server)
        if server == self.leader or replica is None:
            return lambda one: True
        return lambda one: replica.has(one, now)

    def state(self, details: bool, subjects: str) -> dict[str, Any]:
        """The state, as in the answer to INFO."""
        first, last = self.first_seq, self.last_seq
        kept = len(self.messages)
        deleted = (
            [seq for seq in range(first, last + 1) if seq not in self.messages]
            if kept and last - first + 1 != kept
            else []
        )
        told: dict[str, Any] = {
            "messages": kept,
            "bytes": sum(len(one.data) for one in self.messages.values()),
            "first_seq": first,
            "first_ts": self.messages[first].time if kept else "0001-01-01T00:00:00Z",
            "last_seq": last,
            "last_ts": self.messages[last].time if last in self.messages else "0001-01-01T00:00:00Z",
            "num_subjects": len(self.by_subject),
            "consumer_count": 0,
        }
        if deleted:
            told["num_deleted"] = len(deleted)
            if details:
                told["deleted"] = deleted
        if subjects:
            told["subjects"] = {
                subject: len(numbers)
                for subject, numbers in self.by_subject.items()
                if matches(subjects, subject)
            }
        return told
