"""How far the stream was heard: proof, later, that it is still the same one."""

from __future__ import annotations

from collections.abc import Sequence

from notify.brokers.jetstream.stream import Mark, nanoseconds
from notify.nats import headers

_KEPT = 8  # marks that wait for a look at the stream


class Marks:
    """The highest number that came, and those that were the highest when something made no sense."""

    def __init__(self) -> None:
        self._seq = 0
        self._stamp: int | bytes = 0
        self._kept: list[Mark] = []

    def heard(self, seq: int, stamp: int | bytes) -> None:
        """A message came. ``stamp``: when it was stored, in nanoseconds, or the header block that says it."""
        if seq > self._seq:
            self._seq, self._stamp = seq, stamp

    def younger(self, seq: int, stamp: int) -> bool:
        """Whether a message was stored after one with a higher number."""
        return seq <= self._seq and isinstance(self._stamp, int) and stamp > self._stamp

    def keep(self) -> None:
        """What comes from now on may be of another history: remember how far this one was heard."""
        if len(self._kept) < _KEPT and (mark := self._newest()) not in self._kept:
            self._kept.append(mark)

    def all(self) -> list[Mark]:
        """What came, newest first."""
        return [self._newest(), *self._kept]

    def confirm(self, marks: Sequence[Mark]) -> None:
        """These were found in the stream."""
        self._kept = [mark for mark in self._kept if mark not in marks]

    def _newest(self) -> Mark:
        stamp = self._stamp
        if isinstance(stamp, bytes):
            stamp = nanoseconds(headers.text(stamp, headers.TIME_STAMP))
        return Mark(self._seq, stamp)
