"""What is in force until the next reload: one frozen value, and the one place where it is kept."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct

from notify.config import Drain, Limits, Log
from notify.ids import Id
from notify.interfaces import IAuthenticator

#: what API keys may be good for: to publish, to ask, and to send users away or end the server
SCOPES = frozenset(("publish", "read", "control"))


class ApiKey(Struct, frozen=True):
    """One API key: the SHA-256 of it, what logs call it, and what it may do where (``workspaces`` None: everywhere)."""

    digest: bytes
    name: str
    scopes: frozenset[str] = SCOPES
    workspaces: frozenset[Id] | None = None

    @property
    def limited(self) -> bool:
        """Whether there is something that it may not do."""
        return self.scopes != SCOPES or self.workspaces is not None


class InForce(Struct, frozen=True):
    """All that a reload replaces (``LIVE`` in service/reload.py), made of one configuration, at start and later alike."""

    authenticator: IAuthenticator
    limits: Limits = Limits()
    #: who may open a WebSocket from a browser, and whose X-Forwarded-For is believed
    allowed_origins: tuple[str, ...] = ()
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    drain: Drain = Drain()
    log: Log = Log()


class Live:
    """Whoever obeys something that a reload replaces is given this, and looks here each time."""

    __slots__ = ("now",)

    def __init__(self, now: InForce) -> None:
        self.now = now
