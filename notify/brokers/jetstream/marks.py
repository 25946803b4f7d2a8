"""How far the stream was heard: proof, later, that it is still the same one."""

from __future__ import annotations

from collections.abc import Sequence

from notify.brokers.jetstream.stream import Mark, nanoseconds
from notify.nats import headers

_KEPT = 16  # marks that wait for a look at the stream


class Marks:
    """The highest number that came, that which this node's own messages were given, and both as they were when something made no sense."""

    def __init__(self) -> None:
        self._seq = 0
        self._stamp: int | bytes = 0
        self._own = Mark(0)
        self._confirmed = 0
        self._kept: list[Mark] = []

    def heard(self, seq: int, stamp: int | bytes) -> None:
        """A message came, or was read. ``stamp``: when it was stored, in nanoseconds, or the header block that says it."""
        if seq > self._seq:
            self._seq, self._stamp = seq, stamp

    def stored(self, seq: int, id: str) -> None:
        """The stream has taken a message of this node's, now or earlier, which has this id."""
        if seq > self._own.seq:
            self._own = Mark(seq, 0, id)

    def younger(self, seq: int, stamp: int | bytes) -> bool:
        """Whether a message was stored after one that came with the same number or a higher one."""
        return seq <= self._seq and _when(stamp) > _when(self._stamp)

    @property
    def undated(self) -> Mark | None:
        """This node's own newest message, where its id alone tells it from another: one that is repeated may have both."""
        own = self._own
        return own if own.seq > max(self._seq, self._confirmed) and not own.stamp else None

    def dated(self, mark: Mark) -> None:
        """The stream says what it has under the number of :attr:`undated`: when it was stored, if it is the same."""
        if (mark.seq, mark.id) == (self._own.seq, self._own.id):
            self._own = mark

    def keep(self) -> None:
        """What comes from now on may be of another history: remember how far this one was heard."""
        for mark in (self._newest(), self._own):
            if mark.seq > self._confirmed and mark not in self._kept and len(self._kept) < _KEPT:
                self._kept.append(mark)

    def all(self) -> list[Mark]:
        """What came last, and what was not found in the stream yet."""
        own = [self._own] if self._own.seq > self._confirmed else []
        return [self._newest(), *own, *self._kept]

    @property
    def kept(self) -> Sequence[Mark]:
        """Those that :meth:`keep` has kept."""
        return self._kept

    def confirm(self, marks: Sequence[Mark]) -> None:
        """These were found in the stream. How far that reached then is known: they are needed no more."""
        self._confirmed = max(self._confirmed, *(mark.seq for mark in marks), 0)
        self._kept = [mark for mark in self._kept if mark not in marks]

    def _newest(self) -> Mark:
        return Mark(self._seq, _when(self._stamp))


def _when(stamp: int | bytes) -> int:
    """In nanoseconds since 1970. A header block is read only where somebody asks: nearly all come in turn."""
    return stamp if isinstance(stamp, int) else nanoseconds(headers.text(stamp, headers.TIME_STAMP))
