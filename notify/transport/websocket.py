"""An open WebSocket connection: the client's frames below, its session above.

The wire contract is docs/protocol.md, section 1. Plain frames come straight from the reader. autobahn reads the
others, refuses what violates RFC 6455, and runs the closing handshake. Outgoing messages were framed once for all
receivers and bypass autobahn: see :mod:`notify.transport.connection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from twisted.logger import Logger

from notify.config import Compression
from notify.core.hub import Hub
from notify.core.session import Session
from notify.core.timers import Timer
from notify.identity import Peer
from notify.observe.logging import clients
from notify.transport.admission import REASONS, Visit
from notify.transport.connection import Connection, SendQueues
from notify.transport.handshake import Accepted, Refused, judge
from notify.transport.reader import Reader
from notify.transport.tcp import direct, settle
from notify.transport.upstream import OpenFactory, OpenProtocol
from notify.wire import encodings
from notify.wire.addresses import Network
from notify.wire.frames import Encoding, InvalidFrame, websocket_frame

log = Logger()

#: the close codes with their own metric label; a client may send any other
CODES = frozenset((1000, 1001, 1002, 1006, 1007, 1009, 1012, 1013, *range(4000, 4005), *range(4500, 4505)))

#: seconds that a closed connection may take to send its last bytes
LINGER = 1.0

#: bytes of a compressed or fragmented message that count as one more frame
PORTION = 4096

_PONG_OPCODE = 0xA

NO_COMPRESSION = Compression()


class ClientProtocol(OpenProtocol):
    """One client's connection. ``factory.protocol`` is a subclass with autobahn's initial state as class attributes."""

    factory: ConnectionFactory
    connection: Connection | None = None
    _session: Session | None = None
    #: when it was pinged last, in seconds of the wheel's clock; negative: never
    _pinged = -1.0
    _ping: Timer | None = None
    _lingering: Timer | None = None
    _reader: Reader
    _visit: Visit

    def open(self, peer: Peer, encoding: Encoding, visit: Visit) -> None:
        """The handshake is complete, and the transport is ready."""
        self._visit = visit
        hub = self.factory.hub
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._reader = Reader()
        self.connection = connection = Connection(
            f"{hub.random.getrandbits(128):032x}",
            peer,
            encoding,
            hub.now(),
            self,
            self.transport,
            self.factory.queues,
            direct(self.transport),
            hub.wheel.seconds(),
        )
        self._session = session = Session(connection, hub)
        clients.debug("{connection} from {peer} is open", connection=connection.id, peer=peer.host)
        self.transport.registerProducer(connection, True)
        self._ping = hub.wheel.after(hub.live.now.limits.ping_interval, self._look)
        session.opened(self._arrived)

    def _arrived(self) -> None:
        self._visit.arrived()
        settle(self.transport)

    # --- from the client ------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived from the client. The answers to them are sent together."""
        connection = self.connection
        if self.deaf or connection is None:
            return
        connection.heard = self.factory.hub.wheel.seconds()
        connection.hold()
        try:
            self._reader.feed(data, self.factory.most, self)
        finally:
            connection.release()

    def message(self, payload: bytes, binary: bool) -> None:
        """A whole message arrived."""
        if self.connection is None:
            return
        if not binary and not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                self.refuse_text()
                return
        self.take(payload, binary)

    def take(self, payload: bytes, binary: bool) -> None:
        """A whole message arrived, of the kind that its frame declares."""
        session, connection = self._session, self.connection
        if session is None or connection is None:
            return
        encoding = connection.encoding
        if binary != encoding.binary:
            kind = "binary" if encoding.binary else "text"
            self._invalid(InvalidFrame(f"this connection speaks {kind} frames"), len(payload))
            return
        try:
            frames = encoding.decode(payload)
        except InvalidFrame as fault:
            self._invalid(fault, len(payload))
        else:
            witness = self.factory.hub.witness
            if witness is not None:
                witness.heard(connection, frames, len(payload))
            session.received(frames)

    def _invalid(self, fault: InvalidFrame, size: int) -> None:
        session, connection, witness = self._session, self.connection, self.factory.hub.witness
        if session is not None and connection is not None:
            if witness is not None:
                witness.misheard(connection, fault, size)
            session.invalid(fault)

    def ping(self, payload: bytes) -> None:
        """A ping arrived. Its pong is queued like any frame, in order and within the bounds."""
        connection, session = self.connection, self._session
        if connection is not None and session is not None and session.spend():
            connection.write(websocket_frame(payload, _PONG_OPCODE))

    def pong(self, count: int) -> None:
        """This many pongs arrived."""
        if self._session is not None:
            self._session.spend(count)

    def part(self) -> None:
        """A frame arrived that continues a message."""
        if self._session is not None:
            self._session.spend()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A whole message arrived in frames that are not plain."""
        # A few bytes may have been inflated to this many, all of which have to be parsed.
        if (more := len(payload) // PORTION) and self._session is not None:
            self._session.spend(more)
        self.message(payload, isBinary)

    # --- the end --------------------------------------------------------------------------------------------

    def closing(self) -> None:
        """Everything answered before a Close is sent before it, and nothing after it."""
        if self.connection is not None:
            self.connection.release()
            self.connection.end()
        self.factory.hub.wheel.cancel(self._ping)
        self._ping = None

    def dropping(self) -> None:
        """The transport closes without waiting for the client to take everything, which it might never do."""
        if self._lingering is None:
            self._lingering = self.factory.hub.wheel.after(LINGER, self.transport.abortConnection)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is gone, after a closing handshake or without one."""
        hub = self.factory.hub
        hub.wheel.cancel(self._ping)
        hub.wheel.cancel(self._lingering)
        self._ping = self._lingering = None
        self._visit.leave()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.end()
            self._session = None
            final = self.closed_with or code or 1000
            hub.metrics.closes.labels(str(final) if final in CODES else "other").inc()
            who = connection.identity
            if hub.witness is not None:
                hub.witness.closed(connection, final, bool(self.closed_with))
            clients.debug(
                "{connection} of user {user} closed with {code}",
                connection=connection.id,
                user=None if who is None else who.user_id,
                workspace=None if who is None else who.workspace_id,
                code=final,
            )

    def gone(self) -> None:
        """See :class:`~notify.transport.connection.Wire`."""
        if self._session is not None:
            self._session.closed()

    def _look(self) -> None:
        """The client may have been silent for a ping interval, or not have answered a ping in time."""
        hub, connection = self.factory.hub, self.connection
        if connection is None:
            return
        limits, now = hub.live.now.limits, hub.wheel.seconds()
        if self._pinged > connection.heard:
            wait = self._pinged + limits.ping_timeout - now
            if wait <= 0:
                connection.close(4003, "no pong")
                return
        else:
            wait = connection.heard + limits.ping_interval - now
            if wait <= 0:
                self._pinged = now
                self.sendPing()
                # If its pong comes at once, the next ping is due after another interval.
                wait = min(limits.ping_interval, limits.ping_timeout)
        self._ping = hub.wheel.after(wait, self._look)


