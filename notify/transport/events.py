"""An event stream: a client that only reads, over plain HTTP. The code above sees an ordinary connection.

The request says at once what a WebSocket client says in frames: the token, and each chat with a position. Its session
is given those frames, so limits, rechecks, expiry, drain, presence and traces apply unchanged. The response begins
once it is known that there is something to stream; before that, an HTTP status replaces the close code that a
WebSocket would get.

The client sends nothing more and answers no pings, so its absence shows only in what it takes. A heartbeat goes out
every ``ping_interval``, and the kernel drops the connection if nothing sent is acknowledged for as long as a
WebSocket may be silent. A client that acknowledges and does not read fills its queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, cast

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from notify.core.session import Session
from notify.core.timers import Timer
from notify.identity import Peer
from notify.observe.logging import clients
from notify.transport.admission import Visit
from notify.transport.connection import Connection
from notify.transport.eventrequest import Asked, NoStream, begin, instead, judge, nothing
from notify.transport.handshake import Refused
from notify.transport.tcp import give_up_after, settle
from notify.transport.websocket import CODES, LINGER, ConnectionFactory
from notify.wire.addresses import Network
from notify.wire.eventstream import EVENT_STREAM, HEARTBEAT, Composer, Positions, answers, farewell
from notify.wire.frames import Auth, ClientFrame, Since, Subscribe

#: seconds that a client with a valid token waits for the first of its chats before its stream begins without it
PATIENCE = 5.0
#: bytes that are kept for that time
MOST_KEPT = 64 * 1024

#: asks for a topic's newest position
_NOWHERE = Since("", 0)


class Outlet:
    """Stands in for the transport of a stream's connection.

    It keeps what is sent until one of ``chats`` (keys) has been joined, or there are none to wait for. It then sends
    the head, which lets ``page`` read the stream, and from then on each event with its id. If every chat is refused
    instead, ``refused`` is called with the error codes.
    """

    __slots__ = ("_chats", "_codes", "_composer", "_kept", "_page", "_refused", "_size", "_transport")

    def __init__(
        self,
        transport: Any,
        composer: Composer,
        page: str,
        chats: frozenset[bytes],
        refused: Callable[[list[str]], None],
    ) -> None:
        self._transport = transport
        self._composer = composer
        self._page = page
        self._chats = chats
        self._refused = refused
        self._codes: dict[bytes, str] = {}
        self._kept: list[bytes] | None = []
        self._size = 0

    @property
    def begun(self) -> bool:
        """Whether the response has begun."""
        return self._kept is None

    def begin(self) -> None:
        """Begin the response, with what was kept. A second call does nothing."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._transport.write(begin(self._page) + self._composer.compose(b"".join(kept)))

    def write(self, frames: bytes) -> None:
        """Send packed frames."""
        if self._kept is None:
            self._transport.write(self._composer.compose(frames))
            return
        self._kept.append(frames)
        self._size += len(frames)
        for one in answers(frames):
            if one.code:
                self._codes[one.key] = one.code
            elif one.key in self._chats or not self._chats:
                self.begin()
                return
        if self._size > MOST_KEPT:
            self.begin()
        elif self._codes and self._codes.keys() >= self._chats:
            self._refused(list(self._codes.values()))

    def pauseProducing(self) -> None:
        """Does nothing: the client sends nothing that would have to wait."""

    def resumeProducing(self) -> None:
        """Does nothing: reading was never paused."""

    def unregisterProducer(self) -> None:
        """The connection is closed."""
        self._transport.unregisterProducer()


