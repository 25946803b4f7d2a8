"""What is in force until the next reload: one frozen value, and the one place that holds it."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct

from notify.config import Drain, Limits, Log
from notify.ids import Id
from notify.interfaces import IAuthenticator

#: the scopes of API keys: publish; query; disconnect users, or end the server
SCOPES = frozenset(("publish", "read", "control"))


class ApiKey(Struct, frozen=True):
    """An API key: its SHA-256, its name in logs, its scopes and its workspaces (``workspaces`` None: all)."""

    digest: bytes
    name: str
    scopes: frozenset[str] = SCOPES
    workspaces: frozenset[Id] | None = None

    @property
    def limited(self) -> bool:
        """Whether the key is restricted in any way."""
        return self.scopes != SCOPES or self.workspaces is not None


class InForce(Struct, frozen=True):
    """All that a reload replaces (``LIVE`` in service/reload.py), made from one configuration, at start and later alike."""

    authenticator: IAuthenticator
    limits: Limits = Limits()
    #: which origins may open a WebSocket from a browser, and which proxies' X-Forwarded-For is trusted
    allowed_origins: tuple[str, ...] = ()
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    drain: Drain = Drain()
    log: Log = Log()


class Live:
    """The value in force. Code that depends on something that a reload replaces holds this, and looks here each time."""

    __slots__ = ("now",)

    def __init__(self, now: InForce) -> None:
        self.now = now
