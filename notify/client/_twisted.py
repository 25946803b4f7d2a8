"""The client for the Twisted reactor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Unpack, cast

from twisted.internet import error
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from notify.client._core import Core, Options
from notify.client._link import Link
from notify.client._runner import TokenSource
from notify.client._stream import Waiter


class DeferredWaiter:
    """A :class:`~notify.client._stream.Waiter` for coroutines that Twisted runs."""

    def __init__(self) -> None:
        self._deferred: Deferred[Any] = Deferred()

    def fire(self, value: Any) -> None:
        """Resolve the Deferred, unless it has fired."""
        if not self._deferred.called:
            self._deferred.callback(value)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in the waiting coroutine."""
        if not self._deferred.called:
            self._deferred.errback(error)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._deferred.__await__()


class _LinkProtocol(Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link

    def connectionMade(self) -> None:
        transport = cast(Any, self.transport)
        transport.setTcpNoDelay(True)
        self._link.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._link.data(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._link.lost(reason.getErrorMessage())

    def write(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)

    def close(self) -> None:
        cast(Any, self.transport).loseConnection()

    def abort(self) -> None:
        cast(Any, self.transport).abortConnection()


class TwistedClient(Core):
    """A client for code that Twisted runs: see :class:`~notify.client._core.Core`.

    Await its coroutines and iterate over its streams in coroutines under ``ensureDeferred`` or ``react``.
    ``endpoint`` replaces the endpoint derived from the address, for example for a private CA.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        reactor: Any = None,
        endpoint: IStreamClientEndpoint | None = None,
        **options: Unpack[Options],
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        super().__init__(url, token, **options)
        self._reactor = reactor
        if endpoint is None:
            endpoint = HostnameEndpoint(reactor, self.address.host, self.address.port)
            if self.address.secure:
                endpoint = wrapClientTLS(optionsForClientTLS(self.address.host), endpoint)
        self._endpoint = endpoint

    def _now(self) -> float:
        return cast(float, self._reactor.seconds())

    def _later(self, delay: float, call: Callable[[], None]) -> Callable[[], None]:
        timer = self._reactor.callLater(delay, call)

        def cancel() -> None:
            if timer.active():
                timer.cancel()

        return cancel

    def _waiter(self) -> Waiter:
        return DeferredWaiter()

    def _spawn(
        self, awaitable: Awaitable[Any], done: Callable[[Any], None], failed: Callable[[BaseException], None]
    ) -> None:
        deferred = awaitable if isinstance(awaitable, Deferred) else ensureDeferred(cast(Any, awaitable))
        deferred.addCallbacks(done, lambda failure: failed(failure.value))

    def _dial(self, link: Link) -> None:
        dialling = self._endpoint.connect(Factory.forProtocol(lambda: _LinkProtocol(link)))
        link.cancel = dialling.cancel
        dialling.addErrback(lambda failure: link.lost(self._why(failure)))

    def _why(self, failure: Failure) -> str:
        host, port = self.address.host, self.address.port
        if isinstance(failure.value, error.DNSLookupError):
            return f"the name {host} cannot be looked up"
        if isinstance(failure.value, error.ConnectionRefusedError):
            return f"nothing listens at {host}:{port}"
        return f"no connection to {host}:{port}: {failure.getErrorMessage()}"
