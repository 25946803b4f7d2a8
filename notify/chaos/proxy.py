"""A local TCP proxy whose connections can be reset, silenced and stalled, and into which data can be injected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class _Side(Protocol):
    """One end of a proxied connection."""

    transport: Any

    def __init__(self, proxy: Proxy, other: _Side | None = None) -> None:
        self.proxy = proxy
        self.other = other
        self.early: list[bytes] = []
        self.silent = False
        #: the connector that dials the target
        self.connector: Any = None

    def connectionMade(self) -> None:
        if self.other is None:  # a client
            self.proxy.clients.add(self)
            self.proxy.dial(self)
        else:
            self.other.other = self
            if self.other.silent:  # silenced while it was being dialled
                self.proxy.mute(self)
            for data in self.other.early:
                self.transport.write(data)
            self.other.early = []
            if self.proxy.stalled:
                self.transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        if self.silent:
            return
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.proxy.clients.discard(self)
        if self.other is None and self.connector is not None:
            self.connector.disconnect()  # the client has gone
        if self.other is not None and self.other.transport is not None and not self.silent:
            self.other.transport.loseConnection()


class _Client(ClientFactory):
    noisy = False

    def __init__(self, proxy: Proxy, other: _Side, left: int) -> None:
        self.proxy = proxy
        self.other = other
        self.left = left

    def buildProtocol(self, addr: Any) -> _Side:
        return _Side(self.proxy, self.other)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        if self.left and self.other in self.proxy.clients:
            self.proxy.dial(self.other, self.left)
        else:
            self.other.transport.abortConnection()


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to ``targets`` in turn; if one refuses, to the next."""

    def __init__(self, reactor: Any, targets: Sequence[tuple[str, int]], port: int = 0) -> None:
        self.targets = list(targets)
        self.clients: set[_Side] = set()
        self.stalled = False
        self._reactor = reactor
        self._turn = -1
        self._muted: set[_Side] = set()
        factory = Factory.forProtocol(lambda: _Side(self))
        factory.noisy = False
        self._listening: Any = reactor.listenTCP(port, factory, interface="127.0.0.1")
        self.port = int(self._listening.getHost().port)

    def dial(self, side: _Side, left: int | None = None) -> None:
        """Connect a client to the next target. ``left`` is the number of remaining attempts, by default one per target."""
        self._turn = (self._turn + 1) % len(self.targets)
        left = len(self.targets) if left is None else left
        side.connector = self._reactor.connectTCP(*self.targets[self._turn], _Client(self, side, left - 1))

    def cut(self) -> int:
        """Reset all connections. Returns how many there were."""
        clients = list(self.clients)
        for side in clients:
            side.transport.abortConnection()
        return len(clients)

    def silence(self) -> int:
        """Forward nothing more of the present connections, and tell nobody, not even that one end has closed."""
        clients = list(self.clients)
        for side in clients:
            for end in (side, side.other):
                if end is not None:
                    self.mute(end)
        return len(clients)

    def mute(self, end: _Side) -> None:
        """Forward nothing more of what one end sends."""
        end.silent = True
        self._muted.add(end)

    def say(self, data: bytes) -> None:
        """Send data to all clients in the server's name."""
        for side in self.clients:
            side.transport.write(data)

    def stall(self, stalled: bool = True) -> None:
        """Stop forwarding in both directions, or resume it."""
        self.stalled = stalled
        for side in self.clients:
            for end in (side, side.other):
                if end is not None and end.transport is not None:
                    if stalled:
                        end.transport.pauseProducing()
                    else:
                        end.transport.resumeProducing()

    async def stop(self) -> None:
        """Close the proxy."""
        self.stall(False)
        await maybeDeferred(self._listening.stopListening)
        for side in {*self.clients, *self._muted}:
            for end in (side, side.other):
                if end is not None and end.transport is not None:
                    end.transport.abortConnection()
