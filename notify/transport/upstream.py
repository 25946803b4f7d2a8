"""What this package leans on in autobahn and Twisted that they do not document, all of it, behind names of our own.

:data:`AUTOBAHN` and :data:`TWISTED` list each with the reason; ``tests/transport/test_upstream.py`` tells by its name
which of them is gone, and holds the other modules of this package to the documented ones.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from OpenSSL.SSL import Connection, Error
from twisted.internet import address, tcp
from twisted.protocols.tls import BufferingTLSTransport

from notify.core.timers import Timer, Wheel

#: of ``WebSocketServerProtocol``, ``WebSocketServerFactory`` and ``PerMessageDeflate``
AUTOBAHN = {
    "_dataReceived": "takes frames without the adapter's formatting of a log line",
    "_connectionMade": "gives a connection its state: once, to a class, instead of to each",
    "_fail_connection": "a client that broke the protocol is read from no more",
    "_protocol_violation": "says whether to go on with the frame: no",
    "_invalid_payload": "the same",
    "failedByMe": "set where a connection fails, and read by all that handles frames",
    "data": "bytes that wait for the rest of their frame",
    "state": "begins open, for the handshake is ours",
    "STATE_OPEN": "the same",
    "current_frame": "set at the end of the handshake of autobahn's",
    "inside_message": "the same",
    "websocket_version": "the same; tells the RFC's frames from older ones",
    "is_open": "a Deferred for each connection, for which nobody waits",
    "is_closed": "the same",
    "log": "formats what clients send",
    "_perMessageCompress": "inflates: ours keeps no window between messages",
    "_decompressor": "that window",
    "end_decompress_message": "when it can go",
    "sendCloseFrame": "sends any code, where sendClose knows no 1012 and no 1013",
    "dropConnection": "closes the transport, only once the client has taken all",
    "closedByMe": "whose close code is the connection's",
    "localCloseCode": "that code",
    "countConnections": "each connection lost takes one off",
    "_batched_timer": "a reactor's timer stays alive when nobody waits for it any more",
}

#: of ``tcp.Server`` and its bases, and of ``TLSMemoryBIOProtocol``
TWISTED = {
    "_tempDataBuffer": "what was written and not sent: the newer part",
    "dataBuffer": "the older part",
    "offset": "how much of that is sent",
    "_writeDisconnected": "nothing can be sent any more",
    "TLS": "what is written is not what is sent",
    "_isSendBufferFull": "when a producer is paused: at the first byte that the socket did not take",
    "_addressType": "set for IPv6 by the constructor, which ours stands in for",
    "sessionno": "the same",
    "hostname": "the same",
    "_handshakeDone": "whether a TLS handshake came to its end",
    "_reason": "and why not",
    "_tlsConnection": "counts what TLS itself says when it has",
}


class _Silent:
    """In place of autobahn's logger, which formats what clients send: handshakes carry tokens in query strings."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    info = warn = error = trace = critical = failure = debug


class _Nobody:
    """In place of autobahn's Deferreds for a connection that opens and closes, which nobody waits for."""

    def callback(self, _: object) -> None:
        """Nothing."""


class OpenProtocol(WebSocketServerProtocol):
    """autobahn's end of a connection that is open: the frames that it is given, and the closing handshake.

    :meth:`OpenFactory.prepare` makes the subclass that has autobahn's initial state in its class.
    """

    log = _Silent()
    is_open = is_closed = _Nobody()
    websocket_version = 13
    inside_message = False
    current_frame: Any = None
    _perMessageCompress: Any
    factory: Any
    transport: Any

    #: our Close was sent
    ending = False
    #: nothing more is read (RFC 6455, section 7.1.7); the transport goes on, for a kernel that is not read from resets
    #: what the client has to get
    deaf = False

    def __init__(self) -> None:
        """Nothing: a connection is idle most of its life, and what it does not need it does not have."""

    def connectionMade(self) -> None:
        """The connection is open."""
        self.factory.countConnections += 1

    def other(self, data: bytes) -> None:
        """Read a frame, or a piece of one."""
        self._dataReceived(data)

    def inflate(self) -> None:
        """From now on messages may be compressed, each by itself."""
        self._perMessageCompress = _Inflater(True, True, True, 0, 0, None)

    def refuse_text(self) -> None:
        """A message is not what its frame says: close with 1007."""
        self._invalid_payload("text that is not UTF-8")

    def say_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.sendCloseFrame(code, reason.encode()[:123] or None)

    def closed(self, answered: bool) -> None:
        """The client's Close came, which answers ours: there is nothing more to wait for. Or so much else that none will be."""
        if answered:
            self.wasClean = True
            self.dropConnection(abort=True)
        else:
            self.deaf = True
            self.transport.pauseProducing()

    @property
    def closed_with(self) -> int | None:
        """The code of the Close that this side sent first, if it did."""
        return self.localCloseCode if self.closedByMe else None

    # --- for the subclass -----------------------------------------------------------------------------------

    def closing(self) -> None:
        """A Close is about to be sent, by either side's wish. May be called again."""

    def dropping(self) -> None:
        """The transport closes, once the client has taken what was sent."""

    # --- from autobahn --------------------------------------------------------------------------------------

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        self.failedByMe = self.ending = self.deaf = True
        self.data = b""
        self.say_close(code, reason)

    def _protocol_violation(self, reason: str) -> bool:
        super()._protocol_violation(reason)
        return True

    def _invalid_payload(self, reason: str) -> bool:
        super()._invalid_payload(reason)
        return True

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        """Send a Close, if none was sent."""
        self.closing()
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self.ending = True

    def dropConnection(self, abort: bool = False) -> None:
        """Close the transport."""
        self.ending = self.deaf = True
        super().dropConnection(abort)
        if not abort:
            self.dropping()


