"""A TCP proxy of this machine whose connections can be cut, silenced, stalled and spoken into."""

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
        #: what dials for it
        self.connector: Any = None

    def connectionMade(self) -> None:
        if self.other is None:  # a client
            self.proxy.clients.add(self)
            self.proxy.dial(self)
        else:
            self.other.other = self
            if self.other.silent:  # silenced while it was dialled
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
            self.connector.disconnect()  # nobody is left to dial for
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
    """Listens on a port of 127.0.0.1, and passes on to ``targets`` in turn: to the next one where one refuses."""

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
        """Connect a client to the next target; ``left`` are the tries that remain, by default one a target."""
        self._turn = (self._turn + 1) % len(self.targets)
        left = len(self.targets) if left is None else left
        side.connector = self._reactor.connectTCP(*self.targets[self._turn], _Client(self, side, left - 1))

    def cut(self) -> int:
        """Reset all connections; gives how many there were."""
        clients = list(self.clients)
        for side in clients:
            side.transport.abortConnection()
        return len(clients)

    def silence(self) -> int:
        """Pass on nothing more of the present connections, and tell nobody, not even that one end is gone."""
        clients = list(self.clients)
        for side in clients:
            for end in (side, side.other):
                if end is not None:
                    self.mute(end)
        return len(clients)

    def mute(self, end: _Side) -> None:
        """Pass on nothing more of what comes to one end."""
        end.silent = True
        self._muted.add(end)

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
        for side in {*self.clients, *self._muted}:
            for end in (side, side.other):
                if end is not None and end.transport is not None:
                    end.transport.abortConnection()
