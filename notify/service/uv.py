"""The asyncio reactor on uvloop's event loop: libuv for the turns, and one epoll of our own for all of Twisted's descriptors.

Twisted hands each descriptor to the loop, and libuv does not take them as asyncio does. It ends the process (SIGABRT) where one was
closed before it was let go of, and it lets go of one in error after a single call, whatever is left to be read: a
connection that was reset behind more than a read's worth of bytes then never ends. So the loop knows one descriptor,
and behind it Twisted's own reactor for epoll looks who is ready. Linux only.
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
    """An epoll that is told to forget what was closed, and is forgotten already, as asyncio's may be."""

    def __init__(self, epoll: Any) -> None:
        self.register, self.modify = epoll.register, epoll.modify
        self.poll, self.fileno = epoll.poll, epoll.fileno
        self._unregister = epoll.unregister

    def unregister(self, descriptor: int) -> None:
        """Watch it no more."""
        try:
            self._unregister(descriptor)
        except OSError:
            pass


class UvloopReactor(AtOnce, EPollReactor, AsyncioSelectorReactor):
    """Descriptors are ``EPollReactor``'s, all else is ``AsyncioSelectorReactor``'s, whose loop is uvloop's.

    ``tests/service/test_uv.py`` holds Twisted to the private names that are used here.
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
        """As ``EPollReactor.doPoll``, without the context of Twisted's older log, which a poller does without, too."""
        selectables = self._selectables
        for descriptor, event in self._poller.poll(0, len(selectables)):
            selectable = selectables.get(descriptor)
            if selectable is not None:
                try:
                    self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
                except Exception:
                    log.failure("a connection failed")

    def renew(self) -> None:
        """Have another loop, in a process that was forked: libuv promises nothing of one that was there before. The reactor must not run yet."""
        old = self._asyncioEventloop
        self._attach()
        old.close()
        self._reschedule()  # type: ignore[no-untyped-call]

    def startRunning(self, installSignalHandlers: bool = True) -> None:
        """See ``ReactorBase``. That a child has ended Twisted reads from the descriptor to which Python writes the numbers of
        signals, and uvloop puts its own there.
        """
        super().startRunning(installSignalHandlers=installSignalHandlers)
        if installSignalHandlers:
            signal.signal(signal.SIGCHLD, lambda *_: self.callFromThread(reapAllProcesses))  # type: ignore[no-untyped-call]

    def timeout(self) -> float | None:
        """See ``ReactorBase``. Whole milliseconds, as with asyncio's: libuv rounds down, too, and would be asked again at once."""
        seconds = super().timeout()
        return None if seconds is None else math.ceil(seconds * 1000) / 1000
