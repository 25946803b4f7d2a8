"""``GET /events``, as pure functions: who may have an event stream, of which chats, from where; and every refusal.

:func:`judge` is given a complete head, as for the opening handshake. Pages are admitted by the same rule. Since they
ask with ``fetch`` and a header that needs permission, a preflight request is answered, and every answer allows the
page to read it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from notify import ids
from notify.ids import Id
from notify.transport.handshake import MAX_AGENT, Refused, client_id_of, plain_text
from notify.transport.origins import name_of, origin_allowed
from notify.wire import eventstream
from notify.wire import head as heads
from notify.wire.eventstream import MOST_CHATS, Close
from notify.wire.frames import Since

#: the path of event streams
PATH = "/events"

#: the most features that one stream may ask for, known or unknown
MOST_FEATURES = 64

_ABSOLUTE = re.compile(rb"https?://([^/?@]+)(.*)", re.IGNORECASE)
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)
_FEATURE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_METHODS = "GET, OPTIONS"
#: seconds for which a browser may cache the answer to a preflight
_PREFLIGHT = 600

_encode = msgspec.json.Encoder().encode


class Asked(NamedTuple):
    """A stream that may begin once its token has been accepted.

    ``positions`` are those that it resumes from, by chat; None: the notifications. ``origin`` and ``forwarded`` are
    headers; ``client_id`` and ``agent`` are as in a handshake.
    """

    token: str
    chats: tuple[Id, ...]
    positions: dict[Id | None, Since]
    features: tuple[str, ...]
    watch_presence: bool
    origin: str
    forwarded: str
    client_id: str
    agent: str


class Preflight(Exception):  # noqa: N818
    """A browser's preflight request. ``answer`` is the response."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.answer = _head(
            HTTPStatus.NO_CONTENT,
            origin,
            f"Allow: {_METHODS}\r\nAccess-Control-Allow-Methods: GET\r\n"
            "Access-Control-Allow-Headers: Authorization, Last-Event-ID, Cache-Control\r\n"
            f"Access-Control-Max-Age: {_PREFLIGHT}\r\n"
            if origin
            else f"Allow: {_METHODS}\r\n",
        )


