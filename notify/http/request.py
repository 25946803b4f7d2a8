"""One HTTP request: judged at the end of its headers, bounded, handled, answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import parse_qsl

from msgspec import Struct
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.web import http

from notify.core.live import ApiKey
from notify.errors import Unknown
from notify.http.answers import Answer, Refused, bad_request, internal_error, refusal, too_large
from notify.http.keys import ApiKeys
from notify.observe import tracing

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,64}", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.ASCII | re.IGNORECASE)

_NO_KEYS = ApiKeys(tuple)

#: how metrics and logs name every path that does not exist
NO_SUCH_PATH = "no_such_path"


class Route(Struct, frozen=True):
    """What one path takes: a handler a method, the scope that a key needs for it, if any, and how large a body may be.

    A handler is given the :class:`Request`; it returns an :class:`Answer`, or a Deferred of one, or raises.
    """

    methods: Mapping[bytes, Callable[[Request], Answer | Deferred[Answer]]]
    scope: str = ""
    max_body: int = 0
    json: bool = False

    @property
    def allowed(self) -> bytes:
        """The value of an ``Allow`` header."""
        return b", ".join(sorted({*self.methods, *([b"HEAD"] if b"GET" in self.methods else [])}))


class Server(Protocol):
    """What a request needs of the site that serves it."""

    reactor: Any
    routes: Mapping[bytes, Route]
    keys: ApiKeys | None
    #: seconds that a handler may take
    answer_timeout: float
    new_id: Callable[[], str]

    def begun(self) -> None:
        """A handler started."""

    def ended(self) -> None:
        """A handler's request is answered, or its client is gone."""

    def headers(self, answer: Answer, request_id: str) -> Iterable[tuple[bytes, bytes]]:
        """The headers of an answer."""

    def log_failure(self, request: Request, failure: Failure) -> None:
        """A handler failed in a way that is ours to mend."""


