"""A hardened HTTP/1.1 server on twisted.web: flat routes, bounded requests, deadlines, every error as JSON.

What twisted.web does not do by itself, and this package adds: a request is judged at the end of its headers,
before any of its body is taken; a body is bounded however it is sent; a request must be whole within a deadline,
however steadily it trickles in; a refused client hears why, even while it is still sending; no answer is HTML,
names a software version or shows a traceback.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http

from notify.http.answers import Answer, Refused, bad_request
from notify.http.keys import ApiKeys
from notify.http.request import NO_SUCH_PATH, Request, Route
from notify.observe.metrics import Metrics

_log = Logger()

#: bytes of a refused body that are read and thrown away so that the connection can live on
_SMALL_BODY = 64 * 1024


class Channel(http.HTTPChannel):
    """One client connection."""

    maxHeaders = 64
    #: seconds for a whole request once its first line is here
    request_timeout = 20.0
    #: seconds in which a refused client may read the answer, while what it still sends is thrown away
    linger = 2.0
    #: bytes of that; more are not read at all
    linger_bytes = 8 * 2**20

    factory: Any
    transport: Any
    timeOut: Any
    requestFactory = Request
    _refused = False
    _hang_up: Any = None
    _timer: Any = None
    _deadline = math.inf
    _thrown_away = 0
    _wire = 0

    def resetTimeout(self) -> None:
        """Not by mere data: what runs is a deadline for the whole request."""

    def setTimeout(self, period: float | None) -> float | None:
        """Let the connection time out in ``period`` seconds, or not at all; gives the period before.

        Deadlines change several times a request: they are mere numbers, and one timer looks at them now and then.
        (A timer of its own each time costs milliseconds a request, since asyncio's reactor searches all of its timers
        to make one ring earlier.) The timer rings before any deadline can be over.
        """
        before: float | None = self.timeOut
        self.timeOut = period
        self._deadline = math.inf if period is None else self.factory.reactor.seconds() + period
        if period is not None and self._timer is None:
            self._watch()
        return before

    def _watch(self) -> None:
        left = self._deadline - self.factory.reactor.seconds()
        self._timer = self.callLater(max(0.0, min(left, self.request_timeout)), self._look)

    def _look(self) -> None:
        self._timer = None
        if self.factory.reactor.seconds() >= self._deadline:
            self.timeoutConnection()
        elif self._deadline < math.inf:
            self._watch()

    def timeoutConnection(self) -> None:
        """The client was idle, too slow with its request, or does not read its answer."""
        if self.requests:
            self.refuse(
                Refused(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the request did not arrive whole in time")
            )
        else:
            self._hang_up = self.callLater(self.linger, self.transport.abortConnection)
            self.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if not self._refused:
            LineReceiver.dataReceived(self, data)
            return
        self._thrown_away += len(data)
        if self._thrown_away > self.linger_bytes and not self.transport.disconnecting:
            self.transport.pauseProducing()

    def lineReceived(self, line: bytes) -> None:
        """The request line or a header."""
        if self._refused:
            return
        if not self.requests and line:
            self.setTimeout(min(self.request_timeout, self.factory.timeOut))
        super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """A piece of a body, or of a request that was sent ahead."""
        if self._refused:
            return
        if self._transferDecoder is not None:
            self._wire += len(data)
            request: Request = self.requests[-1]
            if self._wire > _SMALL_BODY + 2 * request.max_body:
                # Chunks so small, or with so much about them, that reading them costs more than their content.
                self.refuse(request.oversized())
                return
        super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        """The request line or a header is longer than we read."""
        self.refuse(_HEADERS_TOO_LARGE)

    def _respondToBadRequestAndDisconnect(self) -> None:
        large = (
            self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders
        )
        self.refuse(_HEADERS_TOO_LARGE if large else _MALFORMED)

    def allHeadersReceived(self) -> None:
        """Judge the request before its body is taken, and before a client that waits for 100 is told to go on."""
        self._wire = 0
        site: Site = self.factory
        request: Request = self.requests[-1]
        request.begin(site, self._command, self._path, self._version, self.length)
        waits = request.requestHeaders.hasHeader(b"Expect")
        body = self.length != 0
        if request.refused and body and (waits or self.length is None or self.length > _SMALL_BODY):
            self.refuse(request.refused)
        else:
            super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """The request is whole."""
        if not self._refused:
            # The deadline of this request must not become the idle time before the next.
            self.setTimeout(self.factory.timeOut)
            super().allContentReceived()

    def refuse(self, refused: Refused) -> None:
        """Answer whatever came with an error, now, and hang up once the client has had time to read it."""
        if self._refused:
            return
        self._refused = True
        self.setTimeout(None)
        self.clearLineBuffer()
        site: Site = self.factory
        request: Request | None = self.requests[-1] if self.requests else None
        request_id = (request.request_id if request else "") or site.new_id()
        answer = refused.answer()
        lines = [b"HTTP/1.1 %d %s" % (answer.status, HTTPStatus(answer.status).phrase.encode())]
        lines += [name + b": " + value for name, value in site.headers(answer, request_id)]
        self.transport.write(b"\r\n".join([*lines, b"Connection: close", b"", answer.body]))
        site.note(request.name if request else NO_SUCH_PATH, answer.status, request_id, request)
        self._hang_up = self.callLater(self.linger, self.transport.abortConnection)
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is None or ISSLTransport.providedBy(self.transport):
            self.loseConnection()
        else:
            # A full close would make the kernel answer what is still on its way with a reset, and the client's
            # kernel might throw our answer away (RFC 9112, section 9.6).
            half_close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is over."""
        super().connectionLost(reason)
        for timer in (self._hang_up, self._timer):
            if timer is not None and timer.active():
                timer.cancel()


