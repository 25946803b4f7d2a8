"""A link over a socket pair. The only module of this package that does I/O.

Messages are written to the socket immediately, as far as it takes them: a turn of the reactor for each message would
cost more than the message.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.workers.link import Link

#: bytes read in one turn, so that a worker which delivers them to many clients answers and reads again soon
_READ = 2**16
#: bytes that the kernel keeps, so that it is seen soon whether the other end reads
_KEPT = 2**15


@implementer(IReadWriteDescriptor)
class Wire:
    """Connects a link to its socket, and holds it while the socket is full.

    ``ended`` is called once, when the other end is gone or was given up; in the latter case with a reason.
    """

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        ended: Callable[[str], object],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._reactor = reactor
        self._socket: socket.socket | None = sock
        self._ended = ended
        self._rest: bytes | memoryview = b""
        self.link = Link(self._write, soon, self._end)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KEPT)
        reactor.addReader(self)

    def fileno(self) -> int:
        """The socket's descriptor; -1: it is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "workers"

    def doRead(self) -> None:
        """There is something to read."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.link.received(data)
        else:
            self._end("")

    def doWrite(self) -> None:
        """The socket takes bytes again."""
        rest, self._rest = self._rest, b""
        self._reactor.removeWriter(self)
        self._write(rest)
        self.link.taken += len(rest) - len(self._rest)
        if not self._rest:
            self.link.go_on()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is stopping and drops its descriptors."""
        self._end("")

    def _write(self, data: bytes | memoryview) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # reading will notice it as well
        if sent < len(data):
            self._rest = memoryview(data)[sent:]
            self.link.hold()
            self._reactor.addWriter(self)

    def _end(self, reason: str) -> None:
        sock, self._socket = self._socket, None
        if sock is None:
            return
        # The reactor removes it by its descriptor, so this must come before the close.
        self._socket = sock
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._socket = None
        sock.close()
        self.link.gone()
        self._ended(reason)


def join(
    reactor: Any,
    sock: socket.socket,
    ended: Callable[[str], object],
    soon: Callable[[Callable[[], None]], object],
) -> Link:
    """A link over this socket, which it takes ownership of."""
    return Wire(reactor, sock, ended, soon).link
