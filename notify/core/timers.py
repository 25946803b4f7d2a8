"""One wheel of coarse timers for all connections, instead of a reactor timer each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()


class Timer:
    """A call that is due; hand it to :meth:`Wheel.cancel`."""

    __slots__ = ("call", "slot")

    def __init__(self, call: Callable[[], None], slot: int) -> None:
        self.call: Callable[[], None] | None = call
        self.slot = slot


class Wheel:
    """Calls things after a time, up to one ``tick`` (seconds) late and never early.

    ``clock`` is an ``IReactorTime``. Made for thousands of timers that are mostly cancelled: both cost a
    dictionary entry.
    """

    def __init__(self, clock: Any, tick: float = 0.25) -> None:
        self._tick = tick
        #: of the clock, for durations
        self.seconds: Callable[[], float] = clock.seconds
        self._slots: dict[int, dict[Timer, None]] = {}
        self._done = int(self.seconds() / tick)
        self._loop = LoopingCall(self._turn)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin to turn."""
        self._loop.start(self._tick, now=False)

    def stop(self) -> None:
        """Stop, and call nothing more."""
        if self._loop.running:
            self._loop.stop()
        self._slots.clear()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, no sooner than in ``seconds``."""
        slot = int((self.seconds() + seconds) / self._tick) + 1
        timer = Timer(call, slot)
        self._slots.setdefault(slot, {})[timer] = None
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Never call it. Harmless for None and for a timer that is done."""
        if timer is not None and timer.call is not None:
            timer.call = None
            timers = self._slots.get(timer.slot)
            if timers is not None:
                timers.pop(timer, None)
                if not timers:
                    del self._slots[timer.slot]

    def _turn(self) -> None:
        now = int(self.seconds() / self._tick)
        for slot in range(self._done + 1, now + 1):
            for timer in self._slots.pop(slot, ()):
                call, timer.call = timer.call, None
                if call is not None:
                    try:
                        call()
                    except Exception:
                        log.failure("a timer failed")
        self._done = now
