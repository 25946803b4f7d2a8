"""Short ways through an asyncio reactor: for what is due at once, as whatever is to be done at the end of a turn, and for
timers that are seldom due, as whatever is done when no answer comes.

Twisted's ``callLater`` puts each call into a heap, and has the event loop ring for the first of them by a timer, in another
heap: that costs as much as half the delivery of a message to two people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.logger import Logger

log = Logger()

#: timers that may wait to be put into the heap: those that are cancelled meanwhile are kept that long
_NEW = 256


class AtOnce:
    """Stands in front of an ``AsyncioSelectorReactor`` in a class's bases.

    ``tests/service/test_reactor.py`` holds Twisted to the private names that are used here.
    """

    _asyncioEventloop: Any
    #: when the event loop rings, in its own time; None: it is not to ring
    _scheduledAt: Any
    #: timers that are not in the heap yet
    _newTimedCalls: list[DelayedCall]
    running: bool
    seconds: Callable[[], float]

    def renew(self) -> None:
        """This process was forked from the one that made the reactor, which has not run yet."""
        raise NotImplementedError

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        """See ``IReactorTime``. What is due at once is called in the order it came, and is not in ``getDelayedCalls``."""
        if delay == 0 and self.running:
            return _Soon(self, callable, args, kwargs)
        rings = self._scheduledAt
        soon_enough = rings is not None and self._asyncioEventloop.time() + delay >= rings
        if soon_enough and len(self._newTimedCalls) < _NEW:
            # All timers are looked through then. One that is cancelled before costs neither heap anything.
            return ReactorBase.callLater(self, delay, callable, *args, **kwargs)  # type: ignore[arg-type]
        call: DelayedCall = super().callLater(delay, callable, *args, **kwargs)  # type: ignore[misc]
        return call

    def soon(self, call: Callable[[], None]) -> Any:
        """Have the event loop call this in its next turn; gives what cancels it."""
        return self._asyncioEventloop.call_soon(call)

    def stop(self) -> None:
        """See ``IReactorCore``. Its events are fired where delayed calls are looked through: one has to be there."""
        super().stop()  # type: ignore[misc]
        super().callLater(0, lambda: None)  # type: ignore[misc]


class _Soon(DelayedCall):
    """A call that is due at once, unless it is put off meanwhile."""

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
