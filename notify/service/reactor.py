"""Picks the asyncio reactor, which nats-py needs, before anyone imports another."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from notify.errors import StartError


def install() -> None:
    """Install the asyncio reactor with an event loop of its own, and a clock that nobody sets.

    Raises :class:`~notify.errors.StartError` where another reactor was asked for or imported already.
    """
    installed = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        from twisted.internet import asyncioreactor

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        asyncioreactor.install(loop)  # type: ignore[no-untyped-call]
        installed = sys.modules["twisted.internet.reactor"]
    name = type(installed).__name__
    if name != "AsyncioSelectorReactor":
        raise StartError(
            f"notify runs on the asyncio reactor, not on {name}: leave out --reactor, or use --reactor=asyncio."
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
