"""Where a client comes from: addresses as they are compared and counted, whatever a socket or a proxy writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")

#: this machine, and networks that are not routed in the internet: what comes from there came through something of one's own
#: (RFC 1122, 1918, 3927, 4193, 4291, 6598)
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


def parse(text: str) -> Address | None:
    """An address; None for any other text. IPv4 in IPv6 is IPv4, and a scope is dropped: it may be any text at all."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks, those of IPv4 in IPv6 as IPv4. Raises ``ValueError`` with a sentence."""
    return tuple(_plain(ip_network(text, strict=False)) for text in texts)


def _plain(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def is_in(address: Address, networks: Sequence[Network]) -> bool:
    """Whether one of the networks has it."""
    return any(address in network for network in networks)


def is_inside(address: Address) -> bool:
    """Whether it is of this machine, or of a network that the internet does not reach."""
    return is_in(address, _INSIDE)


def block(address: Address) -> bytes:
    """What one subscriber has of the internet, to count by: an IPv4 address, or the /64 of an IPv6 one."""
    return address.packed[:8]


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The address of a client behind any number of trusted proxies.

    ``peer`` is the other end of the socket, ``forwarded`` the header X-Forwarded-For, to which each proxy appends the
    address that it was reached from. What stands left of the first proxy that is not ours, anyone may have written; and
    where one of ours wrote what is no address, the peer is all that is known. A peer without an address is given back.
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
