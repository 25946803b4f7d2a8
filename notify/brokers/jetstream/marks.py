"""How far the stream was received, which proves later that it is still the same one."""

from __future__ import annotations

from collections.abc import Sequence

from notify.brokers.jetstream.stream import Mark, nanoseconds
from notify.nats import headers

_KEPT = 16  # marks that wait for a comparison with the stream


class Marks:
    """The newest message received and the newest of this node's own publishes.

    Keeps copies of both from the times when something was inconsistent.
    """

    def __init__(self) -> None:
        self._seq = 0
        self._stamp: int | bytes = 0
        self._own = Mark(0)
        self._confirmed = 0
        self._kept: list[Mark] = []

    def heard(self, seq: int, stamp: int | bytes) -> None:
        """A message was received or read. ``stamp``: when it was stored, in nanoseconds, or the header block that says so."""
        if seq > self._seq:
            self._seq, self._stamp = seq, stamp

    def stored(self, seq: int, id: str) -> None:
        """The stream has stored a message of this node, now or earlier, with this id."""
        if seq > self._own.seq:
            self._own = Mark(seq, 0, id)

    def younger(self, seq: int, stamp: int | bytes) -> bool:
        """Whether a message was stored later than one that came with the same number or a higher one."""
        return seq <= self._seq and _when(stamp) > _when(self._stamp)

    @property
    def undated(self) -> Mark | None:
        """This node's own newest message while its time is unknown: a repeat in another history may have the same number and id."""
        own = self._own
        return own if own.seq > max(self._seq, self._confirmed) and not own.stamp else None

    def dated(self, mark: Mark) -> None:
        """The stream's message under the number of :attr:`undated`: takes over when it was stored, if it is the same message."""
        if (mark.seq, mark.id) == (self._own.seq, self._own.id):
            self._own = mark

    def keep(self) -> None:
        """Messages received from now on may be of another history: keep how far this one was received."""
        for mark in (self._newest(), self._own):
            if mark.seq > self._confirmed and mark not in self._kept and len(self._kept) < _KEPT:
                self._kept.append(mark)

    def all(self) -> list[Mark]:
        """The latest marks, and those not yet found in the stream."""
        own = [self._own] if self._own.seq > self._confirmed else []
        return [self._newest(), *own, *self._kept]

    @property
    def kept(self) -> Sequence[Mark]:
        """The marks that :meth:`keep` has kept."""
        return self._kept

    def confirm(self, marks: Sequence[Mark]) -> None:
        """These marks were found in the stream. How far it reached then is recorded, so they are no longer needed."""
        self._confirmed = max(self._confirmed, *(mark.seq for mark in marks), 0)
        self._kept = [mark for mark in self._kept if mark not in marks]

    def _newest(self) -> Mark:
        return Mark(self._seq, _when(self._stamp))


def _when(stamp: int | bytes) -> int:
    """Nanoseconds since 1970. A header block is parsed only here, on demand: nearly all messages arrive in order and do not need it."""
    return stamp if isinstance(stamp, int) else nanoseconds(headers.text(stamp, headers.TIME_STAMP))
