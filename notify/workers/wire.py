"""A link over a socket pair: the only module here that does input and output.

What is said goes to the socket at once, as far as it takes it: a turn of the reactor for each message would cost more than
the message.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.workers.link import Link

#: bytes that are read in one turn
_READ = 2**18


@implementer(IReadWriteDescriptor)
class Wire:
    """Joins a link with its socket, and holds it while that is full.

    ``ended`` is called once, when the other end is gone or was given up: then with a reason.
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
        self._rest = b""
        self.link = Link(self._write, soon, self._end)
        sock.setblocking(False)
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
        """The socket takes something again."""
        rest, self._rest = self._rest, b""
        self._reactor.removeWriter(self)
        self._write(rest)
        if not self._rest:
            self.link.go_on()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor takes no more descriptors: it stops."""
        self._end("")

    def _write(self, data: bytes) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # which reading finds, too
        if sent < len(data):
            self._rest = data[sent:]
            self.link.hold()
            self._reactor.addWriter(self)

    def _end(self, reason: str) -> None:
        sock, self._socket = self._socket, None
        if sock is None:
            return
        # By the descriptor, so while there is one.
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
    """A link over this socket, which it takes."""
    return Wire(reactor, sock, ended, soon).link
