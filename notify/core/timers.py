"""One wheel of coarse timers for all connections, instead of a reactor timer each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

log = Logger()


class Timer:
    """A pending call, to be passed to :meth:`Wheel.cancel`."""

    __slots__ = ("call", "slot")

    def __init__(self, call: Callable[[], None], slot: int) -> None:
        self.call: Callable[[], None] | None = call
        self.slot = slot


#: ticks that the wheel looks ahead for the next timer; it turns at least this often. The reactor lets go of cancelled
#: timers only when one is due
_AHEAD = 8


class Wheel:
    """Calls functions after a time, up to one ``tick`` (seconds) late and never early.

    ``clock`` is an ``IReactorTime``. Made for thousands of timers that are mostly cancelled: setting and cancelling
    each cost a dictionary entry. The wheel turns only when a timer is due, so an idle process stays asleep.
    """

    def __init__(self, clock: Any, tick: float = 0.25) -> None:
        self._clock = clock
        self._tick = tick
        #: the clock's seconds, for durations
        self.seconds: Callable[[], float] = clock.seconds
        # Most slots have one timer: clients' tokens expire hours from now, each at its own time.
        self._slots: dict[int, Timer | dict[Timer, None]] = {}
        self._done = int(self.seconds() / tick)
        self._next = self._done  # the slot at which it turns next
        self._call: Any = None
        self._running = False

    def start(self) -> None:
        """Start turning."""
        self._running = True
        self._sleep()

    def stop(self) -> None:
        """Stop, and make no more calls."""
        self._running = False
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._slots.clear()

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call ``call`` once, no sooner than in ``seconds``."""
        slot = max(self._done, int((self.seconds() + seconds) / self._tick)) + 1
        timer = Timer(call, slot)
        timers = self._slots.get(slot)
        if timers is None:
            self._slots[slot] = timer
        elif isinstance(timers, Timer):
            self._slots[slot] = {timers: None, timer: None}
        else:
            timers[timer] = None
        if slot < self._next and self._call is not None:
            self._next = slot
            self._call.reset(self._left())
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Never make the call. Does nothing for None and for a timer that is done."""
        if timer is not None and timer.call is not None:
            timer.call = None
            timers = self._slots.get(timer.slot)
            if timers is timer:
                del self._slots[timer.slot]
            elif isinstance(timers, dict):
                timers.pop(timer, None)
                if not timers:
                    del self._slots[timer.slot]

    def _left(self) -> float:
        """Seconds to the next turn."""
        return max(0.0, self._next * self._tick - self.seconds())

    def _sleep(self) -> None:
        """Sleep until the first slot with timers, among those that are near."""
        near = range(self._done + 1, self._done + 1 + _AHEAD)
        self._next = next((slot for slot in near if slot in self._slots), near[-1])
        self._call = self._clock.callLater(self._left(), self._turn)

    def _turn(self) -> None:
        self._call = None
        # Turn at least to the slot that is due, even if rounding makes this division fall short of it.
        done, self._done = self._done, max(self._next, int(self.seconds() / self._tick))
        for slot in range(done + 1, self._done + 1):
            timers = self._slots.pop(slot, ())
            for timer in (timers,) if isinstance(timers, Timer) else timers:
                call, timer.call = timer.call, None
                if call is not None:
                    try:
                        call()
                    except Exception:
                        log.failure("a timer failed")
        if self._running:
            self._sleep()
