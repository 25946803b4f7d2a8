"""The listening side of TCP: connections that write through to the socket, and bounded reading in each turn."""

from __future__ import annotations

import resource
import socket as socket_options
import sys
from typing import Any, cast

from twisted.internet import tcp

from notify.transport import poller
from notify.transport.connection import Direct
from notify.transport.poller import Poller
from notify.transport.upstream import LeanServer, TlsServer

#: connections that may wait in the kernel to be accepted, as far as net.core.somaxconn allows
WAITING = 4096
#: connections accepted in one turn of the reactor
ACCEPTS = 32
#: the same while arriving connections keep a turn busy: each must be read from more than once, and each accepted one
#: takes a slot and memory before that, even if its client has left
FEW_ACCEPTS = 2
#: arriving connections read from in one turn: some milliseconds of work
ARRIVING = 16
#: other connections read from in one turn
SETTLED = 512
#: bytes read from a connection in one turn: more than a client's frame, and little enough to stop a flood early
READ = 2048


class WriteThroughServer(LeanServer):
    """A server connection whose ``write`` tries the socket first while nothing is buffered.

    What the socket does not take, and everything after it, goes through Twisted's buffer, so the order is kept.
    Errors are left for Twisted to find and report. A producer that is not paused can bypass ``write``: see
    :func:`direct`.
    """

    def write(self, data: bytes) -> None:
        """Send or buffer ``data``; like ``ITransport.write`` it never blocks and never raises for the socket."""
        if data and self.idle():
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        super().write(data)  # type: ignore[no-untyped-call]


class PolledServer(WriteThroughServer):
    """A connection of a :class:`PacedPort`: one poller reads from it while it arrives, another once it has settled."""

    bufferSize = READ

    def __init__(
        self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any
    ) -> None:
        super().__init__(sock, protocol, client, server, sessionno, server.arriving)

    def settle(self) -> None:
        """The client has been admitted, and no longer competes with arriving clients."""
        arriving: Any = self.reactor
        settled = self.server.settled
        if arriving is settled:
            return
        reading = arriving.reads(self)
        arriving.removeReader(self)
        self.reactor = settled
        if reading:
            settled.addReader(self)


class PacedPort(tcp.Port):
    """A listening port that accepts few connections in each turn of the reactor.

    Twisted's own accepts more the more are waiting. After a restart it would accept thousands in one turn, and
    connected clients would wait for all their handshakes. The kernel's queue is a better place for them to wait.
    """

    transport = PolledServer
    arriving: Poller
    settled: Poller

    @property
    def numberAccepts(self) -> int:
        """How many connections one turn may accept.

        Few if the limit of open files is low, because a refused connection keeps its file until the next turn.
        """
        most = FEW_ACCEPTS if self.arriving.busy() else ACCEPTS
        return min(most, max(1, open_files() // 32))

    @numberAccepts.setter
    def numberAccepts(self, _: int) -> None:
        """Ignores Twisted's own adaptation."""


class InnerServer(PolledServer):
    """A connection of an :class:`InnerPort`, over which a few of notify's own clients send much at once."""

    #: bytes read from a connection in one turn
    bufferSize = 64 * 1024


class InnerPort(PacedPort):
    """A listening port for notify's own clients."""

    transport = InnerServer


def direct(transport: Any) -> Direct | None:
    """What a producer that is not paused may send to; None: only ``write`` of the transport."""
    if isinstance(transport, TlsServer):
        return transport.direct()
    return transport.socket if isinstance(transport, WriteThroughServer) else None


def settle(transport: Any) -> None:
    """Let a transport settle if it is an arriving one; under TLS, the transport below."""
    while transport is not None:
        if isinstance(transport, PolledServer):
            transport.settle()
            return
        transport = vars(transport).get("transport")


def give_up_after(transport: Any, seconds: float) -> None:
    """Have the kernel end a connection whose peer acknowledges nothing for this long; under TLS, the one below.

    Where there is no such option, the kernel uses its own timeout of some 15 minutes.
    """
    option = getattr(socket_options, "TCP_USER_TIMEOUT", None)
    while transport is not None and option is not None:
        if isinstance(transport, LeanServer):
            try:
                transport.socket.setsockopt(socket_options.IPPROTO_TCP, option, int(seconds * 1000))
            except OSError:
                pass  # a socket that is not TCP, or gone
            return
        transport = vars(transport).get("transport")


def open_files() -> int:
    """How many files this process may have open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def open_more_files() -> None:
    """Raise the soft limit of open files to the hard limit; the soft limit exists for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # a sandbox may forbid it; the limit stays as it was


def descriptor(transport: Any) -> int:
    """The descriptor of a transport's socket, also under TLS; -1: it has none."""
    fileno = getattr(transport, "fileno", None)
    return -1 if fileno is None else int(fileno())


def write_through(port: Any) -> None:
    """Make the connections of a listening port write through, if it is a TCP port."""
    if type(port) is tcp.Port:
        cast(Any, port).transport = WriteThroughServer


def paced(port: Any, reactor: Any, kind: type[PacedPort] = PacedPort) -> None:
    """Like :func:`write_through`; also bound accepting and reading in each turn, if this system can."""
    write_through(port)
    if type(port) is tcp.Port and poller.available():
        port = cast(Any, port)
        del port.transport
        port.__class__ = kind
        port.arriving = Poller(reactor, ARRIVING)
        port.settled = Poller(reactor, SETTLED)
        # A socket that was passed in, for example by systemd, comes without a backlog.
        port.socket.listen(max(port.backlog or 0, WAITING))