class _Inflater(PerMessageDeflate):
    """autobahn's side of permessage-deflate: what comes in. It keeps no window between messages."""

    def end_decompress_message(self) -> None:
        """A message is whole."""
        super().end_decompress_message()
        self._decompressor = None


class OpenFactory(WebSocketServerFactory):
    """What :class:`OpenProtocol` needs of a factory. ``countConnections`` is how many there are."""

    log = _Silent()
    noisy = False
    countConnections: int

    def __init__(self, wheel: Wheel, reactor: Any) -> None:
        super().__init__(server="", reactor=reactor)
        self._batched_timer = _Calls(wheel)

    def prepare(self, protocol: type[OpenProtocol], most: int, close_timeout: float) -> None:
        """Let connections to come be of this kind, take messages of so many bytes, and close in so many seconds."""
        self.setProtocolOptions(
            # Text is checked by whole messages: the validator has a state that connections cannot share.
            utf8validateIncoming=False,
            maxMessagePayloadSize=most,
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=close_timeout,
        )
        self.protocol: Any = type(protocol.__name__, (protocol,), initial_state(self))


def initial_state(factory: Any) -> dict[str, Any]:
    """What autobahn gives each new connection, to be had from its class instead.

    Some forty attributes and a pretty-printed list of options are most of what autobahn's connection costs in
    time and memory. The values are constants but for :data:`SHARED`, which serve all connections together.
    """
    stock: Any = WebSocketServerProtocol()
    stock.log = _Silent()
    stock.factory = factory
    stock.peer = ""
    stock._connectionMade()
    factory.countConnections -= 1
    stock.state = stock.STATE_OPEN
    own = ("log", "factory", "is_open", "is_closed")
    values = {name: value for name, value in vars(stock).items() if name not in own}
    # What is called without a connection must not become a method of it.
    return {
        name: staticmethod(value) if isinstance(value, FunctionType) else value
        for name, value in values.items()
    }


#: not constant, but safe to share: counters that nobody reads, a validator that is off, a queue for chopped writes
#: that are never asked for, and autobahn's own event registry
SHARED = frozenset(
    ("trafficStats", "utf8validator", "send_queue", "_valid_events", "_results", "_transport_details")
)


class _Call:
    """A call on the wheel, as autobahn knows one."""

    __slots__ = ("_timer", "_wheel")

    def __init__(self, wheel: Wheel, timer: Timer) -> None:
        self._wheel = wheel
        self._timer = timer

    def cancel(self) -> None:
        """Do not call."""
        self._wheel.cancel(self._timer)


class _Calls:
    """In place of autobahn's own timers."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel

    def call_later(self, seconds: float, call: Callable[[], None]) -> _Call:
        """Call once in ``seconds``."""
        return _Call(self._wheel, self._wheel.after(seconds, call))


class LeanServer(tcp.Server):
    """Twisted's server connection, without the two strings for its log that each would keep.

    A streaming producer is paused as soon as one byte is buffered, and resumed when none is.
    """

    logstr = "client"

    def __init__(
        self, sock: Any, protocol: Any, client: Any, server: Any, sessionno: int, reactor: Any
    ) -> None:
        tcp.Connection.__init__(self, sock, protocol, reactor)
        self.server: Any = server
        self.client = client
        self.sessionno = sessionno
        self.hostname = client[0]
        if len(client) != 2:
            self._addressType = address.IPv6Address
        self.startReading()
        self.connected = 1

    def __repr__(self) -> str:
        return f"<client #{self.sessionno} of {self.server!r}>"

    @property
    def encrypted(self) -> bool:
        """Whether what is written is not what is sent."""
        return bool(self.TLS)

    def idle(self) -> bool:
        """Whether the socket may be written to: it is open, and nothing waits to be sent before."""
        return bool(
            self.connected
            and not self._tempDataBuffer
            and len(self.dataBuffer) == self.offset
            and not self._writeDisconnected
            and not self.disconnecting
            and not self.TLS
        )

    def _isSendBufferFull(self) -> bool:
        return bool(self._tempDataBuffer) or len(self.dataBuffer) > self.offset


class TlsServer(BufferingTLSTransport):
    """Twisted's connection under TLS; what became of its handshake can be asked until it is lost.

    ``asides`` counts what OpenSSL tells :func:`aside` once the handshake is done: messages of TLS itself, which carry nothing.
    """

    def makeConnection(self, transport: Any) -> None:
        """The client is there."""
        super().makeConnection(transport)
        self._asides = [0]  # and not this object, which would keep itself alive
        self._tlsConnection.set_app_data(self._asides)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came, of TLS."""
        shaken = self.shaken
        super().dataReceived(data)
        if not shaken:
            self._asides[0] = 0

    @property
    def asides(self) -> int:
        """How many there were."""
        return self._asides[0]

    @property
    def shaken(self) -> bool:
        """Whether the handshake came to its end."""
        return self._handshakeDone

    @property
    def fault(self) -> BaseException | None:
        """What OpenSSL found wrong with the handshake, if anything."""
        found = self._reason.value if self._reason is not None and not self.shaken else None
        return found if isinstance(found, Error) else None


def aside(connection: Connection, _where: int, _code: int) -> None:
    """What a context of :class:`TlsServer` tells: a step of a handshake, or of what comes behind it, or an alert."""
    asides = connection.get_app_data()
    if isinstance(asides, list):  # and not what Twisted puts there, where the handshake begins
        asides[0] += 1
