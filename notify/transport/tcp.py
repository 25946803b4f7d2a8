"""The listening side of TCP: connections that write through to the socket, and are read from with measure."""

from __future__ import annotations

import resource
import socket as socket_options
import sys
from socket import socket
from typing import Any, cast

from twisted.internet import tcp

from notify.transport import poller
from notify.transport.poller import Poller
from notify.transport.upstream import LeanServer

#: connections that may wait in the kernel until they are accepted, as far as net.core.somaxconn lets them
WAITING = 4096
#: connections accepted in one turn of the reactor
ACCEPTS = 32
#: the same, while those on their way in keep a turn busy: each must be read from more than once, and whoever is accepted
#: before that, gone or not, takes a place and memory
FEW_ACCEPTS = 4
#: connections on their way in that are read from in one turn: some milliseconds of work
ARRIVING = 32
#: connections read from in one turn otherwise
SETTLED = 512
#: bytes read from a connection in one turn. A client's frames are smaller, and who sends without end is stopped after few
READ = 2048


class WriteThroughServer(LeanServer):
    """A server connection whose ``write`` tries the socket first while nothing is buffered.

    What the socket does not take, and everything behind it, goes the ordinary way; so order is kept. An error
    is left for the ordinary way to find and report. A producer that is not paused can go past ``write``: :func:`plain`.
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
    """A server connection of a :class:`PacedPort`: it arrives behind one poller, and settles behind another."""

    bufferSize = READ

    def __init__(
        self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any
    ) -> None:
        super().__init__(sock, protocol, client, server, sessionno, server.arriving)

    def settle(self) -> None:
        """The client is in: it need not queue with those on their way in any more."""
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
    """A listening port that accepts few connections a turn of the reactor.

    Twisted's own takes ever more while more are waiting: after a restart thousands in one turn, and what is
    already connected waits for all their handshakes. The kernel's queue is the better place for them.
    """

    transport = PolledServer
    arriving: Poller
    settled: Poller

    @property
    def numberAccepts(self) -> int:
        """How many connections one turn may accept: few where few files may be open, for one that is refused has its file
        until the next turn.
        """
        most = FEW_ACCEPTS if self.arriving.busy() else ACCEPTS
        return min(most, max(1, open_files() // 32))

    @numberAccepts.setter
    def numberAccepts(self, _: int) -> None:
        """Twisted's own adaption, which is not wanted."""


class InnerServer(PolledServer):
    """A server connection of an :class:`InnerPort`, over which a few clients of our own send much at once."""

    #: bytes read from a connection in one turn
    bufferSize = 64 * 1024


class InnerPort(PacedPort):
    """A listening port for our own."""

    transport = InnerServer


def plain(transport: Any) -> socket | None:
    """The socket itself, for a producer that is not paused; None where the bytes are not the socket's."""
    if isinstance(transport, WriteThroughServer) and not transport.encrypted:
        return transport.socket
    return None


def settle(transport: Any) -> None:
    """Let a transport settle, if it is one that arrives; under TLS it is the one below."""
    while transport is not None:
        if isinstance(transport, PolledServer):
            transport.settle()
            return
        transport = vars(transport).get("transport")


def give_up_after(transport: Any, seconds: float) -> None:
    """Have the kernel end a connection when its other end acknowledges nothing of what it is sent for so long; under TLS it is
    that of the transport below. Where there is no such option the kernel does so after its own time, some 15 minutes.
    """
    option = getattr(socket_options, "TCP_USER_TIMEOUT", None)
    while transport is not None and option is not None:
        if isinstance(transport, LeanServer):
            try:
                transport.socket.setsockopt(socket_options.IPPROTO_TCP, option, int(seconds * 1000))
            except OSError:
                pass  # a socket that is no TCP, or gone
            return
        transport = vars(transport).get("transport")


def open_files() -> int:
    """How many files this process may have open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def open_more_files() -> None:
    """Let this process have as many files open as it may: the lower limit is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # a sandbox may forbid it; the limit is then what it was


def descriptor(transport: Any) -> int:
    """The descriptor of a transport's socket, under TLS, too; -1: it has none."""
    fileno = getattr(transport, "fileno", None)
    return -1 if fileno is None else int(fileno())


def write_through(port: Any) -> None:
    """Make a listening port's connections write through, where it is a TCP port."""
    if type(port) is tcp.Port:
        cast(Any, port).transport = WriteThroughServer


def paced(port: Any, reactor: Any, kind: type[PacedPort] = PacedPort) -> None:
    """As :func:`write_through`, and let it accept and read with measure, where this system can."""
    write_through(port)
    if type(port) is tcp.Port and poller.available():
        port = cast(Any, port)
        del port.transport
        port.__class__ = kind
        port.arriving = Poller(reactor, ARRIVING)
        port.settled = Poller(reactor, SETTLED)
        # A socket that was handed over, as by systemd, brings no number.
        port.socket.listen(max(port.backlog or 0, WAITING))
