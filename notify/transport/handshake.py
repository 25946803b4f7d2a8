"""The opening handshake, as pure functions: who may open a connection, and with which options.

Only :func:`judge` decides. It is given a complete head, so the answer cannot depend on how TCP split the bytes.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha1
from http import HTTPStatus
from typing import NamedTuple

from notify.transport.extensions import Deflate, Offer, accept_deflate, parse_offers
from notify.transport.origins import name_of, origin_allowed
from notify.wire import encodings
from notify.wire import head as heads
from notify.wire.frames import Encoding

#: the path that clients connect to
PATH = "/ws"

# A port, if there is one, must be valid. The rest is only compared with an Origin.
_HOST = re.compile(r"[^:]*|.*\]|.*:[0-9]*")
_ABSOLUTE = re.compile(r"https?://([^/?@]+)(.*)", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_VERSION = re.compile(r"0|[1-9][0-9]{0,2}")  # RFC 6455, section 4.3

#: headers that must not be repeated, because a proxy in front might believe one and this server another
_ONCE = frozenset((b"host", b"origin", b"sec-websocket-key", b"sec-websocket-version"))
#: the headers that are read here, by name as bytes and as text
_NAMES = {
    name.encode("ascii"): name
    for name in (
        *("host", "origin", "x-forwarded-for", "upgrade", "connection", "sec-websocket-key", "user-agent"),
        *("sec-websocket-version", "sec-websocket-protocol", "sec-websocket-extensions"),
    )
}
#: the most characters of a User-Agent that are kept
MAX_AGENT = 200
_CLIENT_ID = "client_id="
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Accepted(NamedTuple):
    """A handshake that opens a connection.

    ``answer`` is the response. ``deflate`` is the agreed compression, if any. ``origin`` and ``forwarded`` are the
    headers Origin and X-Forwarded-For, empty if absent. ``client_id`` is from the query, empty if it is absent or
    malformed. ``agent`` is the start of the header User-Agent, without control characters.
    """

    answer: bytes
    encoding: Encoding
    deflate: Deflate | None
    origin: str
    forwarded: str
    client_id: str = ""
    agent: str = ""


class Refused(Exception):  # noqa: N818
    """A handshake that is refused. ``answer`` is the response, and quotes nothing of what the client sent.

    ``origin`` is set if the page's origin is the reason; ``why`` is the reason in words if the status does not say
    it.
    """

    def __init__(self, status: HTTPStatus, origin: str = "", why: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.origin = origin
        self.why = why
        more = _MORE.get(status, "Connection: close\r\n")
        self.answer = f"HTTP/1.1 {status:d} {status.phrase}\r\nContent-Length: 0\r\n{more}\r\n".encode()


_MORE = {
    # RFC 6585, section 4; RFC 9110, section 15.6.4
    HTTPStatus.TOO_MANY_REQUESTS: "Retry-After: 5\r\nConnection: close\r\n",
    HTTPStatus.SERVICE_UNAVAILABLE: "Retry-After: 5\r\nConnection: close\r\n",
    HTTPStatus.METHOD_NOT_ALLOWED: "Allow: GET\r\nConnection: close\r\n",
    # RFC 6455, section 4.2.2; RFC 9110, sections 7.8 and 15.5.22
    HTTPStatus.UPGRADE_REQUIRED: "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: close, Upgrade\r\n",
}


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """A head and what follows it; None: it is incomplete. Raises :class:`Refused` if it is too long."""
    try:
        end = heads.find_end(data)
    except heads.TooLong:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    return None if end < 0 else (data[:end], data[end + len(heads.END) :])


def judge(head: bytes, allowed_origins: Sequence[str], compress: bool) -> Accepted:
    """Decide whether a client's head opens a connection (RFC 6455, section 4.2). Raises :class:`Refused`.

    ``allowed_origins`` comes from :func:`~notify.transport.origins.parse_origins`. ``compress`` is whether
    permessage-deflate may be agreed on. Anything legal is accepted, however unusual.
    """
    asked = _read(head, PATH)
    headers, origin = asked.headers, asked.headers.get("origin", "")
    if origin and not origin_allowed(origin, asked.host, allowed_origins):
        raise Refused(HTTPStatus.FORBIDDEN, name_of(origin))
    offers = _offers(headers)
    subprotocol, encoding = encodings.choose(asked.protocols)
    deflate = accept_deflate(offers) if compress else None
    answer = _accept(asked.key, subprotocol, deflate)
    client_id = client_id_of(asked.query) if asked.query else ""
    return Accepted(
        answer,
        encoding,
        deflate,
        origin,
        headers.get("x-forwarded-for", ""),
        client_id,
        plain_text(headers.get("user-agent", "")[:MAX_AGENT]),
    )


def judge_inner(head: bytes, path: str) -> bytes:
    """The response to a handshake of one of notify's own programs, without subprotocol and extension.

    Raises :class:`Refused`, also for any web page, whatever its origin.
    """
    asked = _read(head, path)
    if "origin" in asked.headers:
        raise Refused(HTTPStatus.FORBIDDEN)
    _offers(asked.headers)
    return _accept(asked.key, None, None)


class _Asked(NamedTuple):
    """What a valid handshake asks for."""

    headers: dict[str, str]
    host: str
    query: str
    key: str
    protocols: list[str]


def _read(head: bytes, path: str) -> _Asked:
    try:
        request = heads.read(head)
        body = heads.length(request)
    except heads.Malformed:
        raise Refused(HTTPStatus.BAD_REQUEST) from None
    method, target, version, fields = request
    headers = _read_headers(fields)
    if method != b"GET":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    if version != b"HTTP/1.1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    host, query = _read_target(target.decode("ascii"), headers, path)
    if body != 0:
        # A proxy in front would see these bytes as a body, and this server as frames.
        raise Refused(HTTPStatus.BAD_REQUEST)
    get = headers.get
    if "upgrade" not in headers:
        raise Refused(HTTPStatus.UPGRADE_REQUIRED)
    if not _names("websocket", headers["upgrade"]) or not _names("upgrade", get("connection", "")):
        raise Refused(HTTPStatus.BAD_REQUEST)
    spoken = get("sec-websocket-version", "")
    if spoken != "13":
        raise Refused(HTTPStatus.UPGRADE_REQUIRED if _VERSION.fullmatch(spoken) else HTTPStatus.BAD_REQUEST)
    key, protocols = get("sec-websocket-key", ""), _split(get("sec-websocket-protocol", ""))
    # An empty Origin is not an origin (RFC 6454, section 7), and must not pass as a client that is not a browser.
    if not _KEY.fullmatch(key) or len(set(protocols)) != len(protocols) or get("origin") == "":
        raise Refused(HTTPStatus.BAD_REQUEST)
    return _Asked(headers, host, query, key, protocols)


def _offers(headers: Mapping[str, str]) -> Sequence[Offer]:
    offers = parse_offers(headers.get("sec-websocket-extensions", ""))
    if offers is None:
        # RFC 6455, section 9.1: the receiver of a malformed header must fail the connection, whether or not it would
        # accept any of the extensions. A well-formed offer that is not supported is only declined.
        raise Refused(HTTPStatus.BAD_REQUEST)
    return offers


def _read_headers(fields: Mapping[bytes, Sequence[bytes]]) -> dict[str, str]:
    """The headers that are used. A repeated header continues the list (RFC 9110, section 5.3)."""
    headers: dict[str, str] = {}
    for name, text in _NAMES.items():
        values = fields.get(name)
        if values is not None:
            if len(values) > 1 and name in _ONCE:
                raise Refused(HTTPStatus.BAD_REQUEST)
            headers[text] = b", ".join(values).decode("ascii", "replace")
    return headers


def _read_target(target: str, headers: dict[str, str], ours: str) -> tuple[str, str]:
    """The host and the query of a request for the given path.

    A target with an authority overrides the header Host, which must be present all the same (RFC 9112, section 3.2).
    """
    host = headers.get("host")
    if host is None or "#" in target:
        raise Refused(HTTPStatus.BAD_REQUEST)
    if target[0] != "/" and (absolute := _ABSOLUTE.fullmatch(target)):
        host, target = absolute.groups()
    if not _HOST.fullmatch(host):
        raise Refused(HTTPStatus.BAD_REQUEST)
    path, _, query = target.partition("?")
    if path != ours:
        raise Refused(HTTPStatus.NOT_FOUND)
    return host, query


def client_id_of(query: str) -> str:
    """The ``client_id`` in the query, by which proxies hash.

    If it is repeated it is ignored: either may have been hashed.
    """
    given = [one for one in query.split("&") if one.startswith(_CLIENT_ID)]
    value = given[0][len(_CLIENT_ID) :] if len(given) == 1 else ""
    return value if _ID.fullmatch(value) else ""


@lru_cache(1024)
def plain_text(text: str) -> str:
    """The text without control characters. Cached, because most clients send one of a few agents."""
    return text if text.isprintable() else "".join(letter for letter in text if letter.isprintable())


def _names(option: str, value: str) -> bool:
    """Whether a list of case-insensitive options contains this one."""
    value = value.lower()
    return value == option or option in _split(value)


def _split(value: str) -> list[str]:
    """The elements of a comma-separated list; empty ones are ignored (RFC 9110, section 5.6.1.2)."""
    return [element for one in value.split(",") if (element := one.strip(" \t"))]


def _accept(key: str, subprotocol: str | None, deflate: Deflate | None) -> bytes:
    """The response of RFC 6455, section 4.2.2."""
    digest = b64encode(sha1((key + _MAGIC).encode()).digest()).decode()  # noqa: S324 - the RFC's choice
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    agreed = f"Sec-WebSocket-Extensions: {deflate.answer}\r\n" if deflate else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{chosen}{agreed}Sec-WebSocket-Accept: {digest}\r\n\r\n"
    ).encode()
