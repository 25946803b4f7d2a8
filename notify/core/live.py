"""What is in force until the next reload: one frozen value, and the one place where it is kept."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct

from notify.config import Drain, Limits, Log
from notify.interfaces import IAuthenticator


class InForce(Struct, frozen=True):
    """All that a reload replaces (``LIVE`` in service/reload.py), made of one configuration, at start and later alike."""

    authenticator: IAuthenticator
    limits: Limits = Limits()
    #: who may open a WebSocket from a browser, and whose X-Forwarded-For is believed
    allowed_origins: tuple[str, ...] = ()
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    #: SHA-256 of each API key
    keys: tuple[bytes, ...] = ()
    drain: Drain = Drain()
    log: Log = Log()


class Live:
    """Whoever obeys something that a reload replaces is given this, and looks here each time."""

    __slots__ = ("now",)

    def __init__(self, now: InForce) -> None:
        self.now = now
