"""The publisher for the Twisted reactor."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.client._coroutines import CoroutinePublisher
from notify.client._publishing import End, Options
from notify.client._stream import Waiter
from notify.client._twisted import DeferredWaiter


@implementer(IHandshakeListener)
class _Protocol(Protocol):
    def __init__(self, end: End) -> None:
        self._end = end

    def connectionMade(self) -> None:
        self._end.cancel = self.abort
        cast(Any, self.transport).setTcpNoDelay(True)
        if not ISSLTransport.providedBy(self.transport):
            self._end.connected(self)

    def handshakeCompleted(self) -> None:
        # Twisted 24.10 also calls this if the certificate is for another host, just before it aborts the connection.
        if not cast(Any, self.transport).disconnecting:
            self._end.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._end.data(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end.lost(_words(reason))

    def write(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)

    def close(self) -> None:
        cast(Any, self.transport).loseConnection()

    def abort(self) -> None:
        cast(Any, self.transport).abortConnection()


def _words(reason: Failure) -> str:
    # The message of a certificate error only lists the names in the certificate, so put the error's type before it.
    return f"{reason.type.__name__}: {reason.getErrorMessage()}" if reason.type else reason.getErrorMessage()


class TwistedPublisher(CoroutinePublisher):
    """A publisher for coroutines that Twisted runs (``react``, ``ensureDeferred``): see
    :class:`~notify.client._coroutines.CoroutinePublisher`; for its options see :class:`~notify.client.publisher.Publisher`.

    ``endpoint`` replaces the endpoint derived from the address, for example for a private CA.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        try_timeout: float = 10.0,
        tries: int | None = None,
        stream: bool = True,
        connections: int = 8,
        duplicate_window: float = 120.0,
        reactor: Any = None,
        endpoint: IStreamClientEndpoint | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        super().__init__(
            url, api_key, Options(timeout, try_timeout, tries, stream, connections, duplicate_window), random
        )
        self._reactor = reactor
        if endpoint is None:
            endpoint = HostnameEndpoint(reactor, self._address.host, self._address.port)
            if self._address.secure:
                endpoint = wrapClientTLS(optionsForClientTLS(self._address.host), endpoint)
        self._endpoint = endpoint

    def _now(self) -> float:
        return cast(float, self._reactor.seconds())

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = self._reactor.callLater(max(0.0, delay), call)

        def cancel() -> None:
            if timer.active():
                timer.cancel()

        return cancel

    def _dial(self, end: End) -> None:
        dialling = self._endpoint.connect(Factory.forProtocol(lambda: _Protocol(end)))
        end.cancel = dialling.cancel

        def failed(reason: Failure) -> None:
            # It may be from within `cancel`, or from here.
            self._reactor.callLater(0, end.lost, _words(reason))

        dialling.addErrback(failed)

    def _waiter(self) -> Waiter:
        return DeferredWaiter()
