"""Picks the asyncio reactor, which nats-py needs, before anyone imports another; on uvloop's event loop where that is."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor

from notify.errors import StartError
from notify.service.at_once import AtOnce


class AsyncioReactor(AtOnce, AsyncioSelectorReactor):
    """Twisted's, with a short way for what is due at once."""

    def renew(self) -> None:
        """Have the loop be the current one in a process that was forked: since Python 3.12 there is none then."""
        asyncio.set_event_loop(self._asyncioEventloop)


def install(event_loop: str = "auto") -> None:
    """Install the asyncio reactor with an event loop of its own, and a clock that nobody sets.

    ``event_loop`` is ``[server] event_loop``. Raises :class:`~notify.errors.StartError` where another reactor was asked for or
    imported already, and where uvloop is asked for and cannot be had.
    """
    installed: Any = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        from twisted.internet.main import installReactor

        installed = _made(event_loop)
        installReactor(installed)  # type: ignore[no-untyped-call]
    elif event_loop == "uvloop" and running_on(installed) != "uvloop":
        raise StartError(
            "server.event_loop: twistd's --reactor has a loop of its own: leave out --reactor, or do not ask for uvloop."
        )
    if not isinstance(installed, AsyncioSelectorReactor):
        raise StartError(
            f"notify runs on the asyncio reactor, not on {type(installed).__name__}: leave out --reactor, or use "
            "--reactor=asyncio."
        )
    steady(installed)


def _made(event_loop: str) -> Any:
    if event_loop != "asyncio":
        try:
            from notify.service.uv import UvloopReactor

            return UvloopReactor()
        except ImportError as error:
            if event_loop != "auto":
                raise StartError(
                    f"server.event_loop: uvloop cannot be used here ({error}): install it, or leave the key out."
                ) from None
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return AsyncioReactor(loop)


def running_on(reactor: Any) -> str:
    """The name of a reactor's event loop: ``uvloop`` or ``asyncio``."""
    return str(getattr(reactor, "event_loop", "asyncio"))


def forked(reactor: Any) -> None:
    """This process was forked from the one that installed the reactor, which has not run yet."""
    if isinstance(reactor, AtOnce):
        reactor.renew()


def steady(reactor: Any) -> None:
    """Have a reactor measure time by a monotonic clock.

    Twisted's ask for the time of day (``twisted.python.runtime.seconds``), so that all timers stand still for as long as
    it was set back. All of ``ReactorBase`` asks its own ``seconds``. What is planned already is planned by the old
    clock, which then stays.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
