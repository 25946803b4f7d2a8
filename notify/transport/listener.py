"""The public port: the first bytes of a connection say whether autobahn or twisted.web goes on with it.

So a WebSocket connection carries nothing of an HTTP channel with it for the rest of its life.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from notify.core.timers import Timer, Wheel
from notify.transport.websocket import PATH

_WEBSOCKET = f"GET {PATH}".encode()
_ENOUGH = len(_WEBSOCKET) + 1


def is_websocket(start: bytes) -> bool | None:
    """Whether a request that begins like this is for the WebSocket path; None: too little to tell."""
    if len(start) < _ENOUGH:
        return None if _WEBSOCKET.startswith(start[: len(_WEBSOCKET)]) else False
    return start.startswith(_WEBSOCKET) and start[_ENOUGH - 1 : _ENOUGH] in (b" ", b"?")


class _Undecided(Protocol):
    """Waits for enough bytes, then gives its transport to the protocol that they call for."""

    def __init__(self, factory: PublicFactory, address: Any) -> None:
        self._factory = factory
        self._address = address
        self._start = b""
        self._timeout: Timer | None = None

    def connectionMade(self) -> None:
        """A client connected."""
        self._timeout = self._factory.wheel.after(self._factory.patience(), self._give_up)

    def dataReceived(self, data: bytes) -> None:
        """The client's first bytes came, or some more of them."""
        self._start += data
        choice = is_websocket(self._start)
        if choice is None:
            return
        self._factory.wheel.cancel(self._timeout)
        transport: Any = self.transport
        protocol = self._factory.choose(choice).buildProtocol(self._address)
        if protocol is None:
            transport.loseConnection()
            return
        # A TLS transport calls its wrappedProtocol, a plain one its protocol.
        setattr(
            transport, "wrappedProtocol" if hasattr(transport, "wrappedProtocol") else "protocol", protocol
        )
        protocol.makeConnection(transport)
        protocol.dataReceived(self._start)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client left before it said what it wants."""
        self._factory.wheel.cancel(self._timeout)

    def _give_up(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class PublicFactory(Factory):
    """Serves ``websocket`` under its path and ``site`` everywhere else.

    ``patience()`` is how many seconds a client may take to send its first bytes.
    """

    noisy = False

    def __init__(
        self, websocket: IProtocolFactory, site: IProtocolFactory, wheel: Wheel, patience: Callable[[], float]
    ) -> None:
        self._websocket = websocket
        self._site = site
        self.wheel = wheel
        self.patience = patience

    def choose(self, websocket: bool) -> IProtocolFactory:
        """The factory that goes on."""
        return self._websocket if websocket else self._site

    def doStart(self) -> None:
        """The port listens."""
        self._websocket.doStart()
        self._site.doStart()

    def doStop(self) -> None:
        """The port is closed."""
        self._websocket.doStop()
        self._site.doStop()

    def buildProtocol(self, addr: Any) -> Any:
        """A client connects."""
        return _Undecided(self, addr)
