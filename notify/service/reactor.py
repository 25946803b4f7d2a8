"""Installs the asyncio reactor, which nats-py needs, before anything imports another; on uvloop if that is available."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor

from notify.errors import StartError
from notify.service.at_once import AtOnce


class AsyncioReactor(AtOnce, AsyncioSelectorReactor):
    """Twisted's reactor, with a faster path for calls without delay."""

    def renew(self) -> None:
        """Make the loop the current one in a forked process, where since Python 3.12 there is none."""
        asyncio.set_event_loop(self._asyncioEventloop)


def install(event_loop: str = "auto") -> None:
    """Install the asyncio reactor with its own event loop and a monotonic clock.

    ``event_loop`` is ``[server] event_loop``. Raises :class:`~notify.errors.StartError` if another reactor was asked
    for or has been imported, or if uvloop is asked for and not available.
    """
    installed: Any = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        from twisted.internet.main import installReactor

        installed = _made(event_loop)
        installReactor(installed)  # type: ignore[no-untyped-call]
    elif event_loop == "uvloop" and running_on(installed) != "uvloop":
        raise StartError(
            "server.event_loop: the reactor chosen by twistd's --reactor has its own event loop: leave out --reactor, or do not set uvloop."
        )
    if not isinstance(installed, AsyncioSelectorReactor):
        raise StartError(
            f"notify needs the asyncio reactor and cannot run on {type(installed).__name__}: leave out --reactor, or use "
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
    """Prepare the reactor, which has not run yet, after a fork of the process that installed it."""
    if isinstance(reactor, AtOnce):
        reactor.renew()


def steady(reactor: Any) -> None:
    """Have a reactor measure time by a monotonic clock.

    Twisted's reactors use the time of day (``twisted.python.runtime.seconds``), so after it is set back all timers
    stand still for as long. Everything in ``ReactorBase`` asks the reactor's own ``seconds``. If calls are already
    scheduled, they use the old clock, and it stays.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
