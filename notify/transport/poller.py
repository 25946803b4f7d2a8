"""Polls many connections through one epoll, itself one descriptor of the reactor, and serves only so many in a turn.

A reactor handles everything that is ready in one turn. When thousands of clients come back at once, connected clients
would wait for all of them. With a poller, arriving clients get a few milliseconds of each turn, and the kernel keeps
the rest ready. An event also costs no more than its call: no handle, no callback, no context.
"""

from __future__ import annotations

import select
import sys
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

log = Logger()


@implementer(IReadDescriptor)
class Poller:
    """Stands in for the reactor of some transports: it handles their reading and leaves their writing to the reactor.

    ``most`` bounds how many of them are read from in one turn. Linux only: see :func:`available`.
    """

    def __init__(self, reactor: Any, most: int) -> None:
        self._reactor = reactor
        self._most = most
        self._epoll = select.epoll()
        self._readers: dict[int, Any] = {}
        self.addWriter = reactor.addWriter
        self.removeWriter = reactor.removeWriter
        self.callLater = reactor.callLater

    # --- for the transports: a reactor ----------------------------------------------------------------------

    def addReader(self, reader: Any) -> None:
        """Start reading from a transport. Does nothing if it is already read from."""
        descriptor = reader.fileno()
        if descriptor in self._readers:
            return
        if not self._readers:
            self._reactor.addReader(self)
        self._readers[descriptor] = reader
        self._epoll.register(descriptor, select.EPOLLIN)

    def removeReader(self, reader: Any) -> None:
        """Stop reading from it. Does nothing if it is not read from."""
        descriptor = reader.fileno()
        if self._readers.get(descriptor) is not reader:
            return
        del self._readers[descriptor]
        self._epoll.unregister(descriptor)
        if not self._readers:
            self._reactor.removeReader(self)

    def reads(self, reader: Any) -> bool:
        """Whether it is read from."""
        return self._readers.get(reader.fileno()) is reader

    def busy(self) -> bool:
        """Whether there is enough to read for a whole turn."""
        return len(self._epoll.poll(0, self._most)) == self._most

    # --- for the reactor: one descriptor --------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor, which is readable while any transport is."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "connections"

    def doRead(self) -> None:
        """Some transports have something to read, or are gone."""
        readers = self._readers
        for descriptor, _ in self._epoll.poll(0, self._most):
            reader = readers.get(descriptor)
            if reader is None:
                continue
            try:
                why = reader.doRead()
            except Exception:
                log.failure("a connection failed")
                why = sys.exc_info()[1]
            if why:
                self._disconnect(reader, why)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is stopping, and the transports with it."""
        for reader in list(self._readers.values()):
            self._disconnect(reader, reason.value)

    def _disconnect(self, reader: Any, why: Any) -> None:
        self.removeReader(reader)
        if isinstance(why, ConnectionDone):
            reader.readConnectionLost(_DONE)
            return
        self.removeWriter(reader)
        reader.connectionLost(_LOST if isinstance(why, ConnectionLost) else Failure(why))  # type: ignore[no-untyped-call]


_DONE = Failure(ConnectionDone())  # type: ignore[no-untyped-call]
_LOST = Failure(ConnectionLost())  # type: ignore[no-untyped-call]


def available() -> bool:
    """Whether this system has what a poller needs."""
    return hasattr(select, "epoll")
