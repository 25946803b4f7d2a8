"""One HTTP request: it is judged once its headers are complete, bounded, and handled."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl

from msgspec import Struct
from twisted.internet.defer import Deferred

from notify.core.live import ApiKey
from notify.http.answers import MAX_LINES, Answer, Refused, Stream, Upgrade, bad_request, too_large
from notify.http.keys import ApiKeys
from notify.observe import tracing
from notify.wire import head as heads
from notify.wire.head import Malformed, TooLong

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,64}", re.ASCII)
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.ASCII | re.IGNORECASE)
_JSON = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*(?:charset="?utf-8"?)?[ \t]*)?', re.ASCII | re.IGNORECASE
)

_NO_KEYS = ApiKeys(tuple)
_NOBODY = ApiKey(b"", "nobody", frozenset(), frozenset())

#: the name of all nonexistent paths in metrics and logs
NO_SUCH_PATH = "no_such_path"

Given = Answer | Stream | Upgrade


class Route(Struct, frozen=True):
    """What one path accepts: a handler for each method, the scope that a key needs, and the most bytes of a body.

    A handler is given the :class:`Request`. It returns one of the types in ``answers``, or a Deferred of one, or
    raises.
    """

    methods: Mapping[bytes, Callable[[Request], Given | Deferred[Answer] | Deferred[Given]]]
    scope: str = ""
    max_body: int = 0
    json: bool = False

    @property
    def allowed(self) -> bytes:
        """The value of an ``Allow`` header."""
        return b", ".join(sorted({*self.methods, *([b"HEAD"] if b"GET" in self.methods else [])}))


class Rules(Protocol):
    """The rules that a request is judged by."""

    routes: Mapping[bytes, Route]
    keys: ApiKeys | None
    new_id: Callable[[], str]


class Request:
    """One request.

    Handlers use :attr:`body`, :attr:`host`, :attr:`trace`, :meth:`parameters`, :meth:`text_header`, and :attr:`head`:
    the bytes of all its headers without the empty line behind them.
    """

    __slots__ = (
        "_query",
        "_rules",
        "body",
        "fields",
        "head",
        "host",
        "key",
        "length",
        "method",
        "name",
        "path",
        "peer",
        "received",
        "refused",
        "request_id",
        "route",
        "version",
    )

    def __init__(self, rules: Rules, head: bytes, received: float, peer: str) -> None:
        """Decide whether to accept the request; the decision is in :attr:`refused`.

        Raises :class:`~notify.wire.head.Malformed` and :class:`~notify.wire.head.TooLong` if it cannot be known what
        is requested, or where the request ends. ``received`` is the reactor's time; ``peer`` is the address that it
        comes from.
        """
        if head.count(b"\r\n") > MAX_LINES:
            raise TooLong
        parsed = heads.read(head)
        if parsed.version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise Malformed
        self.method, target, self.version, self.fields = parsed
        #: bytes of the body; None: it is chunked
        self.length = heads.length(parsed)
        given_host = heads.host(parsed)
        self._rules = rules
        self.head = head
        self.received = received
        self.peer = peer
        #: the whole body
        self.body = b""
        self.route: Route | None = None
        #: the API key of the request, if its path needs one
        self.key = _NOBODY
        #: the name of the path in metrics and logs, which must not contain anything that a client chose
        self.name = NO_SUCH_PATH
        ids = self.fields.get(b"x-request-id")
        given = ids[0] if ids is not None and len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else None
        self.request_id = given.decode("ascii") if given else rules.new_id()
        absolute = None if target[:1] == b"/" else _ABSOLUTE.match(target)
        if absolute is not None:
            # It overrides the header Host (RFC 9112, section 3.2.2).
            given_host, target = absolute[1], target[absolute.end() :]
        #: the host that the request is for, as it was sent: a name or an address, with or without a port; or empty
        self.host = given_host.decode("latin-1")
        self.path, _, self._query = target.partition(b"?")
        self.refused: Refused | None = None
        try:
            self._admit()
        except Refused as refused:
            # Its traceback would keep this request, and everything read with it, until the next garbage collection.
            self.refused = refused.with_traceback(None)

    # --- for handlers

    @property
    def trace(self) -> str:
        """The request's W3C ``traceparent``; empty if it is absent or invalid."""
        values = self.fields.get(b"traceparent")
        return tracing.valid(values[0].decode("latin-1")) if values is not None and len(values) == 1 else ""

    def text_header(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        """The value of a header that must not be repeated. Raises :class:`Refused` if it is not as ``what`` says."""
        values = self.fields.get(name.lower().encode())
        if not values:
            return None
        value = values[0].decode("latin-1")
        if len(values) > 1 or not pattern.fullmatch(value):
            raise bad_request(f"the header {name} must be given once, as {what}")
        return value

    def parameters(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, str]:
        """The query parameters. Raises :class:`Refused` if one is missing, unknown, repeated or not UTF-8."""
        if not self._query and not required:
            return {}  # as for nearly every publish
        if not self._query and not required:
            return {}  # as for nearly every busy path
        try:
            pairs = parse_qsl(self._query.decode("ascii"), keep_blank_values=True, errors="strict")
        except (UnicodeDecodeError, ValueError):
            raise bad_request("the query is not percent-encoded UTF-8") from None
        found = dict(pairs)
        known = [*required, *optional]
        if len(found) != len(pairs):
            raise bad_request("each query parameter may be given only once")
        if not found.keys() <= {*known}:
            raise bad_request(f"unknown query parameter; this path accepts: {', '.join(known) or 'none'}")
        for name in required:
            if name not in found:
                raise bad_request(f"the query parameter '{name}' is missing")
        return found

    # --- judging

    def _admit(self) -> None:
        route = self._rules.routes.get(self.path)
        if route is not None:
            self.name = self.path.decode("ascii")
        keys = self._rules.keys
        if route.scope if route else keys and (self.path == b"/v1" or self.path.startswith(b"/v1/")):
            given = self.fields.get(b"authorization", ())
            self.key = (keys or _NO_KEYS).check(
                given[0] if len(given) == 1 else None, self.peer, route.scope if route else ""
            )
        if route is None:
            raise Refused(HTTPStatus.NOT_FOUND, "not_found", "nothing is served at this path")
        self.route = route
        if self.method not in route.methods and not (self.method == b"HEAD" and b"GET" in route.methods):
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method_not_allowed",
                f"this path accepts only {route.allowed.decode()}",
                {b"Allow": route.allowed},
            )
        if route.json:
            self._require_json()
        if (self.length or 0) > route.max_body or (self.length is None and not route.max_body):
            raise self.oversized()

    def _require_json(self) -> None:
        types = self.fields.get(b"content-type", ())
        encodings = self.fields.get(b"content-encoding")
        if (
            len(types) != 1
            or not _JSON.fullmatch(types[0])
            or (encodings is not None and [e.lower() for e in encodings] != [b"identity"])
        ):
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be JSON in UTF-8, not compressed: send 'Content-Type: application/json'",
            )

    @property
    def max_body(self) -> int:
        """The most bytes of a body that the path accepts."""
        return self.route.max_body if self.route is not None else 0

    def oversized(self) -> Refused:
        """The refusal of a body that is too large."""
        takes = f"a body of at most {self.max_body} bytes" if self.max_body else "no body"
        return too_large(f"this path accepts {takes}")

    @property
    def lives_on(self) -> bool:
        """Whether the client may send another request after this one."""
        return self.version == b"HTTP/1.1" and not self._has(b"connection", b"close")

    @property
    def waits(self) -> bool:
        """Whether the client waits for permission to send the body (RFC 9110, section 10.1.1)."""
        return self.version == b"HTTP/1.1" and self.length != 0 and self._has(b"expect", b"100-continue")

    def _has(self, name: bytes, option: bytes) -> bool:
        return heads.lists(self.fields, name, option)