class Request(http.Request):
    """One request; what a handler sees is :attr:`body`, :meth:`parameters`, :meth:`text_header` and :attr:`trace`."""

    site: Server
    channel: Any
    content: Any
    route: Route | None = None
    #: the path as it is named in metrics and logs, where nothing that a client chose may stand
    name = NO_SUCH_PATH
    refused: Refused | None = None
    #: the API key that it came with, where its path needs one
    key: ApiKey = ApiKey(b"", "nobody", frozenset(), frozenset())
    gone = False
    request_id = ""
    received = 0.0
    _query = b""
    _size = 0
    _working: Deferred[Any] | None = None

    # --- for handlers

    @property
    def peer(self) -> str:
        """The address that it comes from; empty where there is none."""
        return str(getattr(self.channel.getPeer(), "host", ""))

    @property
    def body(self) -> bytes:
        """The whole body."""
        content: bytes = self.content.getvalue()
        return content

    @property
    def trace(self) -> str:
        """The W3C ``traceparent`` that came along, or empty: an invalid one counts as none."""
        values = self.requestHeaders.getRawHeaders(b"traceparent") or []
        return tracing.valid(values[0].decode("latin-1")) if len(values) == 1 else ""

    def text_header(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        """The value of a header that may be given once. Raises :class:`Refused` when it is not as ``what`` says."""
        values = self.requestHeaders.getRawHeaders(name.encode()) or []
        if not values:
            return None
        value = values[0].decode("latin-1")
        if len(values) > 1 or not pattern.fullmatch(value):
            raise bad_request(f"the header {name} must be given once, as {what}")
        return value

    def parameters(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, str]:
        """The query parameters. Raises :class:`Refused` for one that is missing, unknown, repeated or not UTF-8."""
        try:
            pairs = parse_qsl(self._query.decode("ascii"), keep_blank_values=True, errors="strict")
        except (UnicodeDecodeError, ValueError):
            raise bad_request("the query is not percent-encoded UTF-8") from None
        found = dict(pairs)
        known = [*required, *optional]
        if len(found) != len(pairs):
            raise bad_request("a query parameter may be given only once")
        if not found.keys() <= {*known}:
            raise bad_request(f"unknown query parameter; known are: {', '.join(known)}")
        for name in required:
            if name not in found:
                raise bad_request(f"the query parameter '{name}' is missing")
        return found

    # --- called by the channel

    def begin(self, site: Server, method: bytes, uri: bytes, version: bytes, length: int | None) -> None:
        """The headers are here: decide whether the request is worth taking. ``length`` None: chunked."""
        self.site = site
        self.method, self.uri, self.clientproto = method, uri, version
        self.received = site.reactor.seconds()
        ids = self.requestHeaders.getRawHeaders(b"X-Request-Id") or []
        given = ids[0] if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else None
        self.request_id = given.decode("ascii") if given else site.new_id()
        target = _ABSOLUTE.sub(b"", uri, count=1) if not uri.startswith(b"/") else uri
        self.path, _, self._query = target.partition(b"?")
        try:
            self._admit(length)
        except Refused as refused:
            self.refused = refused

    def _admit(self, length: int | None) -> None:
        hosts = self.requestHeaders.getRawHeaders(b"Host") or []
        if len(hosts) > 1 or (not hosts and self.clientproto == b"HTTP/1.1"):
            raise bad_request("an HTTP/1.1 request has exactly one Host header")
        route = self.site.routes.get(self.path)
        if route is not None:
            self.name = self.path.decode("ascii")
        keys = self.site.keys
        if route.scope if route else keys and (self.path == b"/v1" or self.path.startswith(b"/v1/")):
            given = self.requestHeaders.getRawHeaders(b"Authorization") or []
            self.key = (keys or _NO_KEYS).check(
                given[0] if len(given) == 1 else None, self.peer, route.scope if route else ""
            )
        if route is None:
            raise Refused(HTTPStatus.NOT_FOUND, "not_found", "there is nothing at this path")
        self.route = route
        if self.method not in route.methods and not (self.method == b"HEAD" and b"GET" in route.methods):
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method_not_allowed",
                f"this path takes {route.allowed.decode()} only",
                {b"Allow": route.allowed},
            )
        if route.json:
            self._require_json()
        if (length or 0) > route.max_body or (length is None and not route.max_body):
            raise self.oversized()

    def _require_json(self) -> None:
        types = self.requestHeaders.getRawHeaders(b"Content-Type") or [b""]
        media, _, rest = types[0].partition(b";")
        charset = rest.strip().lower().replace(b'"', b"")
        encodings = self.requestHeaders.getRawHeaders(b"Content-Encoding") or [b"identity"]
        if (
            len(types) > 1
            or media.strip().lower() != b"application/json"
            or charset not in (b"", b"charset=utf-8")
            or [e.lower() for e in encodings] != [b"identity"]
        ):
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be JSON in UTF-8, not compressed: send 'Content-Type: application/json'",
            )

    @property
    def max_body(self) -> int:
        """Bytes of a body that the path takes; a refused request's body is thrown away up to another bound."""
        return self.route.max_body if self.route is not None else 0

    def oversized(self) -> Refused:
        """The refusal of a body that is too large."""
        takes = f"a body of at most {self.max_body} bytes" if self.max_body else "no body"
        return too_large(f"this path takes {takes}")

    def gotLength(self, length: int | None) -> None:
        """Bodies are bounded, so they stay in memory."""
        self.content = BytesIO()

    def parseCookies(self) -> None:
        """Nobody here reads cookies."""

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body, unless nobody will read it or it grows too large."""
        if self.refused is not None:
            return
        self._size += len(data)
        if self._size > self.max_body:
            self.refused = self.oversized()
            self.content = BytesIO()
            self.channel.refuse(self.refused)
            return
        self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is whole."""
        self.process()

    def process(self) -> None:
        """Have it answered."""
        if self.refused is not None:
            self._respond(self.refused.answer())
            return
        assert self.route is not None  # noqa: S101 - for the type checker: not refused means routed
        handler: Callable[[Request], Any] = self.route.methods[
            b"GET" if self.method == b"HEAD" else self.method
        ]
        self.site.begun()
        working: Deferred[Any] = maybeDeferred(handler, self)
        if not working.called or working.paused:
            working.addTimeout(self.site.answer_timeout, self.site.reactor)
            self._working = working
        working.addErrback(self._failed)
        working.addCallback(self._respond)
        working.addErrback(self._broken)
        working.addBoth(lambda _: self.site.ended())

    def connectionLost(self, reason: Failure) -> None:
        """The client went away: nobody waits for the answer any more."""
        self.gone = True
        super().connectionLost(reason)
        if self._working is not None:
            self._working.cancel()

    def _failed(self, failure: Failure) -> Answer:
        if isinstance(failure.value, DeferredTimeout):
            if self.method == b"POST":
                failure = Failure(Unknown())
            else:
                return Refused(
                    HTTPStatus.GATEWAY_TIMEOUT, "timeout", "no answer came in time; try again later"
                ).answer()
        refused = refusal(failure.value) if failure.value else None
        if refused is None:
            if not self.gone:
                self.site.log_failure(self, failure)
            refused = internal_error()
        return refused.answer()

    def _broken(self, failure: Failure) -> None:
        self.site.log_failure(self, failure)
        if not self.gone and self.channel is not None:
            self.channel.loseConnection()

    def _respond(self, answer: Answer) -> None:
        self._working = None
        if self.gone:
            return
        self.setResponseCode(answer.status)
        for name, value in self.site.headers(answer, self.request_id):
            self.responseHeaders.addRawHeader(name, value)
        self.write(answer.body)
        self.finish()
