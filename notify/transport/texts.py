"""A WebSocket for notify's own programs, on the internal port: it carries whole text messages, uninterpreted.

Frames are read like those of clients: plain ones by the reader, the others by autobahn, which refuses what violates
RFC 6455.
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

#: seconds that a closed connection may take to send its last bytes, and the client to answer the Close
LINGER = 1.0

_PING_OPCODE, _PONG_OPCODE = 0x9, 0xA


class Talker(Protocol):
    """The user of a connection. Everything is called in the reactor's thread."""

    def opened(self, socket: TextProtocol) -> None:
        """The connection is open."""

    def text(self, payload: bytes) -> None:
        """A message arrived; it is valid UTF-8."""

    def other(self) -> None:
        """A message arrived that is not text."""

    def read(self) -> None:
        """All that arrived at once has been passed on."""

    def blocked(self) -> None:
        """The client does not take what was sent."""

    def unblocked(self) -> None:
        """The client has taken everything."""

    def closing(self) -> None:
        """A Close is about to be sent, whichever side wants it: nothing is sent behind it."""

    def closed(self) -> None:
        """The connection is gone. Called once, and last."""


@implementer(IPushProducer)
class _Producer:
    """Receives the transport's flow control."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    def pauseProducing(self) -> None:
        """The transport buffers."""
        self._talker.blocked()

    def resumeProducing(self) -> None:
        """The transport has sent everything."""
        self._talker.unblocked()

    def stopProducing(self) -> None:
        """The transport is gone, and reports this itself."""


class TextProtocol(OpenProtocol):
    """One connection. ``factory.protocol`` is a subclass with autobahn's initial state as class attributes."""

    factory: TextFactory
    talker: Talker
    _reader: Reader
    _lingering: Timer | None = None
    _silent = _gone = False

    def connectionMade(self) -> None:
        """The handshake is answered, and the transport is ready."""
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
        """Stop reading from the client for now, or resume."""
        if silent != self._silent and not self.deaf:
            self._silent = silent
            (self.transport.pauseProducing if silent else self.transport.resumeProducing)()

    def end(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.silence(False)
        self.say_close(code, reason)

    def cut_off(self) -> None:
        """Drop the connection, even if bytes are still to be sent."""
        self.transport.abortConnection()

    # --- from the client ------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived."""
        if not self.deaf:
            self._reader.feed(data, self.factory.most, self)
            if not self._gone:
                self.talker.read()

    def message(self, payload: bytes, binary: bool) -> None:
        """A whole message arrived."""
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
        """A ping arrived. A client that sends many and does not read the pongs is not read from."""
        self.transport.write(websocket_frame(payload, _PONG_OPCODE))

    def pong(self, count: int) -> None:
        """This many pongs arrived."""

    def part(self) -> None:
        """A frame arrived that continues a message."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message arrived in frames that are not plain."""
        self.message(payload, isBinary)

    # --- the end --------------------------------------------------------------------------------------------

    def closing(self) -> None:
        """See :class:`~notify.transport.upstream.OpenProtocol`."""
        self.talker.closing()

    def dropping(self) -> None:
        """The transport closes without waiting for the client to take everything, which it might never do."""
        if self._lingering is None:
            self._lingering = self.factory.wheel.after(LINGER, self.transport.abortConnection)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, after a closing handshake or without one."""
        self._gone = True
        self.factory.wheel.cancel(self._lingering)
        self._lingering = None
        self.talker.closed()


class TextFactory(OpenFactory):
    """Makes connections that accept messages of up to ``most`` bytes."""

    def __init__(self, wheel: Wheel, reactor: Any, most: int) -> None:
        super().__init__(wheel, reactor)
        self.wheel = wheel
        self.most = most
        self.prepare(TextProtocol, most, LINGER)

    def answer(self, head: bytes, path: str) -> tuple[HTTPStatus, bytes]:
        """Judge an opening handshake for this path: 101 and the whole response, or the status that refuses it, and
        empty.
        """
        try:
            return HTTPStatus.SWITCHING_PROTOCOLS, judge_inner(head, path)
        except Refused as refused:
            return refused.status, b""

    def make(self, talker: Talker) -> TextProtocol:
        """A connection, still without its transport."""
        protocol: TextProtocol = self.protocol()
        protocol.factory = self
        protocol.talker = talker
        return protocol
