"""A small HTTP client with a limit on everything: time, size of the answer, concurrent requests; and no redirects."""

from __future__ import annotations

from io import BytesIO
from ipaddress import ip_address
from typing import Any, NoReturn
from urllib.parse import urlsplit

from msgspec import Struct
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Cooperator, deferLater
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    ResponseDone,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from notify import __version__
from notify.errors import StartError, Unavailable


class Answer(Struct, frozen=True):
    """A complete response: its status code and body."""

    status: int
    body: bytes


class _TooLong(Exception):  # noqa: N818
    pass


class _TooLate(Exception):  # noqa: N818
    pass


class _Body(Protocol):
    """Collects a body of up to ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self.done: Deferred[bytes] = Deferred(lambda _: self._end())

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._most and not self.done.called:
            self._end()
            self.done.errback(_TooLong())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        # PotentialDataLoss: the body ended with the connection. Its reader decides whether it is complete.
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
            self.done.callback(bytes(self._data))
        else:
            self.done.errback(reason)

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


class Client:
    """A client of one server. ``timeout`` (seconds) covers the whole request, including the wait for its turn."""

    def __init__(self, reactor: Any, timeout: float, most: int, at_once: int = 10) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._most = most
        self._closed = False
        self._under_way: set[Deferred[Answer]] = set()
        self._turn = DeferredSemaphore(at_once)
        self._pool = HTTPConnectionPool(reactor)  # type: ignore[no-untyped-call]
        self._pool.maxPersistentPerHost = at_once
        self._pool.cachedConnectionTimeout = 30
        self._pool.retryAutomatically = False  # it would not retry a POST; _ask does
        self._agent = Agent(reactor, connectTimeout=timeout, pool=self._pool)  # type: ignore[no-untyped-call]
        self._cooperator = Cooperator(scheduler=lambda call: reactor.callLater(0, call))

    def request(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Deferred[Answer]:
        """Send a request, with a JSON body if there is one. Errback :class:`Unavailable`: no complete response in time.

        A request may reach the server twice: if it was sent on a kept-alive connection just as the server closed it, it is
        sent again. So use this only for idempotent requests.
        """
        if self._closed:
            return fail(Unavailable("the server is stopping"))
        asked = Deferred.fromCoroutine(self._request(method, url, body, headers or {}))
        if not asked.called:
            self._under_way.add(asked)
            asked.addBoth(self._forget, asked)
        return asked

    def _forget(self, result: Answer, asked: Deferred[Answer]) -> Answer:
        self._under_way.discard(asked)
        return result

    async def _request(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """Turn every kind of failure into words that quote neither side."""
        asked: Deferred[Answer] = self._turn.run(
            lambda: Deferred.fromCoroutine(self._ask(method, url, body, headers))
        )
        try:
            return await asked.addTimeout(self._timeout, self._reactor, onTimeoutCancel=_too_late)
        except CancelledError:
            if not self._closed:
                raise
            reason = ""
        except _TooLate:
            reason = "no answer in time"
        except _TooLong:
            reason = "its answer is too long"
        except (error.ConnectError, error.DNSLookupError):
            reason = "cannot connect"
        except Exception as failed:
            reason = f"the exchange failed ({type(failed).__name__})"
        raise Unavailable("the server is stopping" if self._closed else reason)

    async def _ask(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        try:
            response = await self._send(method, url, body, headers)
        except ResponseNeverReceived as failed:
            if any(isinstance(reason.value, CancelledError) for reason in failed.reasons):
                raise
            response = await self._send(method, url, body, headers)
        collector = _Body(self._most)
        if isinstance(response.length, int) and response.length > self._most:
            collector.done.errback(_TooLong())
        response.deliverBody(collector)  # type: ignore[no-untyped-call]
        if collector.done.called:
            collector._end()
        return Answer(response.code, await collector.done)

    async def _send(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> IResponse:
        sent = Headers({"User-Agent": [f"notify/{__version__}"], "Accept": ["application/json"]})
        for name, value in headers.items():
            sent.setRawHeaders(name, [value])
        producer = None
        if body is not None:
            sent.setRawHeaders("Content-Type", ["application/json"])
            producer = FileBodyProducer(  # type: ignore[no-untyped-call]
                BytesIO(body), cooperator=self._cooperator
            )
        response: IResponse = await self._agent.request(
            method.encode("ascii"), url.encode("ascii"), sent, producer
        )
        return response

    def close(self) -> Deferred[None]:
        """End the requests in flight (errback :class:`Unavailable`) and close all connections."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._closed = True
        for asked in list(self._under_way):
            asked.cancel()
        # A connection returns to the pool only after its response was handed over.
        await deferLater(self._reactor, 0)
        await self._pool.closeCachedConnections()  # type: ignore[no-untyped-call]


def _too_late(result: object, timeout: float) -> NoReturn:
    raise _TooLate


def check_url(url: str, key: str, plain: bool) -> None:
    """Check that a configured URL can be requested. Raises :class:`StartError`, which names the ``key``.

    ``plain``: whether http is also allowed for hosts other than this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        url.encode("ascii")
    except ValueError:
        raise StartError(f"'{key}' is not a URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise StartError(f"'{key}' is not a URL of the form https://host/path.")
    if parts.username is not None or parts.fragment:
        raise StartError(f"'{key}' has a user name or a fragment, which cannot be sent: leave it out.")
    if parts.scheme == "http" and not plain and not _is_loopback(host):
        raise StartError(f"'{key}' is not encrypted, so that anyone on the way could forge it: use https.")


def is_plain(url: str) -> bool:
    """Whether others can read what is sent to this URL: http to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
