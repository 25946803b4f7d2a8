"""TCP between the hosts of a simulated world: bytes that arrive late, in pieces, slowly, at one side only, or not at all.

The server's end is a Twisted transport. The other end is a :class:`Socket` that simulated clients use directly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from msgspec import Struct
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.testing.simulation.clock import Clock, Host

_DONE, _ABORTED, _LOST = (
    Failure(error)  # type: ignore[no-untyped-call]
    for error in (ConnectionDone(), ConnectionAborted(), ConnectionLost())
)


class Conditions(Struct):
    """The quality of a network. ``delay`` is the latency in seconds, to which at most the same again is added; ``pieces`` is the share
    of writes that are split.

    ``window`` is how many bytes are accepted that the other side has not read yet.
    """

    delay: float = 0.001
    jitter: float = 0.0
    pieces: float = 0.0
    window: int = 256 * 1024


class Pipe:
    """One direction. ``deliver`` is called on ``host`` with each piece, and with None at the end."""

    def __init__(
        self,
        clock: Clock,
        host: Host,
        random: Random,
        conditions: Conditions,
        deliver: Callable[[bytes | None], None],
    ) -> None:
        self._clock, self._host, self._random, self._conditions = clock, host, random, conditions
        self._deliver = deliver
        self._rank = random.random()
        self._last = 0.0
        self._arrived: deque[bytes | None] = deque()
        self._bytes = 0
        self.reading = True
        self.silent = False
        self.broken = False
        self.room: Callable[[], None] = lambda: None

    @property
    def free(self) -> int:
        """The number of bytes that are accepted now."""
        return max(0, self._conditions.window - self._bytes)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._bytes += len(data)
        random, conditions = self._random, self._conditions
        if conditions.pieces and len(data) > 1 and random.random() < conditions.pieces:
            cuts = sorted({random.randrange(1, len(data)) for _ in range(random.randint(1, 4))})
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                self._later(data[start:stop])
        else:
            self._later(data)

    def end(self) -> None:
        """Send the end of the stream."""
        self._later(None)

    def _later(self, piece: bytes | None) -> None:
        conditions = self._conditions
        delay = conditions.delay + (
            round(self._random.random() * conditions.jitter, 3) if conditions.jitter else 0
        )
        at = max(self._clock.later(delay), self._last)
        self._last = at
        self._clock.call(self._host, self._rank, at - self._clock.now, self._arrive, (piece,))

    def _arrive(self, piece: bytes | None) -> None:
        if self.broken:
            return
        self._arrived.append(piece)
        self.flow()

    def flow(self) -> None:
        """Deliver what has arrived, as far as the receiver reads."""
        arrived = self._arrived
        took = False
        while arrived and self.reading and not self.silent and not self.broken:
            piece = arrived.popleft()
            self._bytes -= len(piece or b"")
            took = True
            self._deliver(piece)
        if took and not self.broken:
            self.room()


class Socket:
    """The client's end. ``data`` is called with bytes, ``lost`` once."""

    def __init__(self, data: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self.data, self.lost = data, lost
        self.outgoing: Pipe
        self.incoming: Pipe
        self.closed = False
        self.transport: Transport

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        if not self.closed:
            self.outgoing.send(data)

    def close(self) -> None:
        """Send the end of the stream, and stop reading."""
        if not self.closed:
            self.closed = True
            self.outgoing.end()
            self.incoming.broken = True

    def read(self, on: bool) -> None:
        """Start or stop reading."""
        self.incoming.reading = on
        self.incoming.flow()

    def silence(self, up: bool, down: bool) -> None:
        """Let nothing through in these directions for now."""
        self.outgoing.silent, self.incoming.silent = up, down
        self.outgoing.flow()
        self.incoming.flow()

    def cut(self, told: str = "both") -> None:
        """The network drops the connection. Tells ``both`` ends, only the ``client``, or ``nobody``."""
        self.incoming.broken = self.outgoing.broken = True
        if told == "both":
            self.transport.reset()
        if told != "nobody" and not self.closed:
            self.closed = True
            self.lost()

    def _received(self, piece: bytes | None) -> None:
        if self.closed:
            return
        if piece is None:
            self.closed = True
            self.outgoing.end()
            self.lost()
        else:
            self.data(piece)


@implementer(ITransport)
class Transport:
    """The server's end. Like our transport over real sockets it pauses a producer as soon as one byte is not accepted."""

    def __init__(self, host: Host, port: Port, peer: str, number: int) -> None:
        self._host, self._port, self._peer, self.number = host, port, peer, number
        self.protocol: Any = None
        self.outgoing: Pipe
        self.incoming: Pipe
        self.connected, self.disconnecting = True, False
        self._buffer = bytearray()
        self._producer: Any = None
        self._paused = False
        self._write_ended = False

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        if not self.connected or self._write_ended or not data:
            return
        if not self._buffer:
            free = self.outgoing.free
            if free >= len(data):
                self.outgoing.send(bytes(data))
                return
            if free:
                self.outgoing.send(bytes(data[:free]))
                data = data[free:]
        self._buffer += data
        if self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """Send all of ``data``."""
        self.write(b"".join(data))

    def _room(self) -> None:
        if not self.connected:
            return
        free = self.outgoing.free
        if self._buffer and free:
            piece = bytes(self._buffer[:free])
            del self._buffer[:free]
            self.outgoing.send(piece)
        if not self._buffer:
            if self._producer is not None and self._paused:
                self._paused = False
                self._producer.resumeProducing()
            if self.disconnecting and not self._buffer:
                self._finish()

    def loseConnection(self) -> None:
        """Close once all data is sent."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if not self._buffer:
                self._host.callLater(0, self._finish)

    def _finish(self) -> None:
        if self.connected and not self._buffer and self._producer is None:
            if not self._write_ended:
                self.outgoing.end()
            self._gone(_DONE)

    def loseWriteConnection(self) -> None:
        """Send no more, but keep reading."""
        if self.connected and not self._write_ended:
            self._write_ended = True
            self.outgoing.end()

    def abortConnection(self) -> None:
        """Close immediately."""
        if self.connected:
            self.outgoing.end()
            self._host.callLater(0, self._gone, _ABORTED)

    def reset(self) -> None:
        """The network has dropped the connection."""
        self._host.callLater(0, self._gone, _LOST)

    def _gone(self, reason: Failure) -> None:
        if not self.connected:
            return
        self.connected = False
        self.incoming.broken = True
        self._buffer.clear()
        self._port.connections.discard(self)
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:
            self.protocol.connectionLost(reason)

    def _received(self, piece: bytes | None) -> None:
        if not self.connected:
            return
        if piece is None:
            self._gone(_DONE)
        else:
            self.protocol.dataReceived(piece)

    # --- producers ------------------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register a producer, which is paused when needed."""
        self._producer = producer
        if not self.connected:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        """Unregister the producer."""
        self._producer = None
        if self.disconnecting and not self._buffer:
            self._host.callLater(0, self._finish)

    def pauseProducing(self) -> None:
        """Stop reading."""
        self.incoming.reading = False

    def resumeProducing(self) -> None:
        """Resume reading."""
        if self.connected and not self.incoming.reading:
            self.incoming.reading = True
            self._host.callLater(0, self.incoming.flow)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # --- addresses ------------------------------------------------------------------------------------------

    def getPeer(self) -> IPv4Address:
        """The address of the other end."""
        return IPv4Address("TCP", self._peer, 40000)

    def getHost(self) -> IPv4Address:
        """The local address."""
        return IPv4Address("TCP", "10.0.0.1", self._port.number)

    def setTcpNoDelay(self, on: bool) -> None:
        """Does nothing."""

    def setTcpKeepAlive(self, on: bool) -> None:
        """Does nothing."""


class Port:
    """A listening port. It accepts connections immediately, or later those that arrived meanwhile."""

    def __init__(self, host: Host, number: int, factory: Any) -> None:
        self._host, self.number, self.factory = host, number, factory
        self.connections: set[Transport] = set()
        self.numbers = count()
        self._accepting = True
        self._waiting: list[Transport] = []
        host.ports[number] = self
        factory.doStart()

    def accept(self, transport: Transport) -> None:
        """A client connects."""
        self._waiting.append(transport)
        if self._accepting:
            self._host.callLater(0, self._accept)

    def _accept(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            protocol = self.factory.buildProtocol(transport.getPeer())
            transport.protocol = protocol
            self.connections.add(transport)
            protocol.makeConnection(transport)
            transport.incoming.reading = True
            transport.incoming.flow()

    def stopReading(self) -> None:
        """Accept no connections for now."""
        self._accepting = False

    def startReading(self) -> None:
        """Accept the waiting connections."""
        self._accepting = True
        self._host.callLater(0, self._accept)

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self._host.ports.pop(self.number, None)
        for transport in self._waiting:
            transport.outgoing.end()
        self._waiting.clear()
        self.factory.doStop()
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """The address on which it listens."""
        return IPv4Address("TCP", "10.0.0.1", self.number)


def listen(host: Host, number: int, factory: Any) -> Port:
    """Open a listening port on a host."""
    return Port(host, number, factory)


def connect(
    clock: Clock,
    client: Host,
    server: Host,
    number: int,
    random: Random,
    conditions: Conditions,
    data: Callable[[bytes], None],
    lost: Callable[[], None],
) -> Socket | None:
    """Connect a client's host to a server's port. None if nobody listens there."""
    port = server.ports.get(number)
    if port is None or server.dead:
        return None
    socket = Socket(data, lost)
    transport = socket.transport = Transport(
        server, port, f"10.1.0.{int(client.rank * 250)}", next(port.numbers)
    )
    down = Pipe(clock, client, Random(random.getrandbits(64)), conditions, socket._received)
    up = Pipe(clock, server, Random(random.getrandbits(64)), conditions, transport._received)
    up.reading = False
    socket.outgoing = transport.incoming = up
    socket.incoming = transport.outgoing = down

    def room() -> None:
        if transport._buffer or transport._paused:
            clock.call(server, up._rank, 0, transport._room)

    down.room = room
    clock.call(server, up._rank, conditions.delay, port.accept, (transport,))
    return socket
