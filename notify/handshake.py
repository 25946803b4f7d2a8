"""The rules of the opening handshake, as pure functions: who may open, how they talk, where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from notify.frames import ENCODINGS, JSON, Encoding

Network = IPv4Network | IPv6Network

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


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


def choose_encoding(offered: Sequence[str]) -> tuple[str | None, Encoding]:
    """The first subprotocol of the client's that is known, and its encoding; JSON and no name without one."""
    for name in offered:
        if name in ENCODINGS:
            return name, ENCODINGS[name]
    return None, JSON


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
