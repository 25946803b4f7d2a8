"""Sends to one client: straight to the socket while it takes everything, otherwise through a bounded queue.

The path of a write is the cost of fan-out. All conditions that could prevent the direct path are therefore folded
into one flag, which changes when something happens, not when something is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from notify.identity import Identity, Peer
from notify.interfaces import IConnection
from notify.wire.frames import Encoding

#: bytes handed to the transport at once when it has room again
CHUNK = 64 * 1024


class Wire(Protocol):
    """What a connection needs of the WebSocket below it."""

    def say_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""

    def gone(self) -> None:
        """The connection sends nothing more. Called once."""


class Direct(Protocol):
    """Sends at once: a non-blocking socket, or what stands in for it."""

    def send(self, data: bytes, /) -> int:
        """Send as much as the socket takes now, and return the number of bytes. Raises ``OSError`` if it takes none."""

    def fileno(self) -> int:
        """The descriptor; -1: only ``send`` may be used."""


class SendQueues:
    """The bytes queued for all clients together.

    ``each`` and ``all`` return the bounds in bytes, which may change while the server runs. ``slow`` is called for
    each connection that is dropped as a slow consumer.
    """

    def __init__(self, each: Callable[[], int], all: Callable[[], int], slow: Callable[[], None]) -> None:
        self.total = 0
        self.waiting: dict[Connection, None] = {}
        self._each = each
        self._all = all
        self._slow = slow

    def check(self, connection: Connection) -> None:
        """A connection's queue has grown: close it if it exceeds its bound, and the longest queues while the total does."""
        if connection.queued > self._each():
            self._give_up(connection)
        while self.total > self._all() and self.waiting:
            self._give_up(max(self.waiting, key=lambda one: one.queued))

    def _give_up(self, connection: Connection) -> None:
        self._slow()
        connection.close(4001, "slow consumer")


@implementer(IConnection, IPushProducer)
class Connection:
    """See :class:`~notify.interfaces.IConnection`.

    While the transport holds bytes that the socket did not take, whole frames are queued here. The bound is therefore
    exact, and the memory of a slow client is freed as soon as it is closed.
    """

    __slots__ = (
        "_blocked",
        "_clear",
        "_descriptor",
        "_direct",
        "_held",
        "_open",
        "_queue",
        "_queues",
        "_transport",
        "_wire",
        "encoding",
        "heard",
        "id",
        "identity",
        "opened",
        "peer",
        "queued",
    )

    def __init__(
        self,
        id: str,
        peer: Peer,
        encoding: Encoding,
        opened: float,
        wire: Wire,
        transport: Any,
        queues: SendQueues,
        direct: Direct | None,
        heard: float = 0.0,
    ) -> None:
        """``direct`` may be sent to while the transport buffers nothing; None: everything is written to the transport.

        ``heard`` is the reactor's time now.
        """
        self.id = id
        self.peer = peer
        self.identity: Identity | None = None
        self.encoding = encoding
        self.opened = opened
        self.heard = heard
        #: bytes queued here
        self.queued = 0
        self._wire: Any = wire
        self._transport: Any = transport
        self._queues = queues
        self._queue: deque[bytes] | None = None
        self._held: list[bytes] | None = None  # frames of one turn, to be written at once
        self._open = True
        self._blocked = False
        self._direct = None if direct is None else direct.send
        # Open, not blocked, nothing held, nothing queued: a frame may be sent directly.
        self._clear = direct is not None
        # Only for the C fan-out, which reads these two and `encoding`. A closed descriptor may be reused immediately:
        # a transport tells its producer about the end before it closes its socket, and `end` forgets the descriptor
        # then.
        self._descriptor = -1 if direct is None else direct.fileno()

    @property
    def blocked(self) -> bool:
        """See :class:`~notify.interfaces.IConnection`."""
        return self._blocked

    def write(self, frame: bytes) -> None:
        """See :class:`~notify.interfaces.IConnection`."""
        if self._clear:
            try:
                sent = self._direct(frame)  # type: ignore[misc]
            except OSError:
                sent = 0  # the transport will find out what is wrong
            if sent != len(frame):
                self.left(frame, sent)
        elif self._held is not None:
            self._held.append(frame)
        elif self._open:
            self._write_later(frame)

    def left(self, frame: bytes, sent: int) -> None:
        """The socket took only this many bytes of a frame that was sent directly to it."""
        self._clear = False
        self._transport.write(frame[sent:])
        if sent and self._open and not self._blocked:
            self._clear = True  # the socket has taken the rest: nobody will resume this producer

    def _write_later(self, frame: bytes) -> None:
        if not self._blocked:
            self._transport.write(frame)
            return
        if self._queue is None:
            self._queue = deque()
            self._queues.waiting[self] = None
        self._queue.append(frame)
        self.queued += len(frame)
        self._queues.total += len(frame)
        self._queues.check(self)

    def hold(self) -> None:
        """Hold back what is written until :meth:`release`, and then write it at once: for a turn with many answers."""
        if self._clear:
            self._clear = False
            self._held = []

    def release(self) -> None:
        """Write what was held."""
        held = self._held
        if held is not None:
            self._held = None
            self._clear = not self._blocked
            if held:
                self.write(held[0] if len(held) == 1 else b"".join(held))

    def throttle(self, on: bool) -> None:
        """See :class:`~notify.interfaces.IConnection`."""
        if self._open:
            if on:
                self._transport.pauseProducing()
            else:
                self._transport.resumeProducing()

    def close(self, code: int, reason: str = "") -> None:
        """See :class:`~notify.interfaces.IConnection`. The queue is dropped: the client resumes from what it has."""
        if not self._open:
            return
        self.release()
        wire, transport = self._wire, self._transport
        self.end()
        wire.say_close(code, reason)
        # If the session has paused reading, the client's answer would not be seen.
        transport.resumeProducing()

    def end(self) -> None:
        """Send nothing more, and hold nothing. A second call does nothing."""
        if not self._open:
            return
        self._open = self._clear = False
        self._held = self._direct = None
        self._descriptor = -1
        self._drop_queue()
        # With a paused producer, the transport would never close.
        self._transport.unregisterProducer()
        wire = self._wire
        self._transport = self._wire = None
        wire.gone()

    # --- the transport's producer ---------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The transport has bytes that the socket did not take. Called again for each write while it has."""
        self._blocked = True
        if self._held is None:
            self._clear = False

    def resumeProducing(self) -> None:
        """The transport has sent everything."""
        self._blocked = False
        queue = self._queue
        while queue and not self._blocked:
            chunk = [queue.popleft()]
            size = len(chunk[0])
            while queue and size + len(queue[0]) <= CHUNK:
                size += len(queue[0])
                chunk.append(queue.popleft())
            self.queued -= size
            self._queues.total -= size
            self._transport.write(chunk[0] if len(chunk) == 1 else b"".join(chunk))
        if not queue:
            self._drop_queue()
            if not self._blocked and self._open and self._held is None:
                self._clear = self._direct is not None

    def stopProducing(self) -> None:
        """The transport is gone."""
        self.end()

    def _drop_queue(self) -> None:
        if self._queue is not None:
            self._queue = None
            self._queues.total -= self.queued
            self.queued = 0
            del self._queues.waiting[self]
