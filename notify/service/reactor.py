"""Picks the asyncio reactor, which nats-py needs, before anyone imports another."""

from __future__ import annotations

import asyncio
import sys

from notify.errors import StartError


def install() -> None:
    """Install the asyncio reactor with an event loop of its own.

    Raises :class:`~notify.errors.StartError` where another reactor was asked for or imported already.
    """
    installed = sys.modules.get("twisted.internet.reactor")
    if installed is None:
        from twisted.internet import asyncioreactor

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        asyncioreactor.install(loop)  # type: ignore[no-untyped-call]
        return
    name = type(installed).__name__
    if name != "AsyncioSelectorReactor":
        raise StartError(
            f"notify runs on the asyncio reactor, not on {name}: leave out --reactor, or use --reactor=asyncio."
        )
