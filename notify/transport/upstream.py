"""Wraps everything undocumented in autobahn, Twisted and pyOpenSSL that this package relies on, under own names.

:data:`AUTOBAHN`, :data:`TWISTED` and :data:`PYOPENSSL` list each with the reason. ``tests/transport/test_upstream.py``
reports by name which of them is gone, and keeps the package's other modules to documented names.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from OpenSSL import SSL
from OpenSSL.SSL import Connection, Error
from twisted.internet import address, tcp
from twisted.protocols.tls import TLSMemoryBIOProtocol

from notify.core.timers import Timer, Wheel

#: private names of ``WebSocketServerProtocol``, ``WebSocketServerFactory`` and ``PerMessageDeflate``
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

#: private names of ``tcp.Server`` and its bases, and of ``TLSMemoryBIOProtocol``
TWISTED = {
    "_tempDataBuffer": "what was written and not sent: the newer part",
    "dataBuffer": "the older part",
    "offset": "how much of that is sent",
    "_writeDisconnected": "nothing can be sent any more",
    "_isSendBufferFull": "when a producer is paused: at the first byte that the socket did not take",
    "_addressType": "set for IPv6 by the constructor, which ours stands in for",
    "sessionno": "the same",
    "hostname": "the same",
    "_handshakeDone": "whether a TLS handshake came to its end",
    "_reason": "and why not",
    "_tlsConnection": "counts what TLS itself says when it has; encrypts what is sent directly",
}

#: private names of ``OpenSSL.SSL`` and its ``Connection``
PYOPENSSL = {
    "_lib": "encrypts without the wrapper's calls, which cost more than the encryption",
    "_ffi": "one buffer for all, where the wrapper makes one for each call",
    "_ssl": "the connection, for OpenSSL itself",
    "_from_ssl": "what it has encrypted",
}


class _Silent:
    """Replaces autobahn's logger, which formats what clients send: handshakes carry tokens in query strings."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    info = warn = error = trace = critical = failure = debug


class _Nobody:
    """Replaces autobahn's Deferreds for the opening and closing of a connection, which nobody waits for."""

    def callback(self, _: object) -> None:
        """Does nothing."""


class OpenProtocol(WebSocketServerProtocol):
    """autobahn's part of an open connection: the frames that it is given, and the closing handshake.

    :meth:`OpenFactory.prepare` makes the subclass with autobahn's initial state as class attributes.
    """

    log = _Silent()
    is_open = is_closed = _Nobody()
    websocket_version = 13
    inside_message = False
    current_frame: Any = None
    _perMessageCompress: Any
    factory: Any
    transport: Any

    #: the server's Close was sent
    ending = False
    #: nothing more is processed (RFC 6455, section 7.1.7), but the transport keeps reading: if it did not, the kernel
    #: would reset what the client must get
    deaf = False

    def __init__(self) -> None:
        """Sets nothing: a connection is idle most of its life, and must not carry state that it does not need."""

    def connectionMade(self) -> None:
        """The connection is open."""
        self.factory.countConnections += 1

    def other(self, data: bytes) -> None:
        """Read a frame that is not plain, or a piece of one."""
        self._dataReceived(data)

    def inflate(self) -> None:
        """From now on messages may be compressed, each on its own."""
        self._perMessageCompress = _Inflater(True, True, True, 0, 0, None)

    def refuse_text(self) -> None:
        """A message is not of the kind that its frame declares: close with 1007."""
        self._invalid_payload("text that is not UTF-8")

    def say_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.sendCloseFrame(code, reason.encode()[:123] or None)

    def closed(self, answered: bool) -> None:
        """The client's Close arrived, which answers the server's; or so much else that none will come.

        Do not wait any longer.
        """
        if answered:
            self.wasClean = True
            self.dropConnection(abort=True)
        else:
            self.deaf = True
            self.transport.pauseProducing()

    @property
    def closed_with(self) -> int | None:
        """The code of the Close that this side sent first; None: it sent none."""
        return self.localCloseCode if self.closedByMe else None

    # --- for the subclass -----------------------------------------------------------------------------------

    def closing(self) -> None:
        """A Close is about to be sent, whichever side wants it. May be called again."""

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
        """Send a Close, unless one was sent."""
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
    """The receiving half of autobahn's permessage-deflate. It keeps no window between messages."""

    def end_decompress_message(self) -> None:
        """A message is complete."""
        super().end_decompress_message()
        self._decompressor = None


class OpenFactory(WebSocketServerFactory):
    """What :class:`OpenProtocol` needs of a factory. ``countConnections`` is the number of connections."""

    log = _Silent()
    noisy = False
    countConnections: int

    def __init__(self, wheel: Wheel, reactor: Any) -> None:
        super().__init__(server="", reactor=reactor)
        self._batched_timer = _Calls(wheel)

    def prepare(self, protocol: type[OpenProtocol], most: int, close_timeout: float) -> None:
        """Set the class of future connections, the most bytes of their messages, and the close timeout in seconds."""
        self.setProtocolOptions(
            # Text is checked a whole message at a time: the validator has state that connections cannot share.
            utf8validateIncoming=False,
            maxMessagePayloadSize=most,
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=close_timeout,
        )
        self.protocol: Any = type(protocol.__name__, (protocol,), initial_state(self))


