"""Picks the asyncio reactor, which nats-py needs, before anyone imports another; and makes ``callLater(0)`` cheap on it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import DelayedCall
from twisted.internet.main import installReactor
from twisted.logger import Logger

from notify.errors import StartError

log = Logger()


def install() -> None:
    """Install the asyncio reactor with an event loop of its own, and a clock that nobody sets.

    Raises :class:`~notify.errors.StartError` where another reactor was asked for or imported already.
    """
    installed = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        installReactor(Reactor(loop))  # type: ignore[no-untyped-call]
        installed = sys.modules["twisted.internet.reactor"]
    if not isinstance(installed, AsyncioSelectorReactor):
        raise StartError(
            f"notify runs on the asyncio reactor, not on {type(installed).__name__}: leave out --reactor, or use --reactor=asyncio."
        )
    steady(installed)


def steady(reactor: Any) -> None:
    """Have a reactor measure time by a monotonic clock.

    Twisted's ask for the time of day (``twisted.python.runtime.seconds``), so that all timers stand still for as long as
    it was set back. All of ``ReactorBase`` asks its own ``seconds``. What is planned already is planned by the old
    clock, which then stays.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


class Reactor(AsyncioSelectorReactor):
    """Twisted's, with a short way for what is due at once, as whatever is to be done at the end of a turn.

    Its own ``callLater`` puts each call into a heap, and has asyncio ring for the first of them by a timer, in another heap:
    that costs as much as half the delivery of a message to two people.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.call_soon = loop.call_soon

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        """See ``IReactorTime``. What is due at once is called in the order it came, and is not in ``getDelayedCalls``."""
        if delay == 0:
            return _Soon(self, callable, args, kwargs)
        call: DelayedCall = super().callLater(delay, callable, *args, **kwargs)  # type: ignore[no-untyped-call]
        return call

    def stop(self) -> None:
        """See ``IReactorCore``. Its events are fired where delayed calls are looked through: one has to be there."""
        super().stop()  # type: ignore[no-untyped-call]
        super().callLater(0, lambda: None)  # type: ignore[no-untyped-call]


class _Soon(DelayedCall):
    """A call that is due at once, unless it is put off meanwhile."""

    def __init__(
        self, reactor: Reactor, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        unplan, replan = _Soon._unplan, _Soon._replan  # called with the call itself
        super().__init__(reactor.seconds(), call, args, kwargs, unplan, replan, reactor.seconds)  # type: ignore[arg-type]
        self._reactor = reactor
        self._planned: Any = reactor.call_soon(self._run)

    def _unplan(self) -> None:
        self._planned.cancel()

    def _plan(self) -> None:
        left = self.time - self.seconds()
        self._planned = (
            self._reactor.callLater(left, self._run) if left > 0 else self._reactor.call_soon(self._run)
        )

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
