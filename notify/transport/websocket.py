"""The WebSocket listener: autobahn's protocol below, a connection and its session above.

The wire contract is docs/protocol.md, section 1. autobahn reads what comes in (RFC 6455: handshake, masking,
fragments, UTF-8, sizes). What almost every client sends is read here before it gets there: a plain handshake, and
whole unfragmented frames; whatever is anything else is left to autobahn, which alone refuses. What goes out
was framed once for all receivers and goes past it: see :mod:`notify.transport.connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import (
    PerMessageDeflate,
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
)
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.logger import Logger

from notify.config import Compression
from notify.core.hub import Hub
from notify.core.session import Session
from notify.core.timers import Timer, Wheel
from notify.identity import Peer
from notify.transport.connection import Connection, SendQueues
from notify.transport.handshake import (
    Network,
    accept,
    client_address,
    origin_allowed,
    read_request,
    well_formed,
)
from notify.transport.tcp import direct, settle
from notify.wire import encodings
from notify.wire.deflate import WINDOW_BITS
from notify.wire.frames import Encoding, InvalidFrame, websocket_frame

log = Logger()

PATH = "/ws"

#: bytes of an opening handshake, request line and headers
MAX_HANDSHAKE = 16 * 1024

#: the close codes that are counted by their own number; a client may send any other
CODES = frozenset((1000, 1001, 1002, 1006, 1007, 1009, 1012, 1013, *range(4000, 4005), *range(4500, 4505)))

#: first bytes of whole frames (RFC 6455, section 5.2)
_TEXT, _BINARY, _PONG = 0x81, 0x82, 0x8A
#: opcodes: the part of a message behind its first, and a pong
_PART, _PONG_OPCODE = 0x0, 0xA

#: seconds that a connection which is closed may take to send its last bytes
LINGER = 1.0


NO_COMPRESSION = Compression()


class _Silent:
    """In place of autobahn's logger, which formats what clients send: handshakes carry tokens in query strings."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    info = warn = error = trace = critical = failure = debug


class _Nobody:
    """In place of autobahn's Deferreds for a connection that opens and closes, which nobody waits for."""

    def callback(self, _: object) -> None:
        """Nothing."""


