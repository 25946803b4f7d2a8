"""The public port: a connection is a WebSocket's or the HTTP site's, and nothing stays of how that was found out.

The first bytes of a request say which; one that the site has served before may still become a WebSocket's, as a proxy may
send a handshake over a connection that it kept. An opening handshake is read to its end and judged here; so the protocol of a
WebSocket connection begins with an open one, and carries nothing of HTTP with it for the rest of its life.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.core.timers import Timer, Wheel
from notify.transport.admission import TurnedAway
from notify.transport.handover import Admits
from notify.transport.handshake import PATH, Accepted, Refused, judge, split_head
from notify.transport.tcp import descriptor
from notify.transport.websocket import LINGER, ConnectionFactory
from notify.wire.addresses import client_address
from notify.wire.head import MAX_HEAD

log = Logger()

_WEBSOCKET = f"GET {PATH}".encode()
_ENOUGH = len(_WEBSOCKET) + 1
_ABSOLUTE = re.compile(rb"GET https?://[^/? \r\n]+", re.IGNORECASE)
_SCHEMES = (b"get http://", b"get https://")


def is_websocket(start: bytes) -> bool | None:
    """Whether a request that begins like this is for the WebSocket path; None: too little to tell."""
    if start[4:5] in (b"h", b"H"):  # a target with an authority (RFC 9112, section 3.2.2)
        absolute = _ABSOLUTE.match(start)
        if absolute is None:
            return None if any(scheme.startswith(start.lower()) for scheme in _SCHEMES) else False
        if absolute.end() > MAX_HEAD:
            return False  # not len(start): frames may have come behind a whole head
        start = b"GET " + start[absolute.end() :]
    if len(start) < _ENOUGH:
        return None if _WEBSOCKET.startswith(start[: len(_WEBSOCKET)]) else False
    return start.startswith(_WEBSOCKET) and start[_ENOUGH - 1 : _ENOUGH] in (b" ", b"?")


class _Arriving(Protocol):
    """A connection until it is known what it is, then its transport goes to the protocol that goes on with it."""

    def __init__(self, factory: PublicFactory, address: Any) -> None:
        self._factory = factory
        self._address = address
        self._start = b""
        self._timer: Timer | None = None
        self._visit: Any = None  # a Visit, from the accept on
        self._site: Any = None
        self._refused = False

    def connectionMade(self) -> None:
        """A client connected."""
        transport: Any = self.transport
        try:
            self._visit = self._factory.admission.enter(_host(transport), descriptor(transport))
        except TurnedAway as why:
            self._factory.websocket.turned_away(_host(transport), why.reason)
            # Under TLS an answer would cost a handshake, and out of files each turn counts.
            if why.reason == "files" or _encrypted(transport):
                self._refused = True
                transport.abortConnection()
            else:
                self._refuse(Refused(_status(why)).answer)
            return
        self._timer = self._factory.wheel.after(self._factory.patience(), self._give_up)

    def dataReceived(self, data: bytes) -> None:
        """The client's first bytes came, or some more of them."""
        if self._site is not None:
            self._site.dataReceived(data)
            return
        if self._refused:
            return  # reading on keeps the kernel from resetting what the client has to get
        self._start += data
        choice = is_websocket(self._start)
        if choice:
            self._shake_hands()
        elif choice is False:
            self._leave_to_site()

    def _shake_hands(self) -> None:
        websocket, transport, visit = self._factory.websocket, self.transport, self._visit
        address = _host(transport)
        try:
            parts = split_head(self._start)
            if parts is None:
                return
            if not self._factory.welcome():
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE)
            head, rest = parts
            accepted = judge(head, websocket.allowed_origins, websocket.compression.enabled)
            address = client_address(_host(transport), accepted.forwarded, websocket.trusted)
            asked = visit.identify(address)
        except Refused as refused:
            websocket.refused(refused, address)
            self._refuse(refused.answer)
            return
        except TurnedAway as why:
            self._turn_away(why, address)
            return
        if asked is None:
            self._open(accepted, address, rest)
            return
        # What comes meanwhile waits where it is bounded.
        producer: Any = transport
        producer.pauseProducing()
        asked.addBoth(self._judged, accepted, address, rest)
        asked.addErrback(lambda failure: log.failure("a handshake failed", failure))

    def _judged(self, verdict: Failure | None, accepted: Accepted, address: str, rest: bytes) -> None:
        """Another process says whether there is room for a client of this address."""
        transport: Any = self.transport
        if self._visit is None:
            return  # it is gone
        transport.resumeProducing()
        if verdict is None:
            self._open(accepted, address, rest)
        else:
            why = verdict.value
            if isinstance(why, TurnedAway):
                self._turn_away(why, address)
            else:  # the other process is gone
                self._refuse(Refused(HTTPStatus.SERVICE_UNAVAILABLE).answer)

    def _turn_away(self, why: TurnedAway, address: str) -> None:
        self._factory.websocket.turned_away(address, why.reason)
        self._refuse(Refused(_status(why)).answer)

    def _open(self, accepted: Accepted, address: str, rest: bytes) -> None:
        visit, self._visit = self._visit, None
        visit.opened()
        protocol = self._factory.websocket.open(self.transport, accepted, address, visit)
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
        # This stays in between, to know when the connection is gone.
        start, self._start, self._site = self._start, b"", protocol
        protocol.elsewhere = self
        protocol.makeConnection(transport)
        protocol.dataReceived(start)

    def wants(self, head: bytes) -> bool:
        """Whether a later request of a connection of the site is an opening handshake."""
        return bool(is_websocket(head))

    def takes(self, data: bytes) -> None:
        """It is: the site has let go of the transport."""
        self._site, self._start = None, data
        self._shake_hands()

    def _hand_over(self, protocol: Any) -> None:
        self._factory.wheel.cancel(self._timer)
        # A TLS transport calls its wrappedProtocol, a plain one its protocol.
        transport: Any = self.transport
        setattr(transport, "wrappedProtocol" if _encrypted(transport) else "protocol", protocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: before it said what it wants, or after it was served by the site."""
        self._factory.wheel.cancel(self._timer)
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.leave()
        site, self._site = self._site, None  # which knows this
        if site is not None:
            site.connectionLost(reason)

    def _give_up(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


def _host(transport: Any) -> str:
    """The address at the other end of a transport; empty: it has none."""
    return getattr(transport.getPeer(), "host", None) or ""


def _encrypted(transport: Any) -> bool:
    return hasattr(transport, "wrappedProtocol")


def _status(why: TurnedAway) -> HTTPStatus:
    return HTTPStatus.TOO_MANY_REQUESTS if why.alone else HTTPStatus.SERVICE_UNAVAILABLE


class PublicFactory(Factory):
    """Serves ``websocket`` under its path and ``site`` everywhere else, to those whom ``admission`` lets in.

    ``patience()`` is how many seconds a client may take to say which, and to send all of an opening handshake. While it is not
    ``welcome()`` yet, a WebSocket is answered 503.
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
    ) -> None:
        self.websocket = websocket
        self.site = site
        self.admission = admission
        self.wheel = wheel
        self.patience = patience
        self.welcome = welcome

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