class NoStream(Refused):
    """A request that is refused. ``answer`` is the response, and quotes nothing of what the client sent.

    ``page`` is the Origin that may read it; ``origin`` is that of a page that may not, if this is the reason.
    ``close`` is what a WebSocket would be told, if there is a close code for it.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        page: str = "",
        origin: str = "",
        close: Close | None = None,
    ) -> None:
        super().__init__(status, origin, message)
        error: dict[str, object] = {"code": code, "message": message}
        wait = 5
        if close is not None:
            told = msgspec.to_builtins(close)
            error |= {"close": told.pop("code")} | {
                name: told[name] for name in ("retry_after_ms", "elsewhere") if name in told
            }
            if isinstance(close.retry_after_ms, int):
                wait = -(-close.retry_after_ms // 1000)
        more = {
            HTTPStatus.UNAUTHORIZED: "WWW-Authenticate: Bearer\r\n",
            HTTPStatus.METHOD_NOT_ALLOWED: f"Allow: {_METHODS}\r\n",
            HTTPStatus.TOO_MANY_REQUESTS: f"Retry-After: {wait}\r\n",
            HTTPStatus.SERVICE_UNAVAILABLE: f"Retry-After: {wait}\r\n",
        }.get(status, "")
        body = _encode({"error": error})
        about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.answer = _head(status, page, about + more) + body


def begin(page: str) -> bytes:
    """The head of a response whose body is a stream.

    The end of the connection ends it, so that proxies pass bytes on at once.
    """
    return _head(HTTPStatus.OK, page, "Content-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n")


def _head(status: HTTPStatus, page: str, more: str) -> bytes:
    allowed = (
        f"Access-Control-Allow-Origin: {page}\r\nAccess-Control-Expose-Headers: Retry-After\r\n"
        if page
        else ""
    )
    return (
        f"HTTP/1.1 {status:d} {status.phrase}\r\nDate: {formatdate(usegmt=True)}\r\n{more}{allowed}Vary: Origin\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode()


#: the answer that replaces each close code before a stream has begun; 503 for any other
_BEFORE = {
    4002: (HTTPStatus.UNAUTHORIZED, "token_expired", "the token has expired or is revoked: come with a new one"),
    4500: (HTTPStatus.UNAUTHORIZED, "unauthorized", "the token is not good"),
    4503: (HTTPStatus.FORBIDDEN, "disconnected", "disconnected by the operator"),
    4504: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limited", "more was sent than one client may"),
}  # fmt: skip

_AWAY = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "not possible right now; try again later"


def instead(close: Close, page: str) -> NoStream:
    """The answer to a client that is closed before its stream has begun."""
    return NoStream(*_BEFORE.get(close.code, _AWAY), page, close=close)


def nothing(codes: Collection[str], page: str) -> NoStream:
    """The answer if all chats are refused, with these error codes."""
    if set(codes) == {"forbidden"}:
        return NoStream(HTTPStatus.FORBIDDEN, "forbidden", "no such chat, or not yours to see", page)
    return NoStream(*_AWAY, page)


def judge(head: bytes, allowed_origins: Sequence[str], welcome: bool) -> Asked:
    """Parse and judge a head. Raises :class:`NoStream` and :class:`Preflight`.

    ``allowed_origins`` comes from :func:`~notify.transport.origins.parse_origins`; ``welcome``: the server has
    finished starting.
    """
    try:
        request = heads.read(head)
        host, body = heads.host(request), heads.length(request)
    except heads.Malformed:
        raise _bad("this is not a valid HTTP/1.1 request") from None
    method, target, version, fields = request
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise NoStream(
            HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "bad_request", "this is not a valid HTTP/1.1 request"
        )
    absolute = None if target[:1] == b"/" else _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        host, target = absolute[1], absolute[2]
    origin = _once(fields, b"origin")
    if origin == "" or b"#" in target:
        # An empty Origin is not an origin (RFC 6454, section 7), and must not pass as a client that is not a browser.
        raise _bad("this is not a valid HTTP/1.1 request")
    page = origin or ""
    if page and not origin_allowed(page, host.decode("latin-1"), allowed_origins):
        raise NoStream(
            HTTPStatus.FORBIDDEN, "origin_not_allowed", "pages of this origin are not allowed", "", name_of(page)
        )  # fmt: skip
    if method == b"OPTIONS" and body == 0:
        raise Preflight(page)
    if method != b"GET":
        refused = NoStream(
            HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", f"this path takes {_METHODS} only", page
        )
        if method == b"HEAD":  # which has no response body
            refused.answer = refused.answer.partition(heads.END)[0] + heads.END
        raise refused
    if body != 0:
        raise _bad("this path takes no body", page)
    if not welcome:
        raise NoStream(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "the server is starting", page)
    query = target.partition(b"?")[2].decode("ascii")
    chats, features, watch = _read_query(query, page)
    return Asked(
        _token(fields, page),
        chats,
        _positions(fields, page),
        features,
        watch,
        page,
        b", ".join(fields.get(b"x-forwarded-for", ())).decode("ascii", "replace"),
        client_id_of(query) if query else "",
        plain_text(b", ".join(fields.get(b"user-agent", ())).decode("ascii", "replace")[:MAX_AGENT]),
    )


def _bad(message: str, page: str = "") -> NoStream:
    return NoStream(HTTPStatus.BAD_REQUEST, "bad_request", message, page)


def _once(fields: dict[bytes, list[bytes]], name: bytes, page: str = "") -> str | None:
    """The value of a header that must not be repeated; None: it is absent."""
    values = fields.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise _bad("a header is there twice that may be there once", page)
    return values[0].decode("latin-1")


def _token(fields: dict[bytes, list[bytes]], page: str) -> str:
    given = fields.get(b"authorization", ())
    bearer = _BEARER.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    if bearer is None:
        raise NoStream(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "the header 'Authorization: Bearer TOKEN' is needed; a token is never taken from the URL",
            page,
        )
    return bearer[1]


def _positions(fields: dict[bytes, list[bytes]], page: str) -> dict[Id | None, Since]:
    given = _once(fields, b"last-event-id", page)
    try:
        return eventstream.parse(given) if given else {}
    except ValueError:
        raise _bad("the header Last-Event-ID must be the id of an event of this path", page) from None


def _read_query(query: str, page: str) -> tuple[tuple[Id, ...], tuple[str, ...], bool]:
    """The chats, the features, and whether presence is watched."""
    try:
        pairs = parse_qsl(
            query,
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MOST_CHATS + 8,
        )
    except ValueError:
        raise _bad(
            "the query is no list of parameters in percent-encoded UTF-8, or has too many", page
        ) from None
    chats: list[Id] = []
    features: list[str] = []
    watch = ""
    for name, value in pairs:
        if name == "chat":
            try:
                chats.append(ids.parse(value))
            except ValueError as error:
                raise _bad(f"the query parameter 'chat': {error}", page) from None
        elif name == "features" and not features:
            features = value.split(",")
        elif name == "watch_presence" and not watch and value in ("true", "false"):
            watch = value
        elif name != "client_id":
            raise _bad(
                "a query parameter is unknown, repeated or malformed; known parameters are: chat (may be repeated), "
                "features, watch_presence, client_id",
                page,
            )
    if len(chats) > MOST_CHATS:
        raise _bad(f"a stream has at most {MOST_CHATS} chats", page)
    if len(set(chats)) != len(chats):
        raise _bad("a chat is there twice", page)
    if len(features) > MOST_FEATURES or not all(map(_FEATURE.fullmatch, features)):
        raise _bad("the query parameter 'features' must be names with commas between them", page)
    return tuple(chats), tuple(features), watch == "true"