_MALFORMED = bad_request("this is not a valid HTTP/1.1 request")
_HEADERS_TOO_LARGE = Refused(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "headers_too_large",
    f"the request line and headers may be {Channel.totalHeadersSize} bytes and {Channel.maxHeaders} headers together",
)


class Site(http.HTTPFactory):
    """Serves ``routes`` by exact path.

    ``keys`` guard the secure routes and every path under ``/v1``. None: nothing is special about ``/v1``, and nobody may
    use a secure route.
    ``timeout()`` is how long a connection may be idle now, and ``answer_timeout`` how long a handler may
    take, in seconds. ``new_id`` makes request ids.
    """

    protocol: Any = Channel
    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        routes: Mapping[bytes, Route],
        keys: ApiKeys | None,
        metrics: Metrics,
        timeout: Callable[[], float] = lambda: 60.0,
        answer_timeout: float = 30.0,
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._timeout = timeout
        super().__init__(reactor=reactor)
        self.routes, self.keys, self.metrics = routes, keys, metrics
        self.answer_timeout = answer_timeout
        self.new_id = new_id
        self._under_way = 0
        self._waiting: list[Deferred[None]] = []

    @property
    def timeOut(self) -> float:
        """What twisted.web asks for."""
        return self._timeout()

    @timeOut.setter
    def timeOut(self, _: float | None) -> None:
        """Twisted's own default, which is not wanted."""

    def startFactory(self) -> None:
        """No access log file, and no timer for its dates."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def begun(self) -> None:
        """A handler started."""
        self._under_way += 1

    def ended(self) -> None:
        """A handler's request is answered, or its client is gone."""
        self._under_way -= 1
        if not self._under_way:
            waiting, self._waiting = self._waiting, []
            for finished in waiting:
                finished.callback(None)

    def settled(self) -> Deferred[None]:
        """Fires once every request that is under way is answered; for a clean stop."""
        finished: Deferred[None] = Deferred()
        if self._under_way:
            self._waiting.append(finished)
        else:
            finished.callback(None)
        return finished

    @staticmethod
    def headers(answer: Answer, request_id: str) -> list[tuple[bytes, bytes]]:
        """The headers of an answer."""
        return [
            (b"Date", http.datetimeToString()),
            (b"Content-Type", answer.content_type),
            (b"Content-Length", b"%d" % len(answer.body)),
            *([] if b"Cache-Control" in answer.headers else [(b"Cache-Control", b"no-store")]),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"X-Request-Id", request_id.encode("ascii")),
            *answer.headers.items(),
        ]

    def log(self, request: Request) -> None:  # type: ignore[override]
        """A request was answered."""
        self.note(request.name, request.code, request.request_id, request)

    def note(self, name: str, status: int, request_id: str, request: Request | None) -> None:
        """Count and log an answer: no query, no header, no body, and no path that a client made up."""
        seconds = self.reactor.seconds() - request.received if request and request.received else 0.0
        self.metrics.http_requests.labels(name, str(status)).inc()
        self.metrics.http_seconds.labels(name).observe(seconds)
        _log.debug(
            "{method} {path} {status} in {seconds:.4f} s, request {request_id}",
            method=request.method.decode("ascii") if request and request.route else "-",
            path=name,
            status=status,
            seconds=seconds,
            request_id=request_id,
            peer=str(getattr(getattr(request, "client", None), "host", "-")),
        )

    def log_failure(self, request: Request, failure: Failure) -> None:
        """A handler failed in a way that is ours to mend."""
        _log.failure(
            "Failed to answer {path}, request {request_id}",
            failure=failure,
            path=request.name,
            request_id=request.request_id,
        )
