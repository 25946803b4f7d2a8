"""The asyncio reactor on uvloop's event loop: libuv runs the loop, and a separate epoll holds Twisted's descriptors.

Twisted registers each descriptor with the loop, and libuv handles them differently from asyncio. It aborts the
process (SIGABRT) if a descriptor was closed before it was removed. It also drops a descriptor in error after a single
call, even if there is more to read: a connection that was reset behind more than one read's worth of bytes would
never end. So the loop is given a single descriptor, behind which Twisted's own epoll reactor finds the ready ones.
Linux only.
"""

from __future__ import annotations

import asyncio
import math
import signal
from typing import Any

import uvloop
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.process import reapAllProcesses
from twisted.logger import Logger

from notify.service.at_once import AtOnce

log = Logger()


class _Epoll:
    """An epoll that, like asyncio's, tolerates the removal of a descriptor that has been closed."""

    def __init__(self, epoll: Any) -> None:
        self.register, self.modify = epoll.register, epoll.modify
        self.poll, self.fileno = epoll.poll, epoll.fileno
        self._unregister = epoll.unregister

    def unregister(self, descriptor: int) -> None:
        """Stop watching it."""
        try:
            self._unregister(descriptor)
        except OSError:
            pass


class UvloopReactor(AtOnce, EPollReactor, AsyncioSelectorReactor):
    """Descriptors are handled by ``EPollReactor``, everything else by ``AsyncioSelectorReactor`` on uvloop's loop.

    ``tests/service/test_uv.py`` checks that Twisted still has the private names used here.
    """

    event_loop = "uvloop"

    def __init__(self) -> None:
        EPollReactor.__init__(self)  # type: ignore[no-untyped-call]
        self._poller = _Epoll(self._poller)
        self._attach()

    def _attach(self) -> None:
        self._scheduledAt = None
        self._timerHandle = None
        loop = self._asyncioEventloop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.add_reader(self._poller.fileno(), self._ready)

    def _ready(self) -> None:
        """Like ``EPollReactor.doPoll``, without the context of Twisted's legacy log, as in a poller."""
        selectables = self._selectables
        for descriptor, event in self._poller.poll(0, len(selectables)):
            selectable = selectables.get(descriptor)
            if selectable is not None:
                try:
                    self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
                except Exception:
                    log.failure("a connection failed")

    def renew(self) -> None:
        """Replace the loop in a forked process, since libuv does not support using one across a fork.

        The reactor must not be running yet.
        """
        old = self._asyncioEventloop
        self._attach()
        old.close()
        self._reschedule()  # type: ignore[no-untyped-call]

    def startRunning(self, installSignalHandlers: bool = True) -> None:
        """See ``ReactorBase``.

        Twisted learns of the end of a child from the descriptor to which Python writes signal numbers, but uvloop
        installs its own there.
        """
        super().startRunning(installSignalHandlers=installSignalHandlers)
        if installSignalHandlers:
            signal.signal(signal.SIGCHLD, lambda *_: self.callFromThread(reapAllProcesses))  # type: ignore[no-untyped-call]

    def timeout(self) -> float | None:
        """See ``ReactorBase``. Rounds up to whole milliseconds, as asyncio does: libuv rounds down and would ask again."""
        seconds = super().timeout()
        return None if seconds is None else math.ceil(seconds * 1000) / 1000