class ClientProtocol(WebSocketServerProtocol):
    """One client's end of the wire. ``factory.protocol`` is a subclass with autobahn's initial state in its class."""

    log = _Silent()
    factory: ConnectionFactory
    transport: Any
    is_open = is_closed = _Nobody()
    websocket_version = 13
    openHandshakeTimeout: float
    maxMessagePayloadSize: int
    inside_message = False
    current_frame: Any = None
    _perMessageCompress: Any

    connection: Connection | None = None
    _session: Session | None = None
    _heard = _pinged = _settled = False
    _ping: Timer | None = None
    _lingering: Timer | None = None
    _peer: Peer
    _encoding: Encoding

    def __init__(self) -> None:
        """Nothing: a connection is idle most of its life, and what it does not need it does not have."""

    def connectionMade(self) -> None:
        """A client connected; its first bytes follow at once."""
        self.factory.countConnections += 1
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)

    # --- the opening handshake ------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Twisted has bytes from the client."""
        if self.state == self.STATE_CONNECTING:
            self._shake_hands(data)
            return
        if self.failedByMe or self.state == self.STATE_CLOSED:
            return  # RFC 6455, section 7.1.7; reading on keeps the kernel from resetting what the client has to get
        self._heard = True
        connection = self.connection
        if connection is None:
            self._dataReceived(data)
            return
        connection.hold()
        try:
            if not self.data and self.current_frame is None and not self.inside_message:
                data = self._read_whole_frames(data)
            if data and not self.failedByMe:
                self._dataReceived(data)
        finally:
            connection.release()
        if not self._settled and self._session is not None and self._session.identified:
            self._settled = True
            settle(self.transport)

    def _shake_hands(self, data: bytes) -> None:
        if not self.data:
            if self._accept(data):
                return
            self.openHandshakeTimeoutCall = self.factory._batched_timer.call_later(
                self.factory.hub.live.now.limits.handshake_timeout, self.onOpenHandshakeTimeout
            )
        data, self.data = self.data + data, b""
        end = data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(data)) > MAX_HANDSHAKE:
            self.failHandshake("Request Header Fields Too Large", 431)
        elif end < 0:
            self.data = data
        elif (head := well_formed(data[:end])) is None:
            self.failHandshake("Bad Request")
        else:
            self._dataReceived(head + data[end:])

    def _accept(self, data: bytes) -> bool:
        """Whether this was a handshake as clients send it, whole and acceptable; if so, the connection is open."""
        request = read_request(data, PATH, MAX_HANDSHAKE)
        if request is None:
            return False
        factory = self.factory
        if request.origin and not origin_allowed(request.origin, request.host, factory.allowed_origins):
            return False
        if request.extensions and factory.compression.enabled:
            return False
        name, self._encoding = encodings.choose(request.protocols)
        self._peer = self._make_peer(request.forwarded, request.origin)
        self.transport.write(accept(request.key, name))
        self.state = self.STATE_OPEN
        self.onOpen()
        if request.rest:
            self.dataReceived(request.rest)
        return True

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """autobahn has read a well-formed opening handshake. Anything but a ``ConnectionDeny`` would be echoed."""
        factory = self.factory
        headers = request.headers
        if request.path != PATH:
            raise ConnectionDeny(404, "Not Found")
        if not origin_allowed(request.origin or "", headers.get("host", ""), factory.allowed_origins):
            raise ConnectionDeny(403, "Origin Not Allowed")
        self._peer = self._make_peer(headers.get("x-forwarded-for", ""), request.origin or "")
        name, self._encoding = encodings.choose(request.protocols)
        return name

    def _make_peer(self, forwarded: str, origin: str) -> Peer:
        address = getattr(self.transport.getPeer(), "host", "")
        return Peer(client_address(address, forwarded, self.factory.trusted), origin)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse the handshake with a plain HTTP answer that quotes nothing of the request."""
        reasons = {403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 426: "Upgrade Required"}
        phrase = reasons.get(code, "Bad Request" if code == 400 else "Refused")
        extra = [*(responseHeaders or ()), ("Content-Length", "0"), ("Connection", "close")]
        if code == 426:
            extra.append(("Upgrade", "websocket"))
        self.sendHttpErrorResponse(code, phrase, extra)
        self.dropConnection(abort=False)

    def onOpen(self) -> None:
        """The handshake is done."""
        hub, deflate = self.factory.hub, self._perMessageCompress
        if deflate is not None:
            bits, settings = deflate.server_max_window_bits, self.factory.compression
            self._encoding = encodings.deflated(self._encoding, bits, settings.level, settings.minimum)
            self._perMessageCompress = _Inflater(True, True, True, bits, 0, None)
        for name in [name for name in self.__dict__ if name.startswith(("http_", "websocket_"))]:
            del self.__dict__[name]
        self.connection = connection = Connection(
            f"{hub.random.getrandbits(128):032x}",
            self._peer,
            self._encoding,
            hub.now(),
            self,
            self.transport,
            self.factory.queues,
            direct(self.transport),
        )
        del self._peer, self._encoding
        self._session = session = Session(connection, hub)
        self.transport.registerProducer(connection, True)
        self._ping = hub.wheel.after(hub.live.now.limits.ping_interval, self._look)
        session.opened()

    # --- from the client ------------------------------------------------------------------------------------

    def _read_whole_frames(self, data: bytes) -> bytes:
        """Take the frames that need no state between reads, and give what is left for autobahn."""
        at, end, most = 0, len(data), self.maxMessagePayloadSize
        while end - at >= 6 and self.state == self.STATE_OPEN:
            kind, length, head = data[at], data[at + 1] - 128, at + 6
            if length == 126 and kind != _PONG and end - at >= 8:
                length, head = data[at + 2] << 8 | data[at + 3], at + 8
                if length < 126:
                    break
            elif not 0 <= length < 126:
                break
            stop = head + length
            if stop > end or length > most or kind not in (_TEXT, _BINARY, _PONG):
                break
            if kind != _PONG:
                key = int.from_bytes((data[head - 4 : head] * (length // 4 + 1))[:length], "big")
                payload = (int.from_bytes(data[head:stop], "big") ^ key).to_bytes(length, "big")
                self.onMessage(payload, kind == _BINARY)
            at = stop
        return data[at:] if at else data

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message came."""
        session, connection = self._session, self.connection
        if session is None or connection is None:
            return
        if not isBinary and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                self._invalid_payload("text that is not UTF-8")
                return
        encoding = connection.encoding
        if isBinary != encoding.binary:
            kind = "binary" if encoding.binary else "text"
            session.invalid(InvalidFrame(f"this connection speaks {kind} frames"))
            return
        try:
            frames = encoding.decode(payload)
        except InvalidFrame as fault:
            session.invalid(fault)
        else:
            session.received(frames)

    def onFrameBegin(self) -> None:
        """The head of a frame came that was not read here."""
        if self.current_frame.opcode == _PART and self._session is not None:
            self._session.spend()
        super().onFrameBegin()

    def onPing(self, payload: bytes) -> None:
        """A ping came: its pong goes the way of all frames, in order and within the bounds of the queue."""
        connection, session = self.connection, self._session
        if connection is not None and session is not None and session.spend():
            connection.write(websocket_frame(payload, _PONG_OPCODE))

    # --- the end --------------------------------------------------------------------------------------------

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        """The client broke the protocol: tell it, and read nothing more."""
        self.failedByMe = True
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
        """Send a Close: what was answered before goes out before it, and nothing behind it."""
        if self.connection is not None:
            self.connection.release()
            self.connection.end()
        super().sendCloseFrame(code, reasonUtf8, isReply)

    def dropConnection(self, abort: bool = False) -> None:
        """Close the transport, and not only once the client has taken all: it might never."""
        super().dropConnection(abort)
        if not abort and self._lingering is None:
            self._lingering = self.factory.hub.wheel.after(LINGER, self.transport.abortConnection)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, after a closing handshake or without one."""
        hub = self.factory.hub
        hub.wheel.cancel(self._ping)
        hub.wheel.cancel(self._lingering)
        self._ping = self._lingering = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.end()
            self._session = None
            final = self.localCloseCode if self.closedByMe else code or 1000
            hub.metrics.closes.labels(str(final) if final in CODES else "other").inc()
            log.debug("{connection} closed with {code}", connection=connection.id, code=final)

    def gone(self) -> None:
        """See :class:`~notify.transport.connection.Wire`."""
        if self._session is not None:
            self._session.closed()

    def say_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self.sendCloseFrame(code, reason.encode()[:123] or None)  # sendClose knows no 1012 and no 1013

    def _look(self) -> None:
        """A ping interval or a wait for a pong is over."""
        hub, connection = self.factory.hub, self.connection
        if self.state != self.STATE_OPEN or connection is None:
            return
        if self._heard:
            self._heard = self._pinged = False
            wait = hub.live.now.limits.ping_interval
        elif not self._pinged:
            self._pinged = True
            self.sendPing()
            wait = hub.live.now.limits.ping_timeout
        else:
            connection.close(4003, "no pong")
            return
        self._ping = hub.wheel.after(wait, self._look)


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
    """In place of autobahn's own timers, which keep a reactor timer alive when nobody waits for it any more."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel

    def call_later(self, seconds: float, call: Callable[[], None]) -> _Call:
        """Call once in ``seconds``."""
        return _Call(self._wheel, self._wheel.after(seconds, call))


