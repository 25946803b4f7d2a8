"""The public port: decides whether a connection is a WebSocket, an event stream or plain HTTP.

The first bytes of a request decide. A connection that has been used for HTTP may still become another kind, since a
proxy may send a handshake over a connection that it kept open. An opening handshake is read to its end and judged
here, so the protocol of a WebSocket connection starts open and holds no HTTP state for the rest of its life.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from typing import Protocol as Shape

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core.timers import Timer, Wheel
from notify.transport.admission import TurnedAway, Visit
from notify.transport.eventrequest import PATH as EVENTS
from notify.transport.eventrequest import Preflight
from notify.transport.events import EventFactory
from notify.transport.handover import Admits
from notify.transport.handshake import PATH, Refused, split_head
from notify.transport.tcp import descriptor
from notify.transport.websocket import LINGER, ConnectionFactory
from notify.wire.addresses import Network, client_address
from notify.wire.head import MAX_HEAD

log = Logger()

_WEBSOCKET = f"GET {PATH}".encode()
_EVENTS = f"GET {EVENTS}".encode()
#: the server answers requests for an event stream itself, whatever the method
_METHODS = (b"GET", b"OPTIONS", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE")
_ABSOLUTE = re.compile(rb"GET https?://[^/? \r\n]+", re.IGNORECASE)
_SCHEMES = (b"get http://", b"get https://")


def is_websocket(start: bytes) -> bool | None:
    """Whether a request that begins like this is for the WebSocket path; None: not enough bytes yet."""
    return _gets(start, _WEBSOCKET)


def is_events(start: bytes) -> bool | None:
    """Whether a request that begins like this is for the path of event streams; None: not enough bytes yet."""
    method, space, target = start.partition(b" ")
    if not space:
        return None if any(one.startswith(start) for one in _METHODS) else False
    return method in _METHODS and _gets(b"GET " + target, _EVENTS)


def _gets(start: bytes, path: bytes) -> bool | None:
    if start[4:5] in (b"h", b"H"):  # a target with an authority (RFC 9112, section 3.2.2)
        absolute = _ABSOLUTE.match(start)
        if absolute is None:
            return None if any(scheme.startswith(start.lower()) for scheme in _SCHEMES) else False
        if absolute.end() > MAX_HEAD:
            return False  # not len(start): frames may follow a whole head
        start = b"GET " + start[absolute.end() :]
    if len(start) <= len(path):
        return None if path.startswith(start) else False
    return start.startswith(path) and start[len(path) : len(path) + 1] in (b" ", b"?")


class Door(Shape):
    """Serves a path of the public port that the site does not serve."""

    @property
    def trusted(self) -> Sequence[Network]:
        """The trusted proxies in force."""

    def judge(self, head: bytes, welcome: bool) -> Any:
        """Parse and judge a complete head. The result has an attribute ``forwarded``: the header X-Forwarded-For.

        Raises :class:`~notify.transport.handshake.Refused`, and :class:`~notify.transport.eventrequest.Preflight`.
        """

    def refusal(self, status: HTTPStatus, asked: Any) -> Refused:
        """The answer if the limits are reached."""

    def turned_away(self, peer: str, reason: str) -> None:
        """A client of this address was turned away."""

    def refused(self, refused: Refused, peer: str) -> None:
        """The request of a client of this address was refused."""

    def open(self, transport: Any, asked: Any, address: str, visit: Visit) -> Any:
        """The protocol that takes over the transport, already connected to it."""


class _Arriving(Protocol):
    """A connection until its kind is known; the transport then goes to the protocol that takes over."""

    def __init__(self, factory: PublicFactory, address: Any) -> None:
        self._factory = factory
        self._address = address
        self._start = b""
        self._timer: Timer | None = None
        self._visit: Any = None  # a Visit, from the accept on
        self._site: Any = None
        self._door: Door = factory.websocket
        self._refused = False

    def connectionMade(self) -> None:
        """A client connected."""
        transport: Any = self.transport
        try:
            self._visit = self._factory.admission.enter(_host(transport), descriptor(transport))
        except TurnedAway as why:
            self._factory.websocket.turned_away(_host(transport), why.reason)
            # Under TLS an answer would cost a handshake; without files, each turn counts.
            if why.reason == "files" or _encrypted(transport):
                self._refused = True
                transport.abortConnection()
            else:
                self._refuse(Refused(_status(why)).answer)
            return
        self._timer = self._factory.wheel.after(self._factory.patience(), self._give_up)

    def dataReceived(self, data: bytes) -> None:
        """The client's first bytes, or more of them, arrived."""
        if self._site is not None:
            self._site.dataReceived(data)
            return
        if self._refused:
            return  # reading on keeps the kernel from resetting what the client must get
        self._start += data
        door = self._factory.door(self._start)
        if door is not None:
            self._door = door
            self._shake_hands()
        elif self._factory.is_for_site(self._start):
            self._leave_to_site()

    def _shake_hands(self) -> None:
        door, transport, visit = self._door, self.transport, self._visit
        address = _host(transport)
        try:
            parts = split_head(self._start)
            if parts is None:
                return
            head, rest = parts
            accepted = door.judge(head, self._factory.welcome())
            address = client_address(_host(transport), accepted.forwarded, door.trusted)
            asked = visit.identify(address)
        except Refused as refused:
            door.refused(refused, address)
            self._refuse(refused.answer)
            return
        except Preflight as preflight:
            self._refuse(preflight.answer)
            return
        except TurnedAway as why:
            self._turn_away(why, accepted, address)
            return
        if asked is None:
            self._open(accepted, address, rest)
            return
        # What arrives meanwhile waits in the kernel, where it is bounded.
        producer: Any = transport
        producer.pauseProducing()
        asked.addBoth(self._judged, accepted, address, rest)
        asked.addErrback(lambda failure: log.failure("a handshake failed", failure))

    def _judged(self, verdict: Failure | None, accepted: Any, address: str, rest: bytes) -> None:
        """Another process has decided whether the limits allow a client of this address."""
        transport: Any = self.transport
        if self._visit is None:
            return  # it is gone
        transport.resumeProducing()
        if verdict is None:
            self._open(accepted, address, rest)
        else:
            why = verdict.value
            if isinstance(why, TurnedAway):
                self._turn_away(why, accepted, address)
            else:  # the other process is gone
                self._refuse(self._door.refusal(HTTPStatus.SERVICE_UNAVAILABLE, accepted).answer)

    def _turn_away(self, why: TurnedAway, accepted: Any, address: str) -> None:
        self._door.turned_away(address, why.reason)
        self._refuse(self._door.refusal(_status(why), accepted).answer)

    def _open(self, accepted: Any, address: str, rest: bytes) -> None:
        visit, self._visit = self._visit, None
        visit.opened()
        protocol = self._door.open(self.transport, accepted, address, visit)
        self._hand_over(protocol)
        if rest:
            protocol.dataReceived(rest)

    def _refuse(self, answer: bytes) -> None:
        transport: Any = self.transport
        self._refused, self._start = True, b""
        self._factory.wheel.cancel(self._timer)
        # The transport closes once the client has taken the answer, which may be never.
        self._timer = self._factory.wheel.after(LINGER, self._give_up)
        transport.write(answer)
        transport.loseConnection()

    def _leave_to_site(self) -> None:
        transport: Any = self.transport
        protocol: Any = self._factory.site.buildProtocol(self._address)
        if protocol is None:
            transport.loseConnection()
            return
        self._factory.wheel.cancel(self._timer)
        # This protocol stays in between, to know when the connection is gone.
        start, self._start, self._site = self._start, b"", protocol
        protocol.elsewhere = self
        protocol.makeConnection(transport)
        protocol.dataReceived(start)

    def wants(self, head: bytes) -> bool:
        """Whether a later request on a connection of the site is for something else."""
        return self._factory.door(head) is not None

    def takes(self, data: bytes) -> None:
        """A later request is for something else, and the site has let go of the transport."""
        self._site, self._start = None, data
        self._door = self._factory.door(data) or self._door
        self._shake_hands()

    def _hand_over(self, protocol: Any) -> None:
        self._factory.wheel.cancel(self._timer)
        # A TLS transport calls its wrappedProtocol, a plain one its protocol.
        transport: Any = self.transport
        setattr(transport, "wrappedProtocol" if _encrypted(transport) else "protocol", protocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: before its kind was known, or after the site served it."""
        self._factory.wheel.cancel(self._timer)
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.leave()
        site, self._site = self._site, None  # the site refers to this object
        if site is not None:
            site.connectionLost(reason)

    def _give_up(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


def _host(transport: Any) -> str:
    """The address of a transport's peer; empty: it has none."""
    return getattr(transport.getPeer(), "host", None) or ""


def _encrypted(transport: Any) -> bool:
    return hasattr(transport, "wrappedProtocol")


def _status(why: TurnedAway) -> HTTPStatus:
    return HTTPStatus.TOO_MANY_REQUESTS if why.alone else HTTPStatus.SERVICE_UNAVAILABLE


class PublicFactory(Factory):
    """Serves ``websocket`` and ``events`` under their paths and ``site`` elsewhere, to clients admitted by
    ``admission``.

    ``patience()`` is how many seconds a client may take to send enough to decide, and to send a whole opening
    handshake. While ``welcome()`` is false, a WebSocket is answered 503. ``events`` None: there are no event streams.
    """

    noisy = False

    def __init__(
        self,
        websocket: ConnectionFactory,
        site: IProtocolFactory,
        admission: Admits,
        wheel: Wheel,
        patience: Callable[[], float],
        welcome: Callable[[], bool] = lambda: True,
        events: EventFactory | None = None,
    ) -> None:
        self.websocket = websocket
        self.events = events
        self.site = site
        self.admission = admission
        self.wheel = wheel
        self.patience = patience
        self.welcome = welcome

    def door(self, start: bytes) -> Door | None:
        """Who serves a request that begins like this; None: the site, or it is not known yet."""
        if is_websocket(start):
            return self.websocket
        return self.events if self.events is not None and is_events(start) else None

    def is_for_site(self, start: bytes) -> bool:
        """Whether it is certain that the site serves it."""
        return is_websocket(start) is False and (self.events is None or is_events(start) is False)

    def doStart(self) -> None:
        """The port listens."""
        self.admission.announce()
        self.websocket.doStart()
        self.site.doStart()

    def doStop(self) -> None:
        """The port is closed."""
        self.websocket.doStop()
        self.site.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """A client connects."""
        return _Arriving(self, addr)
