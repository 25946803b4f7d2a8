"""A TCP proxy whose connections can be cut, stalled and spoken into."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class _Side(Protocol):
    """One end of a proxied connection."""

    def __init__(self, proxy: Proxy, other: _Side | None = None) -> None:
        self.proxy = proxy
        self.other = other
        self.early: list[bytes] = []

    def connectionMade(self) -> None:
        if self.other is None:  # a client
            self.proxy.clients.add(self)
            host, port = self.proxy.target
            reactor.connectTCP(host, port, _Client(self.proxy, self))
        else:
            self.other.other = self
            for data in self.other.early:
                self.transport.write(data)
            self.other.early = []
            if self.proxy.stalled:
                self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.proxy.clients.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()


class _Client(ClientFactory):
    noisy = False

    def __init__(self, proxy: Proxy, other: _Side) -> None:
        self.proxy = proxy
        self.other = other

    def buildProtocol(self, addr: Any) -> _Side:
        return _Side(self.proxy, self.other)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.other.transport.abortConnection()


class Proxy:
    """Listens on a port of its own, and passes on to ``port``."""

    def __init__(self, target: int, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = (host, target)
        self.clients: set[_Side] = set()
        self.stalled = False
        factory = Factory.forProtocol(lambda: _Side(self))
        factory.noisy = False
        self._listening: Any = reactor.listenTCP(port, factory, interface="127.0.0.1")
        self.port = int(self._listening.getHost().port)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> int:
        """Reset all connections; gives how many there were."""
        clients = list(self.clients)
        for side in clients:
            side.transport.abortConnection()
        return len(clients)

    def say(self, data: bytes) -> None:
        """Speak to all clients in the server's name."""
        for side in self.clients:
            side.transport.write(data)

    def stall(self, stalled: bool = True) -> None:
        """Pass on nothing in either direction, or again everything."""
        self.stalled = stalled
        for side in self.clients:
            for end in (side, side.other):
                if end is not None and end.transport is not None:
                    if stalled:
                        end.transport.pauseProducing()
                    else:
                        end.transport.resumeProducing()

    async def stop(self) -> None:
        """End it."""
        self.stall(False)
        await maybeDeferred(self._listening.stopListening)
        for side in list(self.clients):
            if side.other is not None and side.other.transport is not None:
                side.other.transport.abortConnection()
            side.transport.abortConnection()