class EventProtocol(Protocol):
    """One stream, starting with its request."""

    transport: Any
    connection: Connection | None = None
    _session: Session | None = None
    _outlet: Any  # an Outlet, while it is open
    _beat: Timer | None = None
    _waiting: Timer | None = None
    _asking: Timer | None = None
    _lingering: Timer | None = None
    _closed_with = 0
    _codes: Sequence[str] = ()

    def __init__(self, factory: EventFactory, asked: Asked, visit: Visit) -> None:
        self.factory = factory
        self._visit = visit
        self._page = asked.origin
        self._frames: deque[ClientFrame] = deque(
            [
                Auth(token=asked.token, since=asked.positions.get(None, _NOWHERE), features=asked.features),
                *(
                    Subscribe(
                        chat_id=chat_id,
                        since=asked.positions.get(chat_id, _NOWHERE),
                        watch_presence=asked.watch_presence,
                        id=chat_id,
                    )
                    for chat_id in asked.chats
                ),
            ]
        )
        wanted = (None, *asked.chats)
        self._positions = {one: at for one, at in asked.positions.items() if one in wanted}
        self._chats = frozenset(str(chat_id).encode() for chat_id in asked.chats)

    def open(self, peer: Peer) -> None:
        """The transport is ready."""
        hub, transport = self.factory.hub, self.transport
        limits = hub.live.now.limits
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        give_up_after(transport, limits.ping_interval + limits.ping_timeout)
        composer = Composer(Positions.of(self._positions))
        self._outlet = Outlet(transport, composer, self._page, self._chats, self._refuse)
        self.connection = connection = Connection(
            f"{hub.random.getrandbits(128):032x}",
            peer,
            EVENT_STREAM,
            hub.now(),
            self,
            self._outlet,
            self.factory.queues,
            None,
            hub.wheel.seconds(),
        )
        self._session = session = Session(connection, hub)
        self.factory.opened()
        clients.debug("{connection} from {peer} is an event stream", connection=connection.id, peer=peer.host)
        transport.registerProducer(connection, True)
        self._beat = hub.wheel.after(limits.ping_interval, self._look)
        session.opened(self._arrived)
        self._ask(max(1, limits.frames_burst) if limits.frames_per_second else len(self._frames))

    def _arrived(self) -> None:
        self._visit.arrived()
        settle(self.transport)
        self._waiting = self.factory.hub.wheel.after(PATIENCE, self._outlet.begin)

    def _ask(self, most: int) -> None:
        """Give the session this many of the frames that the request stands for: as many as a client could send now."""
        self._asking = None
        session, connection, hub = self._session, self.connection, self.factory.hub
        if session is None or connection is None or not self._frames:
            return
        frames = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
        if hub.witness is not None:
            hub.witness.heard(connection, frames, 0)
        session.received(frames)
        if self._frames:
            limits = hub.live.now.limits
            rate = min(limits.frames_per_second or most, max(1, limits.frames_burst))
            self._asking = hub.wheel.after(1.0, lambda: self._ask(rate))

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived after the request.

        They are ignored, but count towards the rate: a client that sends much is closed.
        """
        connection, session = self.connection, self._session
        if connection is not None and session is not None:
            connection.heard = self.factory.hub.wheel.seconds()
            session.received([])

    def _look(self) -> None:
        """A ping interval is over: send a heartbeat, unless something else is queued."""
        hub, connection = self.factory.hub, self.connection
        if connection is None:
            return
        if self._outlet.begun and not connection.queued:
            connection.heard = hub.wheel.seconds()
            connection.write(HEARTBEAT)
        self._beat = hub.wheel.after(hub.live.now.limits.ping_interval, self._look)

    # --- the end --------------------------------------------------------------------------------------------

    def _refuse(self, codes: Sequence[str]) -> None:
        """All of its chats were refused."""
        if self.connection is not None:
            self._codes = codes
            self.connection.close(1000)

    def say_close(self, code: int, reason: str) -> None:
        """See :class:`~notify.transport.connection.Wire`: send the last event, or the answer that replaces a stream."""
        self._closed_with = code
        close, event = farewell(code, reason)
        if self._outlet.begun:
            self.transport.write(event)
        else:
            refused = nothing(self._codes, self._page) if self._codes else instead(close, self._page)
            self.transport.write(refused.answer)
        self.transport.loseConnection()
        # The transport closes once the client has taken everything, which may be never.
        self._lingering = self.factory.hub.wheel.after(LINGER, self.transport.abortConnection)

    def gone(self) -> None:
        """See :class:`~notify.transport.connection.Wire`."""
        self._frames.clear()
        for timer in (self._beat, self._waiting, self._asking):
            self.factory.hub.wheel.cancel(timer)
        if self._session is not None:
            self._session.closed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        hub, connection = self.factory.hub, self.connection
        hub.wheel.cancel(self._lingering)
        self._visit.leave()
        self.connection = None
        if connection is None:
            return
        connection.end()
        self._session = self._outlet = None  # freed without the cycle collector
        self.factory.gone()
        # A client can end a stream only by closing the connection.
        final = self._closed_with or 1001
        hub.metrics.closes.labels(str(final) if final in CODES else "other").inc()
        if hub.witness is not None:
            hub.witness.closed(connection, final, bool(self._closed_with))
        who = connection.identity
        clients.debug(
            "{connection} of user {user} closed with {code}",
            connection=connection.id,
            user=None if who is None else who.user_id,
            workspace=None if who is None else who.workspace_id,
            code=final,
        )


class EventFactory:
    """Begins streams, beside the WebSockets of ``websockets`` and within the same bounds for all clients together."""

    def __init__(self, websockets: ConnectionFactory) -> None:
        self.hub = websockets.hub
        self.queues = websockets.queues
        #: the number of streams
        self.count = 0
        self._websockets = websockets

    @property
    def trusted(self) -> Sequence[Network]:
        """The trusted proxies in force."""
        return self._websockets.trusted

    def judge(self, head: bytes, welcome: bool) -> Asked:
        """See :func:`~notify.transport.eventrequest.judge`."""
        return judge(head, self._websockets.allowed_origins, welcome)

    def refusal(self, status: HTTPStatus, asked: Asked) -> Refused:
        """The answer if the limits are reached."""
        alone = status == HTTPStatus.TOO_MANY_REQUESTS
        where = "your address has" if alone else "the server has"
        return NoStream(status, "full", f"{where} as many connections as it may", asked.origin)

    def turned_away(self, peer: str, reason: str) -> None:
        """See :class:`~notify.transport.websocket.ConnectionFactory`."""
        self._websockets.turned_away(peer, reason)

    def refused(self, refused: Refused, peer: str) -> None:
        """The request of a client of this address was refused."""
        self._websockets.refused(refused, peer)

    def open(self, transport: Any, asked: Asked, address: str, visit: Visit) -> EventProtocol:
        """A stream for a client at this address, which takes over the transport."""
        protocol = EventProtocol(self, asked, visit)
        cast(Any, protocol).makeConnection(transport)
        protocol.open(Peer(address, asked.origin, asked.client_id, asked.agent))
        return protocol

    def opened(self) -> None:
        """A stream has begun."""
        self.count += 1
        self.hub.metrics.event_streams.inc()

    def gone(self) -> None:
        """A stream has ended."""
        self.count -= 1
        self.hub.metrics.event_streams.dec()
