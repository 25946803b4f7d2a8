"""Faster paths through an asyncio reactor for two kinds of calls.

These are calls without delay, such as work at the end of a turn, and timers that rarely fire, such as timeouts.
Twisted's ``callLater`` puts each call into a heap and schedules the first of them in the event loop, which uses
another heap. That costs as much as half the delivery of a message to two people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.logger import Logger

log = Logger()

#: timers that may wait to be put into the heap; ones that are cancelled meanwhile are kept that long
_NEW = 256


class AtOnce:
    """A mixin that precedes ``AsyncioSelectorReactor`` in a class's bases.

    ``tests/service/test_reactor.py`` checks that Twisted still has the private names used here.
    """

    _asyncioEventloop: Any
    #: when the event loop will call, in its own time; None: it is not scheduled
    _scheduledAt: Any
    #: timers that are not in the heap yet
    _newTimedCalls: list[DelayedCall]
    running: bool
    seconds: Callable[[], float]

    def renew(self) -> None:
        """Prepare the reactor, which has not run yet, after a fork of the process that made it."""
        raise NotImplementedError

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        """See ``IReactorTime``. Calls without delay run in order, and are not in ``getDelayedCalls``."""
        if delay == 0 and self.running:
            return _Soon(self, callable, args, kwargs)
        rings = self._scheduledAt
        soon_enough = rings is not None and self._asyncioEventloop.time() + delay >= rings
        if soon_enough and len(self._newTimedCalls) < _NEW:
            # A new timer enters the heap only when the timers are next checked; cancelled earlier, it costs no heap.
            return ReactorBase.callLater(self, delay, callable, *args, **kwargs)  # type: ignore[arg-type]
        call: DelayedCall = super().callLater(delay, callable, *args, **kwargs)  # type: ignore[misc]
        return call

    def soon(self, call: Callable[[], None]) -> Any:
        """Have the event loop call this in its next turn; returns a handle that cancels it."""
        return self._asyncioEventloop.call_soon(call)

    def stop(self) -> None:
        """See ``IReactorCore``. Shutdown events fire where delayed calls are checked, so one is needed."""
        super().stop()  # type: ignore[misc]
        super().callLater(0, lambda: None)  # type: ignore[misc]


class _Soon(DelayedCall):
    """A call without delay, unless it is postponed."""

    def __init__(
        self, reactor: AtOnce, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        unplan, replan = _Soon._unplan, _Soon._replan  # called with the call itself
        super().__init__(reactor.seconds(), call, args, kwargs, unplan, replan, reactor.seconds)  # type: ignore[arg-type]
        self._reactor = reactor
        self._planned: Any = reactor.soon(self._run)

    def _unplan(self) -> None:
        self._planned.cancel()

    def _plan(self) -> None:
        left = self.time - self.seconds()
        reactor = self._reactor
        self._planned = reactor.callLater(left, self._run) if left > 0 else reactor.soon(self._run)

    def _replan(self) -> None:
        self._unplan()
        self._plan()

    def _run(self) -> None:
        if self.delayed_time > 0.0:
            self.activate_delay()
            self._plan()
            return
        self.called = 1
        try:
            self.func(*self.args, **self.kw)
        except BaseException:
            log.failure("a delayed call failed")