class _Inflater(PerMessageDeflate):
    """autobahn's side of permessage-deflate: what comes in. It keeps no window between messages."""

    def end_decompress_message(self) -> None:
        """A message is whole."""
        super().end_decompress_message()
        self._decompressor = None


def _accept_deflate(offers: Sequence[Any]) -> PerMessageDeflateOfferAccept | None:
    """Take the first offer that can be kept, without context takeover in either direction (RFC 7692, section 7)."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            bits = offer.request_max_window_bits or max(WINDOW_BITS)
            if bits in WINDOW_BITS:
                return PerMessageDeflateOfferAccept(
                    offer, request_no_context_takeover=True, no_context_takeover=True, window_bits=bits
                )
    return None


def _accept_nothing(_: Sequence[Any]) -> None:
    """Take no offer."""


class ConnectionFactory(WebSocketServerFactory):
    """Makes connections."""

    log = _Silent()
    noisy = False

    def __init__(
        self,
        hub: Hub,
        reactor: Any,
        compression: Compression = NO_COMPRESSION,
    ) -> None:
        super().__init__(server="", reactor=reactor)
        self._batched_timer = _Calls(hub.wheel)
        self.hub = hub
        self.compression = compression
        self.queues = SendQueues(
            lambda: hub.live.now.limits.send_queue,
            lambda: hub.live.now.limits.send_queues,
            hub.metrics.slow_clients.inc,
        )
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            # Text is checked whole in onMessage: the validator has a state that connections cannot share.
            utf8validateIncoming=False,
            maxMessagePayloadSize=hub.live.now.limits.max_frame,
            failByDrop=False,
            closeHandshakeTimeout=LINGER,
            perMessageCompressionAccept=_accept_deflate if self.compression.enabled else _accept_nothing,
            # Ours are checked in onConnect; autobahn's patterns never match an origin without a port.
            allowedOrigins=["*"],
            allowNullOrigin=True,
        )
        self.protocol: Any = type("ClientProtocol", (ClientProtocol,), initial_state(self))

    @property
    def allowed_origins(self) -> Sequence[str]:
        """The origins in force."""
        return self.hub.live.now.allowed_origins

    @property
    def trusted(self) -> Sequence[Network]:
        """The proxies in force."""
        return self.hub.live.now.trusted


def initial_state(factory: Any) -> dict[str, Any]:
    """What autobahn gives each new connection, to be had from its class instead.

    Some forty attributes and a pretty-printed list of options are most of what autobahn's connection costs in
    time and memory. The values are constants but for :data:`SHARED`, which serve all connections together.
    """
    stock: Any = WebSocketServerProtocol()
    stock.log = _Silent()
    stock.factory = factory
    stock.peer = ""
    patience, factory.openHandshakeTimeout = factory.openHandshakeTimeout, 0
    stock._connectionMade()
    factory.countConnections -= 1
    factory.openHandshakeTimeout = stock.openHandshakeTimeout = patience
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
