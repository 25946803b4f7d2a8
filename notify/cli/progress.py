"""A progress bar on one line of a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_WIDTH = 30
_PATIENCE = 0.5
_PERIOD = 0.1


class Progress:
    """Shows the progress once half a second has passed, and at most ten times per second.

    ``total`` is in the units of ``done`` in :meth:`update`. If it is None, the total is unknown and only a count is shown.
    """

    def __init__(
        self, stream: TextIO, total: int | None, shown: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._total, self._shown, self._clock = stream, total, shown, clock
        self._began = clock()
        self._next = self._began + _PATIENCE
        self._drawn = False

    def update(self, done: int, messages: int, failed: int) -> None:
        """Set the progress."""
        now = self._clock()
        if not self._shown or now < self._next:
            return
        self._next, self._drawn = now + _PERIOD, True
        rate = messages / (now - self._began)
        text = f"{messages:,} published, {rate:,.0f}/s" + (f", {failed:,} failed" if failed else "")
        if self._total:
            share = min(done / self._total, 1.0)
            bar = "#" * int(share * _WIDTH)
            text = f"[{bar:.<{_WIDTH}}] {share:4.0%}  {text}"
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()

    def clear(self) -> None:
        """Erase the line before anything else is written."""
        if self._drawn:
            self._drawn = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()
