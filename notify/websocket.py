"""The WebSocket listener: autobahn's framing below, a session above, a bounded queue between.

The wire contract is docs/protocol.md, section 1. autobahn parses what comes in (RFC 6455: masking, fragments,
UTF-8, sizes); what goes out was framed once for all receivers and goes past it, straight to the transport.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from notify.config import Limits
from notify.frames import Encoding, InvalidFrame
from notify.handshake import Network, choose_encoding, client_address, origin_allowed
from notify.identity import Identity, Peer
from notify.interfaces import IConnection
from notify.session import Hub, Session
from notify.timers import Timer, Wheel

log = Logger()

PATH = "/ws"

#: bytes of an opening handshake, request line and headers
MAX_HANDSHAKE = 16 * 1024

#: the close codes that are counted by their own number; a client may send any other
CODES = frozenset((1000, 1001, 1002, 1006, 1007, 1009, 1012, 1013, *range(4000, 4005), *range(4500, 4505)))


class _Silent:
    """In place of autobahn's logger, which formats what clients send: handshakes carry tokens in query strings."""

    def debug(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    info = warn = error = trace = critical = failure = debug


@implementer(IConnection, IPushProducer)
class Connection(WebSocketServerProtocol):
    """One client: an autobahn protocol to the socket, an :class:`~notify.interfaces.IConnection` to the rest.

    While the transport is full, frames wait in a queue of whole frames here. So the bound is exact, and a slow
    client's memory is back at once when it is given up.
    """

    log = _Silent()
    factory: ConnectionFactory
    transport: Any
    encoding: Encoding

    def __init__(self) -> None:
        super().__init__()
        self.id = ""
        self.peer: Any = Peer("")
        self.identity: Identity | None = None
        self.opened = 0.0
        self._session: Session | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._full = False
        self._heard = False
        self._pinged = False
        self._ping: Timer | None = None

    # --- the opening handshake ------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Twisted has bytes from the client."""
        if self.state == self.STATE_CONNECTING and len(self.data) + len(data) > MAX_HANDSHAKE:
            head = (self.data + data).find(b"\r\n\r\n")
            if not 0 <= head <= MAX_HANDSHAKE:
                self.failHandshake("Request Header Fields Too Large", 431)
                return
        self._heard = True
        self._dataReceived(data)

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """autobahn has read a well-formed opening handshake. Anything but a ``ConnectionDeny`` would be echoed."""
        factory = self.factory
        headers = request.headers
        if request.path != PATH:
            raise ConnectionDeny(404, "Not Found")
        if not origin_allowed(request.origin or "", headers.get("host", ""), factory.allowed_origins):
            raise ConnectionDeny(403, "Origin Not Allowed")
        host = client_address(
            getattr(self.transport.getPeer(), "host", ""), headers.get("x-forwarded-for", ""), factory.trusted
        )
        self.peer = Peer(host, request.origin or "")
        name, self.encoding = choose_encoding(request.protocols)
        return name

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
        factory = self.factory
        hub = factory.hub
        self.id = UUID(int=hub.random.getrandbits(128), version=4).hex
        self.opened = hub.now()
        self._session = Session(self, hub)
        self.transport.registerProducer(self, True)
        self._ping = hub.wheel.after(hub.limits.ping_interval, self._look)
        self._session.opened()

    # --- from the client ------------------------------------------------------------------------------------

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message came, of valid UTF-8 where it is text."""
        session = self._session
        if session is None:
            return
        if isBinary != self.encoding.binary:
            kind = "binary" if self.encoding.binary else "text"
            session.invalid(InvalidFrame(f"this connection speaks {kind} frames"))
            return
        try:
            frames = self.encoding.decode(payload)
        except InvalidFrame as fault:
            session.invalid(fault)
        else:
            session.received(frames)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, after a closing handshake or without one."""
        hub = self.factory.hub
        hub.wheel.cancel(self._ping)
        self._drop_waiting()
        session, self._session = self._session, None
        if session is not None:
            session.closed()
            final = self.localCloseCode if self.closedByMe else code or 1000
            hub.metrics.closes.labels(str(final) if final in CODES else "other").inc()
            log.debug("{connection} closed with {code}", connection=self.id, code=final)

    def _look(self) -> None:
        """A ping interval or a wait for a pong is over."""
        hub = self.factory.hub
        if self.state != self.STATE_OPEN:
            return
        if self._heard:
            self._heard = self._pinged = False
            wait = hub.limits.ping_interval
        elif not self._pinged:
            self._pinged = True
            self.sendPing()
            wait = hub.limits.ping_timeout
        else:
            self.close(4003, "no pong")
            return
        self._ping = hub.wheel.after(wait, self._look)

    # --- to the client --------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        """See :class:`~notify.interfaces.IConnection`."""
        if self.state != self.STATE_OPEN:
            return
        if not self._full:
            self.transport.write(frame)
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        hub = self.factory.hub
        if self._waiting_bytes > hub.limits.send_queue:
            hub.metrics.slow_clients.inc()
            self.close(4001, "slow consumer")

    def throttle(self, on: bool) -> None:
        """See :class:`~notify.interfaces.IConnection`."""
        if self.state == self.STATE_OPEN:
            if on:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()

    def close(self, code: int, reason: str = "") -> None:
        """See :class:`~notify.interfaces.IConnection`. What waits is dropped: the client resumes from what it has."""
        if self.state != self.STATE_OPEN:
            return
        self._drop_waiting()
        self.sendCloseFrame(code, reason.encode()[:123] or None)  # sendClose knows no 1012 and no 1013
        # A session that paused reading would not see the client's answer.
        self.transport.resumeProducing()
        if self._session is not None:
            self._session.closed()

    def pauseProducing(self) -> None:
        """The transport is full. Called again for each write while it is."""
        self._full = True

    def resumeProducing(self) -> None:
        """The transport has room."""
        self._full = False
        while self._waiting and not self._full:
            frame = self._waiting.popleft()
            self._waiting_bytes -= len(frame)
            self.transport.write(frame)

    def stopProducing(self) -> None:
        """The transport is gone."""
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0


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


class ConnectionFactory(WebSocketServerFactory):
    """Makes connections. ``allowed_origins`` and ``trusted`` may be replaced while it runs."""

    protocol: Any = Connection
    log = _Silent()
    noisy = False

    def __init__(
        self, hub: Hub, allowed_origins: Sequence[str], trusted: Sequence[Network], reactor: Any
    ) -> None:
        super().__init__(server="", reactor=reactor)
        self._batched_timer = _Calls(hub.wheel)
        self.hub = hub
        self.allowed_origins = allowed_origins
        self.trusted = trusted
        self.adopt(hub.limits)

    def adopt(self, limits: Limits) -> None:
        """Let the handshakes and frames to come obey these limits."""
        self.setProtocolOptions(
            webStatus=False,
            utf8validateIncoming=True,
            maxMessagePayloadSize=limits.max_frame,
            failByDrop=False,
            openHandshakeTimeout=limits.handshake_timeout,
            closeHandshakeTimeout=1,
            # Ours are checked in onConnect; autobahn's patterns never match an origin without a port.
            allowedOrigins=["*"],
            allowNullOrigin=True,
        )
