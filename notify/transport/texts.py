"""A WebSocket for programs of our own, on the internal port: whole text messages in and out, and what they say is somebody else's.

Frames are read as those of clients are: plain ones by the reader, the others by autobahn, which refuses what breaks RFC 6455.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from notify.core.timers import Timer, Wheel
from notify.transport.handshake import Refused, judge_inner
from notify.transport.reader import Reader
from notify.transport.tcp import settle
from notify.transport.upstream import OpenFactory, OpenProtocol
from notify.wire.frames import TEXT, websocket_frame

#: seconds that a connection which is closed may take to send its last bytes, and the client to answer our Close
LINGER = 1.0

_PING_OPCODE, _PONG_OPCODE = 0x9, 0xA


class Talker(Protocol):
    """Who talks over a connection. All is called in the reactor's thread."""

    def opened(self, socket: TextProtocol) -> None:
        """The connection is open."""

    def text(self, payload: bytes) -> None:
        """A message came: it is UTF-8."""

    def other(self) -> None:
        """A message came that is not text."""

    def read(self) -> None:
        """That was all that came at once."""

    def blocked(self) -> None:
        """The client does not take what was sent."""

    def unblocked(self) -> None:
        """It has taken all."""

    def closing(self) -> None:
        """A Close is about to be sent, by either side's wish: nothing goes out behind it."""

    def closed(self) -> None:
        """The connection is gone. Called once, and nothing is called afterwards."""


@implementer(IPushProducer)
class _Producer:
    """What the transport tells of what it could send."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    def pauseProducing(self) -> None:
        """It buffers."""
        self._talker.blocked()

    def resumeProducing(self) -> None:
        """It has sent all."""
        self._talker.unblocked()

    def stopProducing(self) -> None:
        """It is gone, and says so itself."""


class TextProtocol(OpenProtocol):
    """One connection. ``factory.protocol`` is a subclass with autobahn's initial state in its class."""

    factory: TextFactory
    talker: Talker
    _reader: Reader
    _lingering: Timer | None = None
    _silent = _gone = False

    def connectionMade(self) -> None:
        """The handshake is answered, and the transport is here."""
        super().connectionMade()
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._reader = Reader()
        self.transport.registerProducer(_Producer(self.talker), True)
        settle(self.transport)
        self.talker.opened(self)

    # --- for the talker -------------------------------------------------------------------------------------

    def client(self) -> str:
        """The client's address."""
        return str(getattr(self.transport.getPeer(), "host", "-"))

    def send(self, texts: Sequence[bytes]) -> None:
        """Send messages, each of them UTF-8."""
        self.transport.write(b"".join([websocket_frame(text, TEXT) for text in texts]))

    def ask(self) -> None:
        """Send a ping."""
        self.transport.write(websocket_frame(b"", _PING_OPCODE))

    def silence(self, silent: bool) -> None:
        """Read nothing more from the client, for now; or go on."""
        if silent != self._silent and not self.deaf:
            self._silent = silent
            (self.transport.pauseProducing if silent else self.transport.resumeProducing)()

    def end(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.silence(False)
        self.say_close(code, reason)

    def cut_off(self) -> None:
        """Drop the connection, whatever is still to be sent."""
        self.transport.abortConnection()

    # --- from the client ------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        if not self.deaf:
            self._reader.feed(data, self.factory.most, self)
            if not self._gone:
                self.talker.read()

    def message(self, payload: bytes, binary: bool) -> None:
        """A whole message came."""
        if binary:
            self.talker.other()
            return
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                self.refuse_text()
                return
        self.talker.text(payload)

    def ping(self, payload: bytes) -> None:
        """A ping came. Who sends many and reads no pongs is not read from."""
        self.transport.write(websocket_frame(payload, _PONG_OPCODE))

    def pong(self, count: int) -> None:
        """So many pongs came."""

    def part(self) -> None:
        """A frame came that continues a message."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message came in frames that are not plain."""
        self.message(payload, isBinary)

    # --- the end --------------------------------------------------------------------------------------------

    def closing(self) -> None:
        """See :class:`~notify.transport.upstream.OpenProtocol`."""
        self.talker.closing()

    def dropping(self) -> None:
        """The transport closes, and not only once the client has taken all: it might never."""
        if self._lingering is None:
            self._lingering = self.factory.wheel.after(LINGER, self.transport.abortConnection)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, after a closing handshake or without one."""
        self._gone = True
        self.factory.wheel.cancel(self._lingering)
        self._lingering = None
        self.talker.closed()


class TextFactory(OpenFactory):
    """Makes connections that take messages of up to ``most`` bytes."""

    def __init__(self, wheel: Wheel, reactor: Any, most: int) -> None:
        super().__init__(wheel, reactor)
        self.wheel = wheel
        self.most = most
        self.prepare(TextProtocol, most, LINGER)

    def answer(self, head: bytes, path: str) -> tuple[HTTPStatus, bytes]:
        """101 and the whole answer to an opening handshake for this path; or what it is refused with, and nothing."""
        try:
            return HTTPStatus.SWITCHING_PROTOCOLS, judge_inner(head, path)
        except Refused as refused:
            return refused.status, b""

    def make(self, talker: Talker) -> TextProtocol:
        """A connection that waits for its transport."""
        protocol: TextProtocol = self.protocol()
        protocol.factory = self
        protocol.talker = talker
        return protocol
