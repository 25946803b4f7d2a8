"""The results of reads of the history: messages as stored in the stream, pages of them, and newest numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from notify.brokers.jetstream.holes import Holes
from notify.messages import Event, Poison, parse_event
from notify.nats import headers
from notify.topics import Topic


class Stored(NamedTuple):
    """One message as stored in the stream; ``trace`` is its traceparent or empty.

    ``after`` is the number of an earlier message of its subject, as far as its publisher knew; 0: none.
    """

    seq: int
    data: bytes
    trace: str
    after: int = 0

    @classmethod
    def of(cls, seq: int, data: bytes, block: bytes, epoch: str) -> Stored:
        """Build one from its header block, in the history of an epoch."""
        return cls(seq, data, headers.trace(block), headers.after(block, epoch, seq))


class Page(NamedTuple):
    """Messages of a subject, and how many more follow them at least.

    ``counted`` is the number of messages after the requested position, as counted by the copy that answered.
    """

    stored: list[Stored]
    pending: int
    counted: int = 0

    @property
    def promised(self) -> int:
        """How many messages after these the copy that answered has counted."""
        return max(0, self.counted - len(self.stored))


class Newest(NamedTuple):
    """The newest number of each subject that has messages, and how far into the stream the answer reaches.

    ``payloads`` are those of the messages with these numbers, if they were transferred. ``seen`` is the newest message of the stream
    in the answer: its number, and its stamp as :class:`~notify.brokers.jetstream.marks.Marks` take it.
    """

    found: dict[str, int]
    up_to: int
    payloads: Mapping[str, bytes] = {}
    seen: tuple[int, int | bytes] = (0, 0)

    def begin(self, subject: str, holes: Holes) -> int:
        """The position of a subject from which a later read can prove that nothing has gone.

        Holes after its newest message may have been of this subject, so the position is after them. For a subject without messages it is
        where the answer ends: number 0 would prove nothing later, and after a hole other messages may have aged out.
        """
        seq = self.found.get(subject, 0)
        reached = max(self.up_to, seq)
        return holes.newest(seq, reached) or seq if seq else reached

    def event(self, topic: Topic) -> Event | None:
        """A topic's newest event; None if there is none, if it is poison, or if it was not transferred."""
        payload = self.payloads.get(topic.subject)
        if payload is None:
            return None
        try:
            return parse_event(topic, payload)
        except Poison:
            return None
