"""Client addresses in one canonical form, however a socket or a proxy writes them, for comparing and counting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")

#: this machine, and networks that are not routed on the internet: connections from there came through something that
#: belongs to the operator (RFC 1122, 1918, 3927, 4193, 4291, 6598)
_INSIDE: tuple[Network, ...] = tuple(
    ip_network(one)
    for one in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


#: characters of a text whose address is kept: any address fits, unless it has a long scope
_KEPT = 64


def parse(text: str) -> Address | None:
    """Parse an address; None for any other text.

    IPv4-mapped IPv6 becomes IPv4, and the scope is dropped, since it may be any text.
    """
    # A client's address is needed several times while it connects, and parsing it takes microseconds.
    return _parse_once(text) if len(text) <= _KEPT else _parse(text)


def _parse(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


_parse_once = lru_cache(1024)(_parse)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse addresses and networks; IPv4-mapped IPv6 becomes IPv4. Raises ``ValueError`` with a sentence."""
    return tuple(_plain(ip_network(text, strict=False)) for text in texts)


def _plain(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def is_in(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address belongs to one of the networks."""
    return any(address in network for network in networks)


@lru_cache(1024)
def is_inside(address: Address) -> bool:
    """Whether the address is of this machine, or of a network that the internet does not reach."""
    return is_in(address, _INSIDE)


def block(address: Address) -> bytes:
    """The unit by which clients are counted, as one subscriber usually has it: an IPv4 address, or an IPv6 /64."""
    return address.packed[:8]


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The address of a client behind any number of trusted proxies.

    ``peer`` is the other end of the socket. ``forwarded`` is the header X-Forwarded-For, to which each proxy appends
    the address that it was reached from. Anybody may have written what stands to the left of the first untrusted
    address. If a trusted proxy wrote something that is not an address, only the peer is known. A peer without an
    address is returned unchanged.
    """
    here = parse(peer)
    if here is None:
        return peer
    address, hops = here, forwarded.split(",") if forwarded else []
    while hops and is_in(address, trusted):
        hop = parse(hops.pop().strip())
        if hop is None:
            return str(here)
        address = hop
    return str(address)