def initial_state(factory: Any) -> dict[str, Any]:
    """What autobahn sets on each new connection, to be put on its class instead.

    Some forty attributes and a pretty-printed list of options make up most of the time and memory that autobahn's
    connection costs. The values are constants, except for :data:`SHARED`, which all connections can share.
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
    # A function that is called without a connection must not become a method of it.
    return {
        name: staticmethod(value) if isinstance(value, FunctionType) else value
        for name, value in values.items()
    }


#: not constant, but safe to share: counters that nobody reads, a validator that is off, a queue for chopped writes
#: that are never requested, and autobahn's own event registry
SHARED = frozenset(
    ("trafficStats", "utf8validator", "send_queue", "_valid_events", "_results", "_transport_details")
)


class _Call:
    """A call on the wheel, with the interface that autobahn expects."""

    __slots__ = ("_timer", "_wheel")

    def __init__(self, wheel: Wheel, timer: Timer) -> None:
        self._wheel = wheel
        self._timer = timer

    def cancel(self) -> None:
        """Cancel the call."""
        self._wheel.cancel(self._timer)


class _Calls:
    """Replaces autobahn's own timers."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel

    def call_later(self, seconds: float, call: Callable[[], None]) -> _Call:
        """Call once in ``seconds``."""
        return _Call(self._wheel, self._wheel.after(seconds, call))


class LeanServer(tcp.Server):
    """Twisted's server connection, without the two log strings that each one would keep.

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
        # CPython keeps attributes without a dictionary only if a connection has them from the start.
        self.producer: Any = None
        self.streamingProducer = False
        self.startReading()
        self.connected = 1

    def __repr__(self) -> str:
        return f"<client #{self.sessionno} of {self.server!r}>"

    def idle(self) -> bool:
        """Whether the socket may be written to directly: it is open, and nothing is waiting to be sent."""
        return bool(
            self.connected
            and not self._tempDataBuffer
            and len(self.dataBuffer) == self.offset
            and not self._writeDisconnected
            and not self.disconnecting
        )

    def _isSendBufferFull(self) -> bool:
        return bool(self._tempDataBuffer) or len(self.dataBuffer) > self.offset


_pyopenssl: Any = SSL
_openssl = _pyopenssl._lib
#: bytes: more than one TLS record, which has at most 16 KiB of data (RFC 8446, section 5.1)
_RECORD = 32 * 1024
_record = _pyopenssl._ffi.new("char[]", _RECORD)
_recorded = _pyopenssl._ffi.buffer(_record)


class Sealing:
    """Stands in for the socket of a TLS connection: encrypts what is sent, and writes it to the transport below."""

    __slots__ = ("_sealed", "_ssl", "_write")

    def __init__(self, tls: TlsServer) -> None:
        below: Any = tls.transport
        self._ssl = tls._tlsConnection._ssl
        self._sealed = tls._tlsConnection._from_ssl
        self._write = below.write

    def send(self, data: bytes) -> int:
        """Take up to one record of ``data``, and return the number of bytes; 0 for a fault.

        What is left has to be written to the TLS transport, which also finds out what is wrong.
        """
        taken: int = _openssl.SSL_write(self._ssl, data, len(data))
        if taken <= 0:
            # A fault that stays in OpenSSL's queue would be taken for one of the next connection.
            _openssl.ERR_clear_error()
            return 0
        size = _openssl.BIO_read(self._sealed, _record, _RECORD)
        if size > 0:
            self._write(_recorded[:size])
        return taken

    def fileno(self) -> int:
        """No descriptor: what is sent to the socket's own would not be encrypted."""
        return -1


class TlsServer(TLSMemoryBIOProtocol):
    """Twisted's TLS connection; the outcome of its handshake can be queried until it is lost.

    What is written is encrypted at once. Twisted's default collects it until the next turn, which costs more than it
    saves here: frames of one turn have been joined before. A producer that is not paused can bypass ``write``: see
    :meth:`direct`.

    ``asides`` counts what OpenSSL reports to :func:`aside` after the handshake: messages of TLS itself, which carry
    no data.
    """

    def makeConnection(self, transport: Any) -> None:
        """The client has connected."""
        super().makeConnection(transport)
        self._asides = [0]  # not this object, which would keep itself alive
        self._tlsConnection.set_app_data(self._asides)

    def dataReceived(self, data: bytes) -> None:
        """TLS bytes arrived."""
        shaken = self.shaken
        super().dataReceived(data)
        if not shaken:
            self._asides[0] = 0

    def direct(self) -> Sealing:
        """What a producer that is not paused may send to, once the handshake is complete."""
        return Sealing(self)

    @property
    def asides(self) -> int:
        """The number of TLS messages without data since the handshake."""
        return self._asides[0]

    @property
    def shaken(self) -> bool:
        """Whether the handshake completed."""
        return self._handshakeDone

    @property
    def fault(self) -> BaseException | None:
        """What OpenSSL found wrong with the handshake, if anything."""
        found = self._reason.value if self._reason is not None and not self.shaken else None
        return found if isinstance(found, Error) else None


def aside(connection: Connection, _where: int, _code: int) -> None:
    """The info callback of a :class:`TlsServer`'s context: a step of a handshake or of what follows it, or an alert."""
    asides = connection.get_app_data()
    if isinstance(asides, list):  # not what Twisted puts there, where the handshake begins
        asides[0] += 1