def _why(refused: Refused) -> str:
    if refused.origin:
        return "listen.allowed_origins does not name its page's origin"
    if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "the server is starting"
    return refused.why or f"no opening handshake of a WebSocket: {refused.status.phrase}"


class ConnectionFactory(OpenFactory):
    """Opens connections."""

    def __init__(self, hub: Hub, reactor: Any, compression: Compression = NO_COMPRESSION) -> None:
        super().__init__(hub.wheel, reactor)
        self.hub = hub
        self.compression = compression
        self.queues = SendQueues(
            lambda: hub.live.now.limits.send_queue,
            lambda: hub.live.now.limits.send_queues,
            hub.metrics.slow_clients.inc,
        )
        self.most = hub.live.now.limits.max_frame
        self.prepare(ClientProtocol, self.most, LINGER)

    @property
    def allowed_origins(self) -> Sequence[str]:
        """The origins in force."""
        return self.hub.live.now.allowed_origins

    @property
    def trusted(self) -> Sequence[Network]:
        """The trusted proxies in force."""
        return self.hub.live.now.trusted

    def judge(self, head: bytes, welcome: bool) -> Accepted:
        """See :func:`~notify.transport.handshake.judge`. ``welcome``: the server has finished starting."""
        if not welcome:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE)
        return judge(head, self.allowed_origins, self.compression.enabled)

    def refusal(self, status: HTTPStatus, accepted: Accepted) -> Refused:
        """The answer if the limits are reached."""
        return Refused(status)

    def turned_away(self, peer: str, reason: str) -> None:
        """A client of this address was turned away, for one of :data:`~notify.transport.admission.REASONS`."""
        if self.hub.witness is not None:
            self.hub.witness.turned_away(peer, REASONS[reason].format(address=peer), "limit")

    def refused(self, refused: Refused, peer: str) -> None:
        """The handshake of a client of this address was refused."""
        if self.hub.witness is not None:
            self.hub.witness.turned_away(peer, _why(refused), str(refused.status.value), refused.origin)
        self.hub.metrics.refused_handshakes.labels(str(refused.status.value)).inc()
        if refused.origin:
            log.info(
                "a page was not let in: its origin is {origin}, which listen.allowed_origins does not name",
                origin=refused.origin[:100],
                address=peer,
            )
        else:
            clients.debug(
                "a handshake from {address} is refused with {status}",
                address=peer,
                status=refused.status.value,
            )

    def open(self, transport: Any, accepted: Accepted, address: str, visit: Visit) -> ClientProtocol:
        """Answer a handshake of a client at this address; returns the connection, which takes over the transport."""
        peer = Peer(address, accepted.origin, accepted.client_id, accepted.agent)
        protocol: ClientProtocol = self.protocol()
        protocol.factory = self
        encoding = accepted.encoding
        if accepted.deflate is not None:
            protocol.inflate()
            settings = self.compression
            encoding = encodings.deflated(
                encoding, accepted.deflate.window_bits, settings.level, settings.minimum
            )
        transport.write(accepted.answer)
        protocol.makeConnection(transport)
        protocol.open(peer, encoding, visit)
        return protocol
