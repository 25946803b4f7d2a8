"""The rules of the opening handshake, as pure functions: who may open, how they talk, where they come from."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha1
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Request(NamedTuple):
    """An opening handshake that is in order; ``rest`` are the bytes behind it."""

    host: str
    origin: str
    key: str
    protocols: Sequence[str]
    extensions: str
    forwarded: str
    rest: bytes


_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*")
_EXTENSIONS = re.compile(r"[A-Za-z0-9_-]+(?:; ?[a-z_]+(?:=[0-9]+)?)*")
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ [!-~]+")
_ANY_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_TO_ASCII = bytes(byte if byte < 128 else ord("?") for byte in range(256))
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def read_request(data: bytes, path: str, most: int) -> Request | None:
    """Read a handshake as clients send it (RFC 6455, section 4.2.1), for ``path`` and of up to ``most`` bytes.

    None for everything else: what is incomplete or wrong, and what is right in an unusual way. So it may be
    stricter than the RFC, and never laxer.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or len(head) > most:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, target = first.partition(" ")
    target, _, version = target.partition(" ")
    found, _, query = target.partition("?")
    if method != "GET" or version != "HTTP/1.1" or found != path or not _QUERY.fullmatch(query):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        if name in headers:
            return None
        headers[name] = match[2].rstrip()
    get = headers.get
    key, extensions = get("sec-websocket-key", ""), get("sec-websocket-extensions", "")
    protocols: tuple[str, ...] = ()
    if (
        get("upgrade", "").lower() != "websocket"
        or "upgrade" not in [one.strip() for one in get("connection", "").lower().split(",")]
        or get("sec-websocket-version") != "13"
        or not _HOST.fullmatch(get("host", ""))
        or not _KEY.fullmatch(key)
        or get("origin") == ""
        or (extensions and not _EXTENSIONS.fullmatch(extensions))
    ):
        return None
    if offered := get("sec-websocket-protocol"):
        names = [name.strip() for name in offered.split(",")]
        if len(set(names)) != len(names):
            return None
        protocols = tuple(names)
    return Request(
        headers["host"], get("origin", ""), key, protocols, extensions, get("x-forwarded-for", ""), rest
    )


def well_formed(head: bytes) -> bytes | None:
    """The head of a request, safe for a reader that takes more than it should; None: it is malformed.

    autobahn takes control characters, and some above ASCII, for the ends of lines, folded lines for headers, and
    skips what is none. A proxy in front may read such a head otherwise, and must not be told one thing and we
    another (RFC 9112, sections 2.2, 5.1 and 5.2). Bytes above ASCII, which no header of ours has, become ``?``.
    """
    first, *lines = head.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(first) or not all(map(_ANY_HEADER.fullmatch, lines)):
        return None
    return head.translate(_TO_ASCII)


def accept(key: str, protocol: str | None) -> bytes:
    """The answer to a handshake (RFC 6455, section 4.2.2)."""
    digest = b64encode(sha1((key + _MAGIC).encode()).digest()).decode()  # noqa: S324 - the RFC's choice
    chosen = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"{chosen}Sec-WebSocket-Accept: {digest}\r\n\r\n"
    ).encode()


def origin_allowed(origin: str, host: str, allowed: Sequence[str]) -> bool:
    """Whether a handshake with this Origin and Host header may go on (RFC 6454; RFC 6455, section 10.2).

    No Origin is a client that is no browser. With nothing configured only the server's own host may; ``"*"``
    allows everyone; otherwise scheme, host and port must be equal, default ports filled in.
    """
    if not origin or "*" in allowed:
        return True
    here = _origin(origin)
    if here is None:
        return False
    if not allowed:
        # Behind a proxy that ends TLS the scheme differs: the host must be equal, and the port where one is named.
        scheme, _, _ = here
        return here == _origin(f"{scheme}://{host}")
    return any(here == _origin(one) for one in allowed)


def _origin(text: str) -> tuple[str, str, int] | None:
    try:
        url = urlsplit(text.strip().lower())
        port = url.port
    except ValueError:
        return None
    if not url.hostname or url.scheme not in _DEFAULT_PORTS:
        return None
    return url.scheme, url.hostname, port or _DEFAULT_PORTS[url.scheme]


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks. Raises ``ValueError`` with a sentence."""
    return tuple(ip_network(text, strict=False) for text in texts)


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Where a connection comes from: the last address of X-Forwarded-For that is not a trusted proxy's.

    The header is believed only as far as the hop that added to it is trusted.
    """
    address = peer
    hops = [hop.strip() for hop in forwarded.split(",")] if forwarded else []
    while hops and _is_in(address, trusted):
        address = hops.pop()
    return address if _is_address(address) else peer


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    return (
        bool(networks)
        and _is_address(address)
        and any(ip_address(address) in network for network in networks)
    )
