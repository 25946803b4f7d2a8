"""What reads of the history give: messages as the stream has them, pages of them, and newest numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from notify.brokers.jetstream.holes import Holes
from notify.messages import Event, Poison, parse_event
from notify.nats import headers
from notify.topics import Topic


class Stored(NamedTuple):
    """One message as the stream has it; ``trace`` is its traceparent or empty.

    ``after`` is the number of one that was there before it in its subject, as far as its publisher knew; 0: none.
    """

    seq: int
    data: bytes
    trace: str
    after: int = 0

    @classmethod
    def of(cls, seq: int, data: bytes, block: bytes, epoch: str) -> Stored:
        """One with a header block, in the history of an epoch."""
        return cls(seq, data, headers.trace(block), headers.after(block, epoch, seq))


class Page(NamedTuple):
    """Messages of a subject, and how many more there are behind them at least.

    ``counted`` is how many there are after the position that was asked for, by the count of the copy that answered.
    """

    stored: list[Stored]
    pending: int
    counted: int = 0

    @property
    def promised(self) -> int:
        """How many the copy that answered has counted behind these."""
        return max(0, self.counted - len(self.stored))


class Newest(NamedTuple):
    """The newest number of each subject that has messages, and how far into the stream the answer reaches.

    ``payloads`` are those of the messages that have these numbers, where they came along. ``seen`` is the newest message
    of the stream that came into sight: its number, and its stamp as :class:`~notify.brokers.jetstream.marks.Marks` take it.
    """

    found: dict[str, int]
    up_to: int
    payloads: Mapping[str, bytes] = {}
    seen: tuple[int, int | bytes] = (0, 0)

    def begin(self, subject: str, holes: Holes) -> int:
        """The position of a subject from which it can be told later whether anything has gone.

        A message of it may have been where a number is missing: it begins behind it. Where the subject has none it begins as
        far as was looked: number 0 would prove nothing later, and behind a missing number others may have aged out.
        """
        seq = self.found.get(subject, 0)
        reached = max(self.up_to, seq)
        return holes.newest(seq, reached) or seq if seq else reached

    def event(self, topic: Topic) -> Event | None:
        """A topic's newest event; None: there is none, it is poison, or it did not come along."""
        payload = self.payloads.get(topic.subject)
        if payload is None:
            return None
        try:
            return parse_event(topic, payload)
        except Poison:
            return None
